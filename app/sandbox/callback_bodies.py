"""A callback's bytes, with the odd spellings that a task's faults ask for."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from app.sandbox import payloads
from app.sandbox.state import Task
from app.sandbox.timeline import STATUSES, Failure, Stage, Step

_Body = dict[str, Any]


def callback_body(task: Task, step: Step, failure: Failure | None) -> bytes:
    """What is POSTed for this step."""
    body = payloads.callback(task, step.kind, step.stage, failure)
    if "poll-shaped" in task.faults:
        body = _poll_shaped(task, step, failure)
    for fault, change in _CHANGES.items():
        if fault in task.faults:
            body = change(body, task)
    content = json.dumps(body, ensure_ascii=False).encode()
    return content[: len(content) // 2] if "malformed-callback" in task.faults else content


def _poll_shaped(task: Task, step: Step, failure: Failure | None) -> _Body:
    if failure is not None and step.stage is Stage.complete:
        return payloads.envelope(200, payloads.record_info(task, failure.status, failure))
    return payloads.envelope(200, payloads.record_info(task, STATUSES[step.stage]))


def _with_data(**fields: Any) -> Callable[[_Body, Task], _Body]:
    return lambda body, _: {**body, "data": {**body["data"], **fields}}


def _in_capitals(body: _Body, _: Task) -> _Body:
    return _renamed(body, "callbackType", str.upper)


def _other_id(body: _Body, _: Task) -> _Body:
    return _renamed(_renamed(body, "task_id", lambda own: own[::-1]), "taskId", lambda own: own[::-1])


def _renamed(body: _Body, field: str, change: Callable[[str], str]) -> _Body:
    data = body["data"]
    return {**body, "data": {**data, field: change(data[field])}} if field in data else body


def _without_id(body: _Body, _: Task) -> _Body:
    return {**body, "data": {name: value for name, value in body["data"].items() if name not in ("task_id", "taskId")}}


def _id_on_top(body: _Body, task: Task) -> _Body:
    return {**_without_id(body, task), "task_id": task.id}


def _digit_times(body: _Body, task: Task) -> _Body:
    millis = str(int(task.created_at.timestamp() * 1000))
    items = [{**item, "createTime": millis} for item in body["data"].get("data") or []]
    return {**body, "data": {**body["data"], "data": items}} if items else body


_CHANGES: Mapping[str, Callable[[_Body, Task], _Body]] = {
    "null-data": _with_data(data=None),
    "empty-data": _with_data(data=[]),
    "unknown-type": _with_data(callbackType="progress"),
    "upper-case-type": _in_capitals,
    "digit-times": _digit_times,
    "missing-id": _without_id,
    "top-level-id": _id_on_top,
    "wrong-id": _other_id,
    "camel-case": lambda body, _: payloads.in_camel_case(body),
    "callback-string-code": lambda body, _: {**body, "code": str(body["code"])},
}
"""In the order in which they are made, so that they can be combined."""
