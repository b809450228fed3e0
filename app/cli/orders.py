"""`soundpost tasks submit` and `tasks retry`: orders from the command line, through the database as a caller's own."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from app.cli.context import (
    FAILED,
    INTERRUPTED,
    NO_SOUND,
    NO_SUCH_TASK,
    REFUSED,
    UNDER_WAY,
    acting_for,
    fail,
    with_services,
)
from app.cli.keys import key_of
from app.cli.output import note, print_json
from app.cli.tasks import TaskId
from app.enums import Charge
from app.errors import AppError, InvalidRequest, NotFound

if TYPE_CHECKING:
    from app.auth.callers import Caller
    from app.cli.waiting import Target
    from app.models import Task
    from app.services import Services
    from app.tasks.order_schemas import TaskCreate
    from app.tasks.schemas import TaskRead

orders = typer.Typer()

SUBMIT_CODES = (
    "Exit codes: 0 done, with --wait only if the task succeeded and with --output only if its files are written; "
    "1 a problem, which standard error explains; 2 the order cannot be understood or taken; 3 the task failed or was "
    "canceled; 4 it is still under way; 130 interrupted. A task that was ordered goes on in any case."
)
# Seconds.
DEFAULT_WAIT = 600.0
OPTIONS = {
    "prompt": "PROMPT",
    "model": "--model",
    "sound_tempo": "--tempo",
    "sound_key": "--key-signature",
    "webhook_url": "--webhook-url",
    "metadata": "--metadata",
    "header": "--idempotency-key",
}
WaitOption = Annotated[
    float | None,
    typer.Option(min=0, metavar="[SECONDS]", help=f"Wait for the end of the task; {DEFAULT_WAIT:.0f} s by default."),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR|FILE",
        help="Wait, write our copy of each clip there and print the paths. A file must not exist; what has no suffix is"
        " a folder.",
    ),
]


class SubmitCommand(TyperCommand):
    """A command whose `--wait` may stand without its seconds."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words, with DEFAULT_WAIT where `--wait` has no number behind it."""
        filled = list[str]()
        for word, following in zip_longest(args, args[1:], fillvalue=""):
            filled.append(word)
            if word == "--wait" and "--" not in filled and not following.replace(".", "", 1).isdecimal():
                filled.append(str(DEFAULT_WAIT))
        return super().parse_args(ctx, filled)


@orders.command("submit", cls=SubmitCommand, epilog=SUBMIT_CODES)
def submit_task(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The sound in words; - reads standard input.")],
    caller: Annotated[
        str | None, typer.Option("--as", metavar="NAME|ID", help="Whose task it is; not needed if there is one key.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model, else the first of SOUNDPOST_MODELS.")] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Let the sound loop without a seam.")] = False,
    tempo: Annotated[int | None, typer.Option(metavar="BPM", help="The tempo, 1 to 300.")] = None,
    key_signature: Annotated[str, typer.Option(help="The musical key, such as Am.")] = "Any",
    lyrics: Annotated[bool, typer.Option("--lyrics", help="Fetch the sung words with their times.")] = False,
    metadata: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A label; may be repeated.")] = None,
    webhook_url: Annotated[str | None, typer.Option(help="The URL that gets the final event.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="With the same key and order, one task is made in 24 hours.")
    ] = None,
    wait: WaitOption = None,
    output: OutputOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the task as JSON, with the paths of its files.")
    ] = False,
) -> None:
    """Order a sound as one of your callers, print the task's id, and if wanted wait for its files."""
    labels = _read_labels(metadata or [])
    from app.cli.waiting import Target

    text = sys.stdin.read().rstrip("\r\n") if prompt == "-" else prompt
    wishes = {"sound_loop": loop, "sound_tempo": tempo, "sound_key": key_signature, "grab_lyrics": lyrics}
    fields = {"prompt": text, "model": model, **wishes, "webhook_url": webhook_url, "metadata": labels}
    body, key = _read_order(fields), _read_idempotency_key(idempotency_key)
    target = None if output is None else Target.prepare(output)
    if wait is None and target is not None:
        wait = DEFAULT_WAIT

    async def run(services: Services) -> TaskRead:
        placed = await services.orders.place(await _find_caller(services, caller), body, idempotency_key=key)
        return placed.task

    _submit(run, wait, target, as_json=as_json)


def _submit(
    place: Callable[[Services], Awaitable[TaskRead]], wait: float | None, target: Target | None, *, as_json: bool
) -> None:
    """Order, print, wait and write the files, as far as each is wanted; exit with the code that this has."""
    from app.cli.waiting import NotSaved, follow, save_clips

    task_id, files, words = None, list[Path](), ""

    async def run(services: Services) -> TaskRead:
        nonlocal task_id, words
        task = await place(services)
        task_id = task.id
        if target is None and not as_json:
            typer.echo(task_id)
        elif wait is not None:
            note(f"Task {task_id}")
        if wait is not None:
            task, words = await follow(services, task, wait)
        if target is not None and task.status == "succeeded":
            files.extend(await save_clips(services, task, target))
        return task

    try:
        task = with_services(run)
    except NotFound:
        fail("The task was deleted meanwhile." if task_id else NO_SUCH_TASK)
    except AppError as error:
        _refuse(error)
    except NotSaved as error:
        fail(f"{error} The task has succeeded: `soundpost tasks show {task_id}`.")
    except KeyboardInterrupt:
        where = (
            f"`soundpost tasks show {task_id}` shows it" if task_id else "if it is stored, `soundpost tasks list` does"
        )
        fail(f"Nobody waits any more, and the task goes on: {where}.", INTERRUPTED)
    if as_json:
        print_json({**task.model_dump(mode="json"), "files": [str(path) for path in files]})
    elif target is not None:
        for path in files:
            typer.echo(str(path))
    if wait is not None:
        _exit_by(task, words, len(files) if target else None)


def _exit_by(task: TaskRead, words: str, files: int | None) -> None:
    """Exit with the code of a task that was waited for; `files` counts those that were written, if any were wanted."""
    from app.cli.waiting import is_settled
    from app.tasks.transitions import FINAL

    show = f"`soundpost tasks show {task.id}`"
    if task.status in FINAL and task.status != "succeeded":
        why = f": {task.error.code}, {task.error.message}" if task.error else ""
        fail(f"The task is {task.status}{why}. {show} has more.", NO_SOUND)
    if not is_settled(task):
        is_untouched = task.status == "queued" and "held" not in words
        hint = " Is `soundpost serve` or `soundpost worker` running?" if is_untouched else ""
        fail(f"The task goes on ({words}): {show} shows it.{hint}", UNDER_WAY)
    if files is not None and files < len(task.clips):
        fail(f"{len(task.clips) - files} of {len(task.clips)} clips could not be copied from the upstream: {show}.")


@orders.command("retry", epilog=SUBMIT_CODES)
def retry_task(
    task_id: TaskId,
    yes: Annotated[bool, typer.Option("--yes", help="Order it although the old task may have been charged.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the new task as JSON.")] = False,
) -> None:
    """Order the sound of a task that has ended again, as a new task of the same caller, and print its id."""

    async def run(services: Services) -> TaskRead:
        from app.auth.api_keys import list_keys
        from app.auth.callers import OPERATOR

        old = await services.tasks.get_row(OPERATOR, task_id)
        _check_retry(old, is_confirmed=yes)
        async with services.database.reads() as session:
            owner = key_of(await list_keys(session), old.api_key_id, is_active=True)
        body, key = _order_of(old), f"retry of {old.id}"
        placed = await services.orders.place(
            acting_for(owner.id), body, idempotency_key=key, callback_url=old.callback_url, instead_of=old.id
        )
        if placed.is_replay:
            note(f"It was ordered again already: that task is {placed.task.status}.")
        return placed.task

    _submit(run, None, None, as_json=as_json)


def _check_retry(old: Task, *, is_confirmed: bool) -> None:
    from app.tasks.transitions import FINAL

    if old.status not in FINAL:
        fail(f"The task is {old.status}: it is ordered again only once it has ended.")
    if old.charge in (Charge.possible, Charge.charged) and not is_confirmed:
        was = "was charged" if old.charge is Charge.charged else "may have been charged"
        fail(f"The task is {old.status} and {was}: a new one costs again. Add --yes to order it.", REFUSED)


def _order_of(old: Task) -> TaskCreate:
    """What a task was ordered with."""
    from app.tasks.order_schemas import NOT_STORED, TaskCreate

    same = {name: getattr(old, name) for name in TaskCreate.model_fields if name not in NOT_STORED | {"metadata"}}
    return TaskCreate.model_validate({**same, "metadata": old.labels})


async def _find_caller(services: Services, name_or_id: str | None) -> Caller:
    """The active caller of this name or id; without one the only one that there is."""
    from app.auth.api_keys import list_keys, refusal_of

    async with services.database.reads() as session:
        keys = await list_keys(session)
    if name_or_id is None:
        active = [key for key in keys if refusal_of(key, datetime.now(UTC)) is None]
        if len(active) != 1:
            names = ", ".join(key.name for key in active) or "none yet: `soundpost keys create NAME` makes one"
            fail(f"Give --as NAME, whose task it is. The callers: {names}.", REFUSED)
        return acting_for(active[0].id)
    return acting_for(key_of(keys, name_or_id, is_active=True).id)


def _read_labels(words: Sequence[str]) -> dict[str, str]:
    labels = dict[str, str]()
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or name in labels:
            fail(f"--metadata {word}: give each NAME=VALUE once.", REFUSED)
        labels[name] = value
    return labels


def _read_order(fields: Mapping[str, object]) -> TaskCreate:
    """The order, by the rules of REST; or fail with a line for each field that breaks one."""
    from pydantic import ValidationError

    from app.tasks.order_schemas import TaskCreate
    from app.web.exception_handlers import field_error

    try:
        return TaskCreate.model_validate(fields)
    except ValidationError as error:
        _refuse(InvalidRequest(errors=[field_error({**e, "loc": ("body", *e["loc"])}) for e in error.errors()]))


def _read_idempotency_key(text: str | None) -> str | None:
    from app.tasks.orders.idempotency import read_key

    try:
        return None if text is None else read_key([text])
    except InvalidRequest as error:
        _refuse(error)


def _refuse(error: AppError) -> NoReturn:
    """Fail as REST would, in words."""
    if error.errors:
        lines = (f"{_option(each['pointer'])}: {each['detail']}" for each in error.errors)
        fail("\n".join(lines), REFUSED)
    fail(f"{error.title} {error.detail}", REFUSED if isinstance(error, InvalidRequest) else FAILED)


def _option(pointer: str) -> str:
    """The option that a JSON pointer into an order means."""
    return OPTIONS.get(pointer.removeprefix("#/").partition("/")[0], pointer)
