"""The upstream's API: submit, record-info, credits and timestamped lyrics."""

import asyncio
import hmac
import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from app.sandbox import payloads
from app.sandbox.account import Outage
from app.sandbox.audio import Sound
from app.sandbox.callbacks import CallbackSender
from app.sandbox.fault_responses import envelope_response, make_response, selected_responses, slow_response
from app.sandbox.faults import InvalidFault, TaskFaults, parse_faults, parse_prompt_faults, select_faults, strip_tags
from app.sandbox.journal import RequestEntry, caller_task_id
from app.sandbox.state import Clip, Order, Sandbox, Task, count_trigger, new_id, now
from app.sandbox.timeline import STATUSES, Stage, failure_for, stage_at
from app.sandbox.validation import ApiError, read_fields, read_order

_CLIPS = 2
_REFUNDED = 531

router = APIRouter(prefix="/api/v1/generate")


async def get_sandbox(request: Request) -> Sandbox:
    """Return the state of this app."""
    sandbox: Sandbox = request.app.state.sandbox
    return sandbox


SandboxDep = Annotated[Sandbox, Depends(get_sandbox)]


@router.post("/sounds")
async def submit(request: Request, sandbox: SandboxDep) -> Response:
    """Create a task, unless the account, the fields or a fault forbid it."""
    entry: RequestEntry = request.scope["journal_entry"]
    fields = read_fields(await request.body())
    entry.callback_url = str(fields.get("callBackUrl") or "") or None
    entry.caller_task_id = caller_task_id(entry.callback_url or "")
    _check_access(request, sandbox)
    _check_rate(entry, sandbox)
    order = read_order(fields)
    faults = _select_faults(order, sandbox)
    entry.faults = list(faults)
    _start_outages(faults, order, sandbox)
    _check_access(request, sandbox)
    if (response := await _refusal(request, sandbox, order, faults)) is not None:
        return response
    if not sandbox.account.charge(now()):
        raise ApiError(429)
    task = _create_task(request, sandbox, order, faults)
    entry.task_id, entry.created = task.id, True
    return await _created_response(request, sandbox, task)


@router.get("/record-info")
async def record_info(request: Request, sandbox: SandboxDep, taskId: str = "") -> Response:  # noqa: N803
    """Return the status of a task, and its clips."""
    entry: RequestEntry = request.scope["journal_entry"]
    entry.task_id = taskId or None
    _check_access(request, sandbox)
    _check_rate(entry, sandbox)
    task = _find_task(taskId, sandbox)
    entry.callback_url, entry.caller_task_id = task.order.callback_url, caller_task_id(task.order.callback_url)
    entry.faults = list(task.faults)
    for name, response in selected_responses(task.faults, "Poll"):
        if task.trigger(name):
            return await make_response(request, sandbox, response)
    await sandbox.sleep(task.faults.get("poll-slow", 0.0))
    return envelope_response(request, 200, _record_data(task))


@router.get("/credit")
async def credit(request: Request, sandbox: SandboxDep) -> Response:
    """Return the remaining credits."""
    _check_access(request, sandbox)
    return envelope_response(request, 200, sandbox.account.balance(now()))


@router.post("/get-timestamped-lyrics")
async def timestamped_lyrics(request: Request, sandbox: SandboxDep) -> Response:
    """Return the words of a clip with their start and end in seconds."""
    entry: RequestEntry = request.scope["journal_entry"]
    fields = read_fields(await request.body())
    _check_access(request, sandbox)
    task = _find_task(str(fields.get("taskId") or ""), sandbox)
    entry.task_id, entry.faults = task.id, list(task.faults)
    clip = next((clip for clip in task.clips if clip.id == fields.get("audioId")), None)
    if clip is None:
        raise ApiError(400, "audioId is invalid")
    if "lyrics-500" in task.faults:
        raise ApiError(500)
    data = payloads.lyrics(task, clip)
    return envelope_response(request, 200, data | {"alignedWords": None} if "lyrics-null" in task.faults else data)


def status_of(task: Task) -> str:
    """The task's true status, spelled as in record-info, whatever a fault makes record-info show."""
    stage, failure = stage_at(now() - task.created_monotonic, task.delay), failure_for(task.faults)
    if stage is not Stage.complete:
        return STATUSES[stage]
    if failure is not None:
        return failure.status
    return "CALLBACK_EXCEPTION" if task.callbacks_given_up else STATUSES[stage]


def _check_access(request: Request, sandbox: Sandbox) -> None:
    api_key = request.headers.get("Authorization", "").removeprefix("Bearer ").encode()
    is_revoked = sandbox.account.has_outage(now(), "key")
    if is_revoked or not hmac.compare_digest(api_key, sandbox.options.api_key.encode()):
        raise ApiError(401)
    if sandbox.account.has_outage(now(), "maintenance"):
        raise ApiError(455)


def _check_rate(entry: RequestEntry, sandbox: Sandbox) -> None:
    if not sandbox.account.try_acquire(entry.monotonic, sandbox.options.rate, sandbox.options.period):
        raise ApiError(405)


def _select_faults(order: Order, sandbox: Sandbox) -> TaskFaults:
    try:
        specs = parse_prompt_faults(order.prompt)
    except InvalidFault as error:
        raise ApiError(400, str(error)) from None
    return select_faults(parse_faults(sandbox.options.fault or "") if specs is None else specs, sandbox.rng)


def _start_outages(faults: TaskFaults, order: Order, sandbox: Sandbox) -> None:
    for name, outage in _OUTAGES.items():
        # Once per task, because the caller repeats the same submit after the outage.
        if name in faults and count_trigger(sandbox.trigger_counts, name + order.callback_url, 1):
            sandbox.account.start_outage(outage, now(), faults[name])


async def _refusal(request: Request, sandbox: Sandbox, order: Order, faults: TaskFaults) -> Response | None:
    for name, response in selected_responses(faults, "Submit"):
        if count_trigger(sandbox.trigger_counts, name + order.callback_url, faults[name]):
            return await make_response(request, sandbox, response)
    if "retry-after" in faults:
        until = sandbox.first_seen.setdefault(order.callback_url, now()) + (faults["retry-after"] or 0)
        if (wait := until - now()) > 0:
            return Response(status_code=429, headers={"Retry-After": str(math.ceil(wait))})
    return None


def _create_task(request: Request, sandbox: Sandbox, order: Order, faults: TaskFaults) -> Task:
    prompt = strip_tags(order.prompt)
    sounds = [Sound(prompt, order.tempo, order.key, order.loop, take) for take in range(_CLIPS)]
    task = Task(
        id=new_id(),
        order=order,
        faults=faults,
        delay=sandbox.options.delay,
        base_url=str(request.base_url),
        created_at=datetime.now(UTC),
        created_monotonic=now(),
        clips=tuple(Clip(new_id(), sound) for sound in sounds),
    )
    sandbox.add(task)
    if "credits-falling" in faults:
        sandbox.account.set_credits(0)
    failure = failure_for(faults)
    if failure is not None and failure.code == _REFUNDED:
        asyncio.get_running_loop().call_later(task.delay, sandbox.account.refund)
    callback_sender: CallbackSender = request.app.state.callback_sender
    callback_sender.start(task)
    return task


async def _created_response(request: Request, sandbox: Sandbox, task: Task) -> Response:
    faults = task.faults
    if "callback-before-answer" in faults:
        await task.first_callback_sent.wait()
    for name, response in selected_responses(faults, "Submit", creates=True):
        if count_trigger(sandbox.trigger_counts, name + task.order.callback_url, faults[name]):
            return await make_response(request, sandbox, response)
    await sandbox.sleep(faults.get("slow", 0.0))
    request.scope["journal_entry"].code = 200
    created = JSONResponse(_created_body(task))
    return slow_response(sandbox, created, faults["drip"] or 0) if "drip" in faults else created


def _created_body(task: Task) -> dict[str, Any]:
    faults = task.faults
    data = next((make(task.id) for name, make in _MALFORMED_DATA.items() if name in faults), {"taskId": task.id})
    body = payloads.envelope(200, data)
    if "string-code" in faults:
        body["code"] = "200"
    if "huge-answer" in faults:
        body["padding"] = " " * int(1e6 * (faults["huge-answer"] or 0))
    return body


_OUTAGES: Mapping[str, Outage] = {"no-credits": "credits", "key-revoked": "key", "maintenance": "maintenance"}

_MALFORMED_DATA: Mapping[str, Callable[[str], Any]] = {
    "snake-case-answer": lambda task_id: {"task_id": task_id},
    "no-task-id": lambda _: None,
    "odd-types": lambda task_id: [task_id],
}


def _find_task(task_id: str, sandbox: Sandbox) -> Task:
    if not task_id:
        raise ApiError(400, "taskId cannot be empty")
    if task_id not in sandbox.tasks:
        raise ApiError(422, "recordInfo is null")
    return sandbox.tasks[task_id]


def _record_data(task: Task) -> dict[str, Any]:
    status, omit_audio = status_of(task), False
    if task.trigger("poll-stale"):
        status = STATUSES[Stage.pending]
    if status == "SUCCESS":
        status, omit_audio = _shown_success(task)
    failure = failure_for(task.faults) if status not in STATUSES.values() else None
    if "poll-odd-status" in task.faults:
        status = "FAILED" if failure else _UNKNOWN_STATUSES.get(status, status)
    data = payloads.record_info(task, status, failure, omit_audio=omit_audio)
    if "poll-response-text" in task.faults:
        data["response"] = json.dumps(data["response"])
    return payloads.in_snake_case(data) if "poll-snake-case" in task.faults else data


def _shown_success(task: Task) -> tuple[str, bool]:
    if task.trigger("poll-lies"):
        return "SUCCESS", True
    if task.trigger("poll-callback-exception-bare"):
        return "CALLBACK_EXCEPTION", True
    return ("CALLBACK_EXCEPTION" if "poll-callback-exception" in task.faults else "SUCCESS"), False


_UNKNOWN_STATUSES = {STATUSES[stage]: "GENERATING" for stage in (Stage.pending, Stage.text, Stage.first)}
