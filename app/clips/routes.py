"""The routes of a clip's files: audio, cover image and lyrics, from this service's own copies."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials
from pydantic.json_schema import SkipJsonSchema, WithJsonSchema

from app.auth.api_keys import OPERATOR, CallerDep, authenticate, bearer
from app.clips import subtitles
from app.clips.media_types import SUFFIXES
from app.clips.responses import StoredFile, answer_with
from app.config import Settings
from app.errors import AudioLost, NotArchivedYet, NotAuthenticated, NotFound, RangeNotSatisfiable, StorageUnavailable
from app.models import Clip, Task
from app.signed_urls import SignedUrls
from app.storage.store import Storage
from app.tasks.clips import needs_cover
from app.tasks.routes import TasksDep
from app.tasks.schemas import TaskId
from app.web import Text
from app.web.openapi import header_parameter, response_headers
from app.web.problems import problem_responses
from app.web.provided import DatabaseDep, provided
from app.web.routing import Router

router = Router(prefix="/v1/tasks/{task_id}/clips/{index}", tags=["clips"])

# Only as long as a client needs to follow a redirect; what it has begun to read it may finish.
REDIRECT_LIFE = timedelta(minutes=5)
MAX_INDEX_LENGTH = 4
EXAMPLE_ETAG = '"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"'
Answers = dict[int | str, dict[str, Any]]


def _file(kind: str) -> Answers:
    content: dict[str, Any] = {
        # JSON Schema has no binary strings: `format` is what client generators read, and OpenAPI 3.1 has the other.
        media_type: {"schema": {"type": "string", "format": "binary", "contentMediaType": media_type}}
        for media_type in SUFFIXES
        if media_type.startswith(kind)
    }
    known = response_headers("ETag", "Cache-Control", "Accept-Ranges")
    whole = {**known, **response_headers("Content-Disposition")}
    part = {**whole, **response_headers("Content-Range")}
    return {
        200: {"description": "The whole file.", "content": content, "headers": whole},
        206: {"description": "The part of the file that `Range` names.", "content": content, "headers": part},
        304: {"description": "The file is the one named in `If-None-Match`.", "headers": known},
        **problem_responses(NotArchivedYet, RangeNotSatisfiable, StorageUnavailable),
    }


def _text(media_type: str) -> Answers:
    return {
        200: {"description": "The words with their times.", "content": {media_type: {"schema": {"type": "string"}}}}
    }


COVER_ANSWERS = _file("image/")
REDIRECT: Answers = {
    307: {
        "description": "The file is at `Location` for 5 minutes: this service is set to redirect to its storage.",
        "headers": response_headers("Location", "Cache-Control"),
    }
}
AUDIO_ANSWERS = {**_file("audio/"), **REDIRECT, **problem_responses(AudioLost)}
SRT, VTT = "application/x-subrip", "text/vtt"
FILE_PARAMETERS = {
    "parameters": [
        header_parameter(
            "Range",
            "The part of the file to get, as one range of bytes counted from 0 (RFC 9110 §14.2); several ranges get the"
            " whole file.",
            "bytes=0-1023",
        ),
        header_parameter("If-Range", "An `ETag`: `Range` counts only if the file still has it.", EXAMPLE_ETAG),
        header_parameter(
            "If-None-Match",
            "The `ETag` of the file that you have, or several separated by commas: the response is then 304.",
            EXAMPLE_ETAG,
        ),
    ]
}
ClipIndex = Annotated[
    str,
    # Other text is the index of no clip: a 404, where the framework would answer 422.
    WithJsonSchema({"type": "integer", "minimum": 0, "examples": [0]}),
    Path(description="The `index` of the clip in its task, from 0."),
]
Expires = Annotated[
    Text | SkipJsonSchema[None],
    Query(description="When a signed link expires, in Unix seconds; part of `audio_url`.", examples=["1769932800"]),
]
Signature = Annotated[
    Text | SkipJsonSchema[None],
    Query(description="The signature of a signed link; part of `audio_url`.", examples=["kq3vB1fGZt8"]),
]
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


async def find_own_clip(tasks: TasksDep, caller: CallerDep, task_id: TaskId, index: ClipIndex) -> Clip:
    """The clip of the caller's task. Raises NotFound."""
    return _clip_of(await tasks.get_row(caller, task_id), index)


async def find_linked_clip(
    tasks: TasksDep,
    signed_urls: Annotated[SignedUrls, provided(SignedUrls)],
    database: DatabaseDep,
    credentials: Credentials,
    task_id: TaskId,
    index: ClipIndex,
    expires: Expires = None,
    signature: Signature = None,
) -> Clip:
    """
    The same, for whoever has a link that we signed too. Raises NotAuthenticated, NotFound.

    A link is judged by itself, before anything is looked up: a bad one gets the same
    answer whether or not there is such a clip.
    """
    if credentials is not None or expires is None or signature is None:
        return await find_own_clip(tasks, await authenticate(database, credentials), task_id, index)
    if not _is_index(index) or not signed_urls.is_valid(task_id, int(index), expires, signature):
        raise NotAuthenticated(detail="This link has expired or was not made by this service; read the task again.")
    return _clip_of(await tasks.get_row(OPERATOR, task_id), index)


OwnClip = Annotated[Clip, Depends(find_own_clip)]
LinkedClip = Annotated[Clip, Depends(find_linked_clip)]
StorageDep = Annotated[Storage, provided(Storage)]
SettingsDep = Annotated[Settings, provided(Settings)]


@router.get(
    "/audio",
    operation_id="getClipAudio",
    summary="Get a clip's audio",
    response_class=Response,
    responses=AUDIO_ANSWERS,
    openapi_extra=FILE_PARAMETERS,
)
async def get_audio(request: Request, clip: LinkedClip, storage: StorageDep, settings: SettingsDep) -> Response:
    """Get this service's copy of a clip's audio, or a part of it, with your key or by the link in `audio_url`."""
    if clip.given_up_at is not None:
        raise AudioLost(detail=f"It was tried for 14 days; the last problem was: {clip.archive_error}.")
    if clip.archived_at is None or clip.storage_key is None:
        raise NotArchivedYet
    kept = StoredFile(clip.storage_key, clip.size or 0, clip.sha256 or "", clip.content_type or "", clip.title)
    if request.method == "GET" and settings.s3_redirect:
        link = await storage.presigned(kept.key, REDIRECT_LIFE)
        if link is not None:
            return Response(status_code=307, headers={"Location": link, "Cache-Control": "private, no-store"})
    return await answer_with(request, storage, kept)


@router.get(
    "/image",
    operation_id="getClipImage",
    summary="Get a clip's cover image",
    response_class=Response,
    responses=COVER_ANSWERS,
    openapi_extra=FILE_PARAMETERS,
)
async def get_image(request: Request, clip: OwnClip, storage: StorageDep) -> Response:
    """Get this service's copy of a clip's cover image, or a part of it; 404 if the clip has none."""
    if clip.image_archived_at is not None and clip.image_key is not None:
        kept = StoredFile(
            clip.image_key, clip.image_size or 0, clip.image_sha256 or "", clip.image_type or "", clip.title
        )
        return await answer_with(request, storage, kept)
    if needs_cover(clip):
        raise NotArchivedYet
    raise NotFound


@router.get(
    "/lyrics.srt",
    operation_id="getClipSubtitles",
    summary="Get a clip's lyrics as SubRip",
    response_class=Response,
    responses=_text(SRT),
)
async def get_srt(clip: OwnClip) -> Response:
    """Get the sung words of a clip as SubRip subtitles; 404 if there are none."""
    return Response(subtitles.srt(_words(clip)), media_type=f"{SRT}; charset=utf-8")


@router.get(
    "/lyrics.vtt",
    operation_id="getClipCaptions",
    summary="Get a clip's lyrics as WebVTT",
    response_class=Response,
    responses=_text(VTT),
)
async def get_vtt(clip: OwnClip) -> Response:
    """Get the sung words of a clip as WebVTT captions; 404 if there are none."""
    return Response(subtitles.vtt(_words(clip)), media_type=f"{VTT}; charset=utf-8")


def _clip_of(task: Task, index: str) -> Clip:
    clips = task.clips if _is_index(index) else []
    clip = next((clip for clip in clips if clip.index == int(index)), None)
    if clip is None:
        raise NotFound
    return clip


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= MAX_INDEX_LENGTH and text == str(int(text))


def _words(clip: Clip) -> list[subtitles.Word]:
    if not clip.lyrics:
        raise NotFound
    return [subtitles.Word(**word) for word in clip.lyrics]
