"""The hosts of audio files and covers. They require no key."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from app.sandbox.api_routes import SandboxDep
from app.sandbox.audio import cover, synthesise
from app.sandbox.fault_responses import abort_connection, make_response, selected_responses, slow_response
from app.sandbox.state import Clip, Sandbox, Task, now
from app.sandbox.timeline import has_audio, stage_at

_MEDIA_TYPES = {"wav": "audio/wav", "mp3": "audio/mpeg"}

router = APIRouter()


@router.get("/audio/{clip_id}.{extension}")
async def audio(request: Request, sandbox: SandboxDep, clip_id: str, extension: str) -> Response:
    """A clip's file."""
    task, clip = _find(clip_id, sandbox)
    if "audio-source-only" in task.faults:
        raise HTTPException(404)
    return await _serve(request, sandbox, task, clip)


@router.get("/audio/source/{clip_id}.{extension}")
async def source_audio(request: Request, sandbox: SandboxDep, clip_id: str, extension: str) -> Response:
    """The same file under its deprecated link."""
    task, clip = _find(clip_id, sandbox)
    return await _serve(request, sandbox, task, clip)


@router.get("/stream/{clip_id}")
async def stream(sandbox: SandboxDep, clip_id: str) -> Response:
    """An empty body, like the upstream's stream links after a task is complete."""
    _find(clip_id, sandbox)
    return Response(media_type="audio/mpeg")


@router.get("/image/{clip_id}.png")
async def image(sandbox: SandboxDep, clip_id: str) -> Response:
    """A clip's cover."""
    _find(clip_id, sandbox)
    return Response(cover(clip_id), media_type="image/png")


def _find(clip_id: str, sandbox: Sandbox) -> tuple[Task, Clip]:
    if clip_id not in sandbox.clips:
        raise HTTPException(404)
    return sandbox.clips[clip_id]


async def _serve(request: Request, sandbox: Sandbox, task: Task, clip: Clip) -> Response:
    faults = task.faults
    request.scope["journal_entry"].task_id = task.id
    request.scope["journal_entry"].faults = list(faults)
    if not has_audio(stage_at(now() - task.created_monotonic, task.delay), clip.sound.take):
        raise HTTPException(404)
    for name, response in selected_responses(faults, "Audio"):
        if task.trigger(name, clip.id):
            return await make_response(request, sandbox, response)
    if "audio-expired-then-fresh" in faults and "fresh" not in request.query_params:
        clip.link_expired = True
        raise HTTPException(403)
    if "audio-redirect" in faults and "moved" not in request.query_params:
        return RedirectResponse(request.url.include_query_params(moved=1), 302)
    return await _send_file(request, sandbox, task, clip)


async def _send_file(request: Request, sandbox: Sandbox, task: Task, clip: Clip) -> Response:
    content = await asyncio.to_thread(synthesise, clip.sound)
    media_type = _MEDIA_TYPES.get(request.url.path.rpartition(".")[2], "application/octet-stream")
    if task.trigger("audio-truncated", clip.id):
        return _truncated_response(request, content, media_type)
    if task.trigger("audio-cut", clip.id):
        content = content[: len(content) // 2]
    if "audio-too-large" in task.faults:
        content = content.ljust(int(1e6 * (task.faults["audio-too-large"] or 0)), b"\0")
    response = Response(content, media_type=media_type)
    return slow_response(sandbox, response, task.faults["audio-slow"] or 0) if "audio-slow" in task.faults else response


def _truncated_response(request: Request, content: bytes, media_type: str) -> Response:
    async def half() -> AsyncIterator[bytes]:
        yield content[: len(content) // 2]
        await abort_connection(request, hard=False)

    return StreamingResponse(half(), headers={"Content-Length": str(len(content))}, media_type=media_type)
