"""The upstream's own calls: submit, record-info, credits, lyrics."""

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
from app.sandbox.callbacks import Courier
from app.sandbox.fault_responses import answer_badly, asked, enveloped, in_drops
from app.sandbox.faults import Chosen, FaultRefused, draw, parse_terms, terms_in_prompt, without_tags
from app.sandbox.journal import Arrival, caller_task_id
from app.sandbox.state import Clip, Order, Sandbox, Task, is_over, new_id, now
from app.sandbox.timeline import STATUSES, Stage, failure_of, stage_after
from app.sandbox.validation import Refused, read_fields, read_order

_CLIPS = 2
_REFUNDED = 531

router = APIRouter(prefix="/api/v1/generate")


async def get_sandbox(request: Request) -> Sandbox:
    """The state behind this app."""
    sandbox: Sandbox = request.app.state.sandbox
    return sandbox


SandboxDep = Annotated[Sandbox, Depends(get_sandbox)]


@router.post("/sounds")
async def submit(request: Request, sandbox: SandboxDep) -> Response:
    """Create a task, unless the account, the fields or a fault are against it."""
    arrival: Arrival = request.scope["arrival"]
    fields = read_fields(await request.body())
    arrival.callback_url = str(fields.get("callBackUrl") or "") or None
    arrival.caller_task_id = caller_task_id(arrival.callback_url or "")
    _admit(request, sandbox)
    _take_pace(arrival, sandbox)
    order = read_order(fields)
    faults = _faults_of(order, sandbox)
    arrival.faults = list(faults)
    _strike_account(faults, order, sandbox)
    _admit(request, sandbox)
    if (refusal := await _refusal(request, sandbox, order, faults)) is not None:
        return refusal
    if not sandbox.account.charge(now()):
        raise Refused(429)
    task = _create(request, sandbox, order, faults)
    arrival.task_id, arrival.created = task.id, True
    return await _answer_created(request, sandbox, task)


@router.get("/record-info")
async def record_info(request: Request, sandbox: SandboxDep, taskId: str = "") -> Response:  # noqa: N803
    """Say how far a task is."""
    arrival: Arrival = request.scope["arrival"]
    arrival.task_id = taskId or None
    _admit(request, sandbox)
    _take_pace(arrival, sandbox)
    task = _find_task(taskId, sandbox)
    arrival.callback_url, arrival.caller_task_id = task.order.callback_url, caller_task_id(task.order.callback_url)
    arrival.faults = list(task.faults)
    for name, bad in asked(task.faults, "Poll"):
        if task.strikes(name):
            return await answer_badly(request, sandbox, bad)
    await sandbox.sleep(task.faults.get("poll-slow", 0.0))
    return enveloped(request, 200, _record(task))


@router.get("/credit")
async def credit(request: Request, sandbox: SandboxDep) -> Response:
    """Say how many credits are left."""
    _admit(request, sandbox)
    return enveloped(request, 200, sandbox.account.balance(now()))


@router.post("/get-timestamped-lyrics")
async def timestamped_lyrics(request: Request, sandbox: SandboxDep) -> Response:
    """Say which word of a clip is sung when."""
    arrival: Arrival = request.scope["arrival"]
    fields = read_fields(await request.body())
    _admit(request, sandbox)
    task = _find_task(str(fields.get("taskId") or ""), sandbox)
    arrival.task_id, arrival.faults = task.id, list(task.faults)
    clip = next((clip for clip in task.clips if clip.id == fields.get("audioId")), None)
    if clip is None:
        raise Refused(400, "audioId is invalid")
    if "lyrics-500" in task.faults:
        raise Refused(500)
    data = payloads.lyrics(task, clip)
    return enveloped(request, 200, data | {"alignedWords": None} if "lyrics-null" in task.faults else data)


def _admit(request: Request, sandbox: Sandbox) -> None:
    given = request.headers.get("Authorization", "").removeprefix("Bearer ").encode()
    works = not sandbox.account.is_out(now(), "key")
    if not works or not hmac.compare_digest(given, sandbox.options.api_key.encode()):
        raise Refused(401)
    if sandbox.account.is_out(now(), "maintenance"):
        raise Refused(455)


def _take_pace(arrival: Arrival, sandbox: Sandbox) -> None:
    if not sandbox.account.admits(arrival.monotonic, sandbox.options.rate, sandbox.options.period):
        raise Refused(405)


def _faults_of(order: Order, sandbox: Sandbox) -> Chosen:
    try:
        terms = terms_in_prompt(order.prompt)
    except FaultRefused as error:
        raise Refused(400, str(error)) from None
    return draw(parse_terms(sandbox.options.fault or "") if terms is None else terms, sandbox.rng)


def _strike_account(faults: Chosen, order: Order, sandbox: Sandbox) -> None:
    for name, what in _OUTAGES.items():
        # Once for each task: the same submit comes again when the outage is over.
        if name in faults and not is_over(1, sandbox.struck, name + order.callback_url):
            sandbox.account.stop(what, now(), faults[name])


async def _refusal(request: Request, sandbox: Sandbox, order: Order, faults: Chosen) -> Response | None:
    for name, bad in asked(faults, "Submit"):
        if not is_over(faults[name], sandbox.struck, name + order.callback_url):
            return await answer_badly(request, sandbox, bad)
    if "retry-after" in faults:
        until = sandbox.first_seen.setdefault(order.callback_url, now()) + (faults["retry-after"] or 0)
        if (wait := until - now()) > 0:
            return Response(status_code=429, headers={"Retry-After": str(math.ceil(wait))})
    return None


def _create(request: Request, sandbox: Sandbox, order: Order, faults: Chosen) -> Task:
    prompt = without_tags(order.prompt)
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
    failure = failure_of(faults)
    if failure is not None and failure.code == _REFUNDED:
        asyncio.get_running_loop().call_later(task.delay, sandbox.account.refund)
    courier: Courier = request.app.state.courier
    courier.follow(task)
    return task


async def _answer_created(request: Request, sandbox: Sandbox, task: Task) -> Response:
    faults = task.faults
    if "callback-before-answer" in faults:
        await task.first_callback_sent.wait()
    for name, bad in asked(faults, "Submit", creates=True):
        if not is_over(faults[name], sandbox.struck, name + task.order.callback_url):
            return await answer_badly(request, sandbox, bad)
    await sandbox.sleep(faults.get("slow", 0.0))
    request.scope["arrival"].code = 200
    response = JSONResponse(_created_body(task))
    return in_drops(sandbox, response, faults["drip"] or 0) if "drip" in faults else response


def _created_body(task: Task) -> dict[str, Any]:
    faults = task.faults
    data = next((odd(task.id) for name, odd in _ODD_DATA.items() if name in faults), {"taskId": task.id})
    body = payloads.envelope(200, data)
    if "string-code" in faults:
        body["code"] = "200"
    if "huge-answer" in faults:
        body["padding"] = " " * int(1e6 * (faults["huge-answer"] or 0))
    return body


_OUTAGES: Mapping[str, Outage] = {"no-credits": "credits", "key-revoked": "key", "maintenance": "maintenance"}

_ODD_DATA: Mapping[str, Callable[[str], Any]] = {
    "snake-case-answer": lambda task_id: {"task_id": task_id},
    "no-task-id": lambda _: None,
    "odd-types": lambda task_id: [task_id],
}


def _find_task(task_id: str, sandbox: Sandbox) -> Task:
    if not task_id:
        raise Refused(400, "taskId cannot be empty")
    if task_id not in sandbox.tasks:
        raise Refused(422, "recordInfo is null")
    return sandbox.tasks[task_id]


def status_of(task: Task) -> str:
    """What is true of the task, in record-info's words."""
    stage, failure = stage_after(now() - task.created_monotonic, task.delay), failure_of(task.faults)
    if stage is not Stage.complete:
        return STATUSES[stage]
    if failure is not None:
        return failure.status
    return "CALLBACK_EXCEPTION" if task.callbacks_given_up else STATUSES[stage]


def _record(task: Task) -> dict[str, Any]:
    status, bare = status_of(task), False
    if task.strikes("poll-stale"):
        status = STATUSES[Stage.pending]
    if status == "SUCCESS":
        status, bare = _told_success(task)
    failure = failure_of(task.faults) if status not in STATUSES.values() else None
    if "poll-odd-status" in task.faults:
        status = "FAILED" if failure else _ODD_STATUSES.get(status, status)
    data = payloads.record_info(task, status, failure, bare=bare)
    if "poll-response-text" in task.faults:
        data["response"] = json.dumps(data["response"])
    return payloads.in_snake_case(data) if "poll-snake-case" in task.faults else data


def _told_success(task: Task) -> tuple[str, bool]:
    if task.strikes("poll-lies"):
        return "SUCCESS", True
    if task.strikes("poll-callback-exception-bare"):
        return "CALLBACK_EXCEPTION", True
    return ("CALLBACK_EXCEPTION" if "poll-callback-exception" in task.faults else "SUCCESS"), False


_ODD_STATUSES = {STATUSES[stage]: "GENERATING" for stage in (Stage.pending, Stage.text, Stage.first)}
