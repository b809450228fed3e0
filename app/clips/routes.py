"""The routes of a clip's files: audio, cover image and lyrics, from this service's own copies."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import Depends, Path, Request, Response
from pydantic.json_schema import WithJsonSchema

from app.auth.callers import ReadCaller
from app.clips import subtitles
from app.clips.media_types import SUFFIXES
from app.clips.responses import serve_file
from app.clips.service import ClipService, StoredFile
from app.config import Settings
from app.errors import AudioLost, NotArchivedYet, RangeNotSatisfiable, StorageUnavailable
from app.storage.store import Storage
from app.tasks.links.reading import ReaderDep
from app.tasks.schemas import TaskId
from app.web.openapi import header_parameter, response_headers
from app.web.problems import problem_responses
from app.web.provided import provided
from app.web.routing import Router

router = Router(prefix="/v1/tasks/{task_id}/clips/{index}", tags=["clips"])

# Long enough to follow the redirect; a download that has begun may take longer.
REDIRECT_TTL = timedelta(minutes=5)
EXAMPLE_ETAG = '"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"'
Responses = dict[int | str, dict[str, Any]]


def _file(kind: str) -> Responses:
    # Some client generators know no other type of bytes than the last.
    media_types = (*(media_type for media_type in SUFFIXES if media_type.startswith(kind)), "application/octet-stream")
    content: dict[str, Any] = {
        # JSON Schema has no binary strings: `format` is what client generators read, and OpenAPI 3.1 has the other.
        media_type: {"schema": {"type": "string", "format": "binary", "contentMediaType": media_type}}
        for media_type in media_types
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


def _text(media_type: str) -> Responses:
    content = {known: {"schema": {"type": "string"}} for known in (media_type, "text/plain")}
    return {200: {"description": "The words with their times.", "content": content}}


COVER_RESPONSES = _file("image/")
REDIRECT: Responses = {
    307: {
        "description": "The file is at `Location` for 5 minutes: this service is set to redirect to its storage.",
        "headers": response_headers("Location", "Cache-Control"),
    }
}
AUDIO_RESPONSES = {**_file("audio/"), **REDIRECT, **problem_responses(AudioLost)}
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
ClipsDep = Annotated[ClipService, provided(ClipService)]
StorageDep = Annotated[Storage, provided(Storage)]
SettingsDep = Annotated[Settings, provided(Settings)]


async def find_audio(
    request: Request,
    clips: ClipsDep,
    reader: ReaderDep,
    task_id: TaskId,
    index: ClipIndex,
) -> StoredFile:
    """The audio that a key or a signed link gives access to."""
    return await clips.audio(reader.caller, task_id, index, request.receive)


AudioDep = Annotated[StoredFile, Depends(find_audio)]


@router.get(
    "/audio",
    operation_id="getClipAudio",
    summary="Get a clip's audio",
    response_class=Response,
    responses=AUDIO_RESPONSES,
    openapi_extra=FILE_PARAMETERS,
)
async def get_audio(request: Request, audio: AudioDep, storage: StorageDep, settings: SettingsDep) -> Response:
    """
    Get this service's copy of a clip's audio, or a part of it, with your key or by a signed link such as `audio_url`.

    While the copy is being made, the response waits for it, for up to 10 seconds; then it is 409 with `Retry-After`.
    """
    if request.method == "GET" and settings.s3_redirect:
        url = await storage.presigned(audio.key, REDIRECT_TTL)
        if url is not None:
            return Response(status_code=307, headers={"Location": url, "Cache-Control": "private, no-store"})
    return await serve_file(request, storage, audio)


@router.get(
    "/image",
    operation_id="getClipImage",
    summary="Get a clip's cover image",
    response_class=Response,
    responses=COVER_RESPONSES,
    openapi_extra=FILE_PARAMETERS,
)
async def get_image(
    request: Request, clips: ClipsDep, storage: StorageDep, reader: ReaderDep, task_id: TaskId, index: ClipIndex
) -> Response:
    """Get this service's copy of a clip's cover image, or a part of it; 404 if the clip has none."""
    return await serve_file(request, storage, await clips.cover(reader.caller, task_id, index))


@router.get(
    "/lyrics.srt",
    operation_id="getClipSubtitles",
    summary="Get a clip's lyrics as SubRip",
    response_class=Response,
    responses=_text(SRT),
)
async def get_srt(clips: ClipsDep, caller: ReadCaller, task_id: TaskId, index: ClipIndex) -> Response:
    """Get the sung words of a clip as SubRip subtitles; 404 if there are none."""
    words = await clips.lyrics(caller, task_id, index)
    return Response(subtitles.srt(words), media_type=f"{SRT}; charset=utf-8")


@router.get(
    "/lyrics.vtt",
    operation_id="getClipCaptions",
    summary="Get a clip's lyrics as WebVTT",
    response_class=Response,
    responses=_text(VTT),
)
async def get_vtt(clips: ClipsDep, caller: ReadCaller, task_id: TaskId, index: ClipIndex) -> Response:
    """Get the sung words of a clip as WebVTT captions; 404 if there are none."""
    words = await clips.lyrics(caller, task_id, index)
    return Response(subtitles.vtt(words), media_type=f"{VTT}; charset=utf-8")
