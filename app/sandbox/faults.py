"""The faults that the sandbox can simulate, as one table, and how a prompt or an option selects them."""

import random
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

Group = Literal["Submit", "Callback", "Poll", "Audio", "Account"]
Unit = Literal["times", "seconds", "code", "MB"]
ResponseKind = Literal["envelope", "status", "html", "empty", "reset", "hang"]

GROUPS: Mapping[Group, str] = {
    "Submit": "the response to a submit",
    "Callback": "the callbacks of a task, and how it fails",
    "Poll": "the responses to record-info and to the lyrics call",
    "Audio": "the responses to the links of a clip",
    "Account": "all calls of all callers, from this submit on",
}

CODES: Mapping[int, str] = {
    400: "Invalid parameters",
    401: "Unauthorized access",
    402: "Insufficient credits",
    404: "Invalid request method or path",
    405: "Rate limit exceeded",
    409: "Conflict",
    413: "Theme or prompt too long",
    422: "Validation error",
    429: "Insufficient credits",
    430: "Your call frequency is too high. Please try again later.",
    433: "Too many requests, please try again later",
    455: "System maintenance",
    500: "Server error",
    502: "Bad gateway",
    503: "Service unavailable",
    504: "Gateway timeout",
    505: "Wrong version",
}
"""The upstream's envelope codes and their messages."""


@dataclass(frozen=True)
class FaultResponse:
    """A response that replaces the normal one."""

    kind: ResponseKind
    code: int = 200
    """The envelope's code for `envelope`, the HTTP status for the others."""
    message: str | None = None


@dataclass(frozen=True)
class Fault:
    """One row of the table."""

    group: Group
    description: str
    """A sentence of at most 100 characters whose subject is the sandbox."""
    unit: Unit | None = None
    """What `=VALUE` counts, or None if the fault takes no value."""
    default: float | None = None
    """The value if none is given; None means that the fault never ends."""
    response: FaultResponse | None = None
    """The response that replaces the normal one, if the fault consists of that."""
    creates: bool = False
    """For submit faults: whether the task is created and charged in spite of the response."""


def _code_faults() -> dict[str, Fault]:
    return {
        f"code-{code}": Fault(
            "Submit", f'Refuses with code {code}, "{message}", in HTTP 200.', "times", response=_envelope(code)
        )
        for code, message in CODES.items()
    }


def _status_faults() -> dict[str, Fault]:
    return {
        f"http-{status}": Fault(
            "Submit", f"Refuses with HTTP {status} and no envelope.", "times", response=_status(status)
        )
        for status in (400, 401, 403, 404, 429, 500, 502, 503, 504)
    }


def _envelope(code: int, message: str | None = None) -> FaultResponse:
    return FaultResponse("envelope", code, message)


def _status(status: int) -> FaultResponse:
    return FaultResponse("status", status)


_EMPTY, _RESET, _HANG = FaultResponse("empty"), FaultResponse("reset"), FaultResponse("hang")
_HTML_PAGE, _BLOCK_PAGE = FaultResponse("html", 200), FaultResponse("html", 403)

_LOST_RESPONSES: Mapping[str, tuple[str, FaultResponse]] = {
    "accept-then-500": ("responds with HTTP 500", _status(500)),
    "accept-then-502": ("responds with HTTP 502", _status(502)),
    "accept-then-504": ("responds with HTTP 504", _status(504)),
    "accept-then-code-500": ("responds with code 500 in HTTP 200", _envelope(500)),
    "accept-then-reset": ("resets the connection without a response", _RESET),
    "accept-then-hang": ("never responds", _HANG),
    "accept-then-html": ("responds with HTTP 200 and an HTML page", _HTML_PAGE),
    "empty-body": ("responds with HTTP 200 and an empty body", _EMPTY),
}

_SUBMIT = {
    **_code_faults(),
    **_status_faults(),
    "html": Fault("Submit", "Refuses with HTTP 403 and an HTML block page.", "times", response=_BLOCK_PAGE),
    "reset": Fault("Submit", "Creates no task and resets the connection.", "times", response=_RESET),
    "hang": Fault("Submit", "Creates no task and never responds.", "times", response=_HANG),
    "retry-after": Fault("Submit", "Responds with HTTP 429 and Retry-After until that time is over.", "seconds", 5),
    **{
        name: Fault("Submit", f"Creates the task, then {action}.", "times", response=response, creates=True)
        for name, (action, response) in _LOST_RESPONSES.items()
    },
    "slow": Fault("Submit", "Creates the task at once and responds that much later.", "seconds", 5, creates=True),
    "drip": Fault("Submit", "Creates the task and sends the response in small pieces over that time.", "seconds", 5),
    "huge-answer": Fault("Submit", "Creates the task and pads the response to that size.", "MB", 10),
    "string-code": Fault("Submit", 'Creates the task and responds with the code as a string, "200".'),
    "snake-case-answer": Fault("Submit", "Creates the task and responds with task_id instead of taskId."),
    "no-task-id": Fault("Submit", "Creates the task and responds with code 200 and null for data."),
    "odd-types": Fault("Submit", "Creates the task and responds with code 200 and a list for data."),
    "callback-before-answer": Fault("Submit", "Responds only after the first callback was sent."),
}

_CALLBACK = {
    "drop-callbacks": Fault("Callback", "Sends no callbacks."),
    "only-complete": Fault("Callback", "Skips the callbacks text and first."),
    "repeat-callbacks": Fault("Callback", "Sends each callback that many times.", "times", 2),
    "reorder-callbacks": Fault("Callback", "Sends complete, first and text, in this order."),
    "delay-callbacks": Fault("Callback", "Sends each callback that much later.", "seconds", 5),
    "second-callback": Fault("Callback", "Sends one of the type second between first and complete."),
    "unknown-type": Fault("Callback", "Gives every callback an unknown type, progress."),
    "upper-case-type": Fault("Callback", "Writes the type in upper case."),
    "poll-shaped": Fault("Callback", "Sends the body of record-info."),
    "camel-case": Fault("Callback", "Writes the body's names in camelCase: taskId, audioUrl and so on."),
    "top-level-id": Fault("Callback", "Puts the task's id at the top level of the body."),
    "missing-id": Fault("Callback", "Omits the task's id."),
    "wrong-id": Fault("Callback", "Sends the id of a task that does not exist."),
    "callback-string-code": Fault("Callback", 'Writes the code as a string, "200".'),
    "digit-times": Fault("Callback", "Writes createTime as a string of epoch milliseconds."),
    "null-data": Fault("Callback", "Sends null for the clips."),
    "empty-data": Fault("Callback", "Sends an empty list for the clips."),
    "malformed-callback": Fault("Callback", "Cuts the JSON off in the middle."),
    "failed": Fault("Callback", "Fails the task with that code, in a callback of the type error.", "code", 500),
    "failed-as-complete": Fault(
        "Callback", "Fails the task with that code, in a callback of the type complete.", "code", 500
    ),
    "create-failed": Fault("Callback", "Fails the task with code 500 and the status CREATE_TASK_FAILED."),
    "sensitive": Fault("Callback", "Fails the task with code 400 and the status SENSITIVE_WORD_ERROR."),
    "refunded": Fault("Callback", "Fails the task with code 531 and refunds its credits."),
}

_POLL = {
    "poll-500": Fault("Poll", "Responds with HTTP 500.", "times", response=_status(500)),
    "poll-code-500": Fault("Poll", "Responds with code 500 in HTTP 200.", "times", response=_envelope(500)),
    "poll-throttle": Fault("Poll", "Responds with code 405 in HTTP 200.", "times", response=_envelope(405)),
    "poll-record-null": Fault(
        "Poll", 'Responds with code 422, "recordInfo is null".', "times", response=_envelope(422, "recordInfo is null")
    ),
    "poll-null": Fault("Poll", "Responds with code 200 and null for data.", "times", response=_envelope(200)),
    "poll-html": Fault("Poll", "Responds with HTTP 403 and an HTML block page.", "times", response=_BLOCK_PAGE),
    "poll-empty": Fault("Poll", "Responds with HTTP 200 and an empty body.", "times", response=_EMPTY),
    "poll-reset": Fault("Poll", "Resets the connection.", "times", response=_RESET),
    "poll-hang": Fault("Poll", "Never responds.", "times", response=_HANG),
    "poll-slow": Fault("Poll", "Responds that much later.", "seconds", 5),
    "poll-stale": Fault("Poll", "Reports PENDING, whatever the task's status is.", "times"),
    "poll-lies": Fault("Poll", "Reports SUCCESS with null for every audioUrl.", "times"),
    "poll-callback-exception": Fault("Poll", "Reports a complete task as CALLBACK_EXCEPTION, with its audio."),
    "poll-callback-exception-bare": Fault(
        "Poll", "Reports a complete task as CALLBACK_EXCEPTION with null for every audioUrl.", "times"
    ),
    "poll-odd-status": Fault("Poll", "Reports GENERATING and FAILED instead of the documented statuses."),
    "poll-snake-case": Fault("Poll", "Writes the data's names in snake_case: task_id, audio_url and so on."),
    "poll-response-text": Fault("Poll", "Sends the field response as a string of JSON."),
    "lyrics-null": Fault("Poll", "Responds to the lyrics call with null for alignedWords."),
    "lyrics-500": Fault("Poll", "Responds to the lyrics call with code 500."),
}

_AUDIO = {
    **{
        f"audio-{status}": Fault("Audio", f"Responds with HTTP {status}.", "times", response=_status(status))
        for status in (403, 404, 410, 441, 500)
    },
    "audio-empty": Fault("Audio", "Responds with HTTP 200 and an empty body.", "times", response=_EMPTY),
    "audio-html": Fault("Audio", "Responds with HTTP 200 and an HTML page.", "times", response=_HTML_PAGE),
    "audio-hang": Fault("Audio", "Never responds.", "times", response=_HANG),
    "audio-reset": Fault("Audio", "Resets the connection.", "times", response=_RESET),
    "audio-truncated": Fault("Audio", "Closes the connection after half of the bytes in Content-Length.", "times"),
    "audio-cut": Fault("Audio", "Sends half of the file, with a Content-Length that agrees.", "times"),
    "audio-slow": Fault("Audio", "Sends the file in small pieces over that time.", "seconds", 5),
    "audio-too-large": Fault("Audio", "Pads the file to that size.", "MB", 60),
    "audio-source-only": Fault("Audio", "Responds with HTTP 404 to audio_url; source_audio_url works."),
    "audio-mislabelled": Fault("Audio", "Serves a WAV file as .mp3 and audio/mpeg."),
    "audio-redirect": Fault("Audio", "Redirects with HTTP 302 to another URL of the same host."),
    "audio-expired-then-fresh": Fault("Audio", "Responds with HTTP 403 until record-info gives fresh links."),
}

_ACCOUNT = {
    "no-credits": Fault("Account", "Has no credits left for that time.", "seconds"),
    "credits-falling": Fault("Account", "Charges all remaining credits for this task."),
    "key-revoked": Fault("Account", "Refuses the key for that time.", "seconds"),
    "maintenance": Fault("Account", "Responds with code 455 to every call for that time.", "seconds"),
}

FAULTS: Mapping[str, Fault] = {**_SUBMIT, **_CALLBACK, **_POLL, **_AUDIO, **_ACCOUNT}

_HOW_TO_SELECT = """\
A tag in a prompt selects faults for one task: [fault: drop-callbacks] or
[fault: code-405=2, slow=3]. --fault selects them for all tasks without a tag,
with a probability if given: --fault drop-callbacks:0.2,code-500=1:0.1.

A value is optional; its default is in parentheses. Without one the fault never
ends. Times are counted per task, for audio per clip."""

TaskFaults = Mapping[str, float | None]
"""The faults of one task by name, with their values; None means that the fault never ends."""

_TAG = re.compile(r"\[fault:([^\]]*)\]", re.IGNORECASE)
_SPEC = re.compile(r"(?P<name>[a-z0-9-]+)(=(?P<value>\d+(\.\d+)?))?(:(?P<probability>[01]?\.?\d+))?")


class InvalidFault(ValueError):
    """The fault does not exist, or its specification cannot be parsed."""


@dataclass(frozen=True)
class FaultSpec:
    """One selected fault: `name`, `name=value`, `name:probability` or `name=value:probability`."""

    name: str
    value: float | None
    probability: float


def parse_faults(text: str) -> tuple[FaultSpec, ...]:
    """Parse a comma-separated list of faults. Raises InvalidFault."""
    return tuple(_parse_fault(part.strip().lower()) for part in text.split(",") if part.strip())


def parse_prompt_faults(prompt: str) -> tuple[FaultSpec, ...] | None:
    """Parse the faults in a prompt's tags; None if it has no tag. Raises InvalidFault."""
    tags = _TAG.findall(prompt)
    return parse_faults(",".join(tags)) if tags else None


def strip_tags(prompt: str) -> str:
    """Return the prompt without its fault tags."""
    return " ".join(_TAG.sub(" ", prompt).split())


def select_faults(specs: tuple[FaultSpec, ...], rng: random.Random) -> TaskFaults:
    """Draw which of these faults apply to one submit."""
    return {spec.name: spec.value for spec in specs if spec.probability >= 1 or rng.random() < spec.probability}


def list_faults(width: int | None = None) -> str:
    """The table as text in columns, wrapped at `width` if given, after a text on how to select faults."""
    labels = {name: _label(name, fault) for name, fault in FAULTS.items()}
    column = max(map(len, labels.values())) + 4
    wrap = partial(textwrap.wrap, subsequent_indent=" " * column, break_on_hyphens=False)
    lines = [_HOW_TO_SELECT]
    for group, subject in GROUPS.items():
        lines += ["", f"{group}: {subject}"]
        for name, fault in FAULTS.items():
            if fault.group == group:
                row = f"  {labels[name]}".ljust(column) + fault.description
                lines += [row] if width is None else wrap(row, max(width, column + 20))
    return "\n".join(lines)


def _label(name: str, fault: Fault) -> str:
    value = "" if fault.unit is None else f"={fault.unit}"
    return name + value + ("" if fault.default is None else f" ({fault.default:g})")


def _parse_fault(text: str) -> FaultSpec:
    match = _SPEC.fullmatch(text)
    fault = FAULTS.get(match["name"]) if match else None
    if match is None or fault is None:
        raise InvalidFault(f"unknown fault {text!r}; known faults: {', '.join(FAULTS)}")
    if match["value"] is not None and fault.unit is None:
        raise InvalidFault(f"fault {match['name']!r} takes no value")
    probability = float(match["probability"] or 1)
    if probability > 1:
        raise InvalidFault(f"the probability of fault {match['name']!r} is above 1")
    return FaultSpec(match["name"], float(match["value"]) if match["value"] else fault.default, probability)
