"""Our copies, served as files should be."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import Depends, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials

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
from app.web import Text
from app.web.problems import problem_responses
from app.web.provided import DatabaseDep, provided
from app.web.routing import Router

router = Router(prefix="/v1/tasks/{task_id}/clips/{index}", tags=["clips"])

# Only as long as a client needs to follow a redirect; what it has begun to read it may finish.
REDIRECT_LIFE = timedelta(minutes=5)
MAX_INDEX_LENGTH = 4
Answers = dict[int | str, dict[str, Any]]


def _file(kind: str) -> Answers:
    content: dict[str, Any] = {media_type: {} for media_type in SUFFIXES if media_type.startswith(kind)}
    return {
        200: {"description": "The file.", "content": content},
        206: {"description": "The part of the file that `Range` asked for.", "content": content},
        304: {"description": "The file is the one of `If-None-Match`."},
        **problem_responses(NotArchivedYet, RangeNotSatisfiable, StorageUnavailable),
    }


def _text(media_type: str) -> Answers:
    return {200: {"description": "The words.", "content": {media_type: {"schema": {"type": "string"}}}}}


COVER_ANSWERS = _file("image/")
REDIRECT: Answers = {307: {"description": "The file is at `Location`, where the service is set to redirect."}}
AUDIO_ANSWERS = {**_file("audio/"), **REDIRECT, **problem_responses(AudioLost)}
SRT, VTT = "application/x-subrip", "text/vtt"
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


async def find_own_clip(tasks: TasksDep, caller: CallerDep, task_id: str, index: str) -> Clip:
    """The clip of the caller's task. Raises NotFound."""
    return _clip_of(await tasks.get_row(caller, task_id), index)


async def find_linked_clip(
    tasks: TasksDep,
    signed_urls: Annotated[SignedUrls, provided(SignedUrls)],
    database: DatabaseDep,
    credentials: Credentials,
    task_id: str,
    index: str,
    expires: Annotated[Text | None, Query()] = None,
    signature: Annotated[Text | None, Query()] = None,
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


@router.get("/audio", operation_id="getClipAudio", response_class=Response, responses=AUDIO_ANSWERS)
async def get_audio(request: Request, clip: LinkedClip, storage: StorageDep, settings: SettingsDep) -> Response:
    """Our copy of a clip's audio, or a part of it; with your key, or by the link in `audio_url` without one."""
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


@router.get("/image", operation_id="getClipImage", response_class=Response, responses=COVER_ANSWERS)
async def get_image(request: Request, clip: OwnClip, storage: StorageDep) -> Response:
    """Our copy of a clip's cover; 404 where there is none."""
    if clip.image_archived_at is not None and clip.image_key is not None:
        kept = StoredFile(
            clip.image_key, clip.image_size or 0, clip.image_sha256 or "", clip.image_type or "", clip.title
        )
        return await answer_with(request, storage, kept)
    if needs_cover(clip):
        raise NotArchivedYet
    raise NotFound


@router.get("/lyrics.srt", operation_id="getClipSubtitles", response_class=Response, responses=_text(SRT))
async def get_srt(clip: OwnClip) -> Response:
    """A clip's words as SubRip subtitles; 404 where there are none."""
    return Response(subtitles.srt(_words(clip)), media_type=f"{SRT}; charset=utf-8")


@router.get("/lyrics.vtt", operation_id="getClipCaptions", response_class=Response, responses=_text(VTT))
async def get_vtt(clip: OwnClip) -> Response:
    """A clip's words as WebVTT captions; 404 where there are none."""
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
