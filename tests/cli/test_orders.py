"""`soundpost tasks submit` and `tasks retry`: orders from the command line, and what they end with."""

import asyncio
import json
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete as delete_from
from sqlalchemy import select

from app.database.engine import Database
from app.enums import Charge, TaskStatus
from app.models import ApiKey, Clip, StoredObject, Task
from app.tasks.transitions import FINAL
from app.upstream.hold import Hold, hold_submits
from app.upstream.types import HoldReason
from tests.support.clock import MORNING
from tests.support.processes import CommandResult, Processes
from tests.support.rows import add_key, add_task, stored
from tests.support.settings import UNREACHABLE
from tests.support.terminal import run_on_terminal
from tests.support.wait import eventually

Command = Callable[..., Any]
S = TaskStatus


async def test_submit_exits_by_what_became_of_the_task(database_url: str, tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "rain.wav"
    with Processes(tmp_path, storage_url=f"file:{tmp_path}/audio") as processes:
        await processes.serve(database_url, (await processes.sandbox()).url)

        def submit(*words: str, **settings: str | None) -> Any:
            return processes.run("tasks", "submit", *words, database_url=database_url, **settings)

        impatient = processes.start("tasks", "submit", "[fault: hang] rain", "--wait", database_url=database_url)
        in_folder, named, failed, unheard = await asyncio.gather(
            submit("rain", "--wait", "30", "--output", str(out)),
            submit("rain", "--output", str(file), "--json"),
            submit("[fault: code-400] rain", "--wait"),
            submit("[fault: hang] rain", "--wait", "1"),
        )
        lost = await submit("rain", "--output", str(tmp_path / "lost"), storage_url=f"file:{tmp_path}/elsewhere")
        await eventually(lambda: "submitting" in impatient.log, 30)
        interrupted = await impatient.stop(signal.SIGINT)

    paths = [Path(line) for line in in_folder.stdout.splitlines()]
    assert (in_folder.code, sorted(out.iterdir())) == (0, paths)
    assert len(paths) == 2
    assert all(path.is_absolute() and path.read_bytes().startswith(b"RIFF") for path in paths)
    assert _progress(in_folder)[-1] == "succeeded, 2 clips, 2 stored"
    task = json.loads(named.stdout)
    assert (named.code, task["status"], task["files"]) == (0, "succeeded", [str(file), str(tmp_path / "rain-1.wav")])
    assert (failed.code, "The task is failed: invalid_request, " in failed.stderr) == (3, True)
    shows = f"The task goes on (submitting): `soundpost tasks show {unheard.stdout.strip()}` shows it.\n"
    assert (unheard.code, unheard.stderr.endswith(shows)) == (4, True)
    assert (lost.code, "Our copy of clip 0 cannot be read" in lost.stderr) == (1, True)
    assert interrupted == 130
    assert impatient.log.endswith(f"the task goes on: `soundpost tasks show {impatient.output.strip()}` shows it.\n")


def test_progress_moves_in_one_line_on_a_terminal(migrated_sqlite: Path, tmp_path: Path) -> None:
    (tmp_path / "soundpost.db").write_bytes(migrated_sqlite.read_bytes())
    url = f"sqlite+aiosqlite:///{tmp_path}/soundpost.db"
    stored(url, add_key)
    environment = Processes(tmp_path, upstream_url=UNREACHABLE, database_url=url).environment()

    shown = run_on_terminal(["tasks", "submit", "rain", "--wait", "0.3"], tmp_path, environment)

    assert shown.code == 4
    assert "queued, place 1" in shown.raw
    assert "\x1b[2K" in shown.raw
    said = " ".join(shown.lines)
    assert "The task goes on (queued, place 1):" in said
    assert "Is `soundpost serve` or `soundpost worker` running?" in said


@pytest.mark.parametrize(
    ("clip", "code", "said"),
    [
        ({"archived_at": MORNING, "storage_key": "kept", "sha256": sha256(b"RIFF").hexdigest()}, 0, ""),
        ({"archived_at": MORNING, "storage_key": "kept", "sha256": 64 * "0"}, 1, "Our copy of clip 0 is damaged."),
        ({"archived_at": MORNING, "storage_key": "gone", "sha256": 64 * "0"}, 1, "Our copy of clip 0 cannot be read: "),
        ({"given_up_at": MORNING}, 1, "1 of 1 clips could not be copied from the upstream: `soundpost tasks show "),
        ({}, 4, "The task goes on (succeeded, 1 clip, 0 stored): "),
    ],
)
def test_files_are_whole_or_not_there(
    command: Command, database_url: str, tmp_path: Path, clip: dict[str, Any], code: int, said: str
) -> None:
    stored(database_url, add_key)
    (tmp_path / "var" / "audio").mkdir(parents=True)
    (tmp_path / "var" / "audio" / "kept").write_bytes(b"RIFF")
    words = ["tasks", "submit", "rain", "--idempotency-key", "once"]
    task_id = command(*words).stdout.strip()

    async def succeed(database: Database) -> None:
        async with database.writes.begin() as session:
            task = await session.get_one(Task, task_id)
            task.status, task.due_at = S.succeeded, None
            if key := clip.get("storage_key"):
                session.add(StoredObject(key=key, attempts=0))
                await session.flush()
            session.add(Clip(task_id=task_id, index=0, created_at=MORNING, attempts=0, size=4, **clip))

    stored(database_url, succeed)
    ended = command(*words, "--wait", "0.1", "--output", "out/rain.wav")

    assert (ended.exit_code, said in ended.stderr) == (code, True)
    assert ended.stdout == ("" if code else f"{tmp_path}/out/rain.wav\n")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ([] if code else ["rain.wav"])


def test_task_that_is_deleted_ends_the_wait_and_keeps_its_idempotency_key(command: Command, database_url: str) -> None:
    stored(database_url, add_key)
    words = ["tasks", "submit", "rain", "--idempotency-key", "once"]

    async def delete(database: Database) -> None:
        async with database.writes.begin() as session:
            assert (await session.execute(delete_from(Task).returning(Task.id))).all()

    async def is_ordered(database: Database) -> bool:
        async with database.reads() as session:
            return await session.scalar(select(Task.id)) is not None

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(command, *words, "--wait", "30")
        while not stored(database_url, is_ordered):
            assert not waiting.done(), waiting.result().stderr
        stored(database_url, delete)
        ended = waiting.result(30)
    again = command(*words)

    assert (ended.exit_code, ended.stderr.splitlines()[-1]) == (1, "The task was deleted meanwhile.")
    assert (again.exit_code, again.stdout) == (1, "")
    assert again.stderr.startswith("The task of this idempotency key was deleted. No new task was created.")


def test_held_queue_is_told_to_who_waits(command: Command, database_url: str) -> None:
    async def fill(database: Database) -> None:
        await add_key(database)
        async with database.writes.begin() as session:
            await hold_submits(session, Hold(HoldReason.no_credits, MORNING, None), timedelta(seconds=30))

    stored(database_url, fill)
    ended = command("tasks", "submit", "rain", "--wait", "0")

    assert ended.exit_code == 4
    assert "(queued, place 1; the queue is held: the upstream account has no credits; buy some, " in ended.stderr
    assert "running?" not in ended.stderr


def test_order_has_what_its_options_say(command: Command, database_url: str) -> None:
    stored(database_url, add_key)
    options = ["--tempo", "90", "--key-signature", "Am", "--loop", "--lyrics", "--model", "V5_5", "--as", "tests"]
    options += ["--metadata", "scene=attic", "--metadata", "take=a=b", "--webhook-url", "https://example.com/hook"]
    again = [*options, "--idempotency-key", "once", "--json"]

    first = json.loads(command("tasks", "submit", "-", *again, input="rain\non a roof\n").stdout)
    second = json.loads(command("tasks", "submit", "rain\non a roof", *again).stdout)
    other = command("tasks", "submit", "snow", *again)
    plain = command("tasks", "submit", "rain")

    assert first["id"] == second["id"]
    given = {
        "prompt": "rain\non a roof",
        "model": "V5_5",
        "sound_tempo": 90,
        "sound_key": "Am",
        "sound_loop": True,
        "grab_lyrics": True,
        "webhook_url": "https://example.com/hook",
        "metadata": {"scene": "attic", "take": "a=b"},
    }
    assert {name: first[name] for name in given} == given
    assert (other.exit_code, other.stdout) == (1, "")
    assert other.stderr.startswith("This idempotency key was used with another body.")
    assert [task["id"] for task in json.loads(command("tasks", "list", "--json").stdout)] == [
        plain.stdout.strip(),
        first["id"],
    ]


# The rules are those of REST, whatever the database.
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([""], "PROMPT: String should have at least 1 character"),
        ([501 * "x"], "PROMPT: String should have at most 500 characters"),
        (["x\0"], "PROMPT: This text must not contain NUL"),
        (["x\udcff"], "PROMPT: "),
        (
            ["x", "--tempo", "301", "--key-signature", "H"],
            "--tempo: Input should be less than or equal to 300\n--key-s",
        ),
        (["x", "--model", "V1"], "--model: must be one of V5, V5_5"),
        (["x", "--webhook-url", "http://10.0.0.1/"], "--webhook-url: "),
        (["x", "--metadata", "scene"], "--metadata scene: give each NAME=VALUE once."),
        (["x", "--metadata", "a=1", "--metadata", "a=2"], "--metadata a=2: give each NAME=VALUE once."),
        (["x", "--metadata", f"{65 * 'n'}=1"], "--metadata: "),
        (["x", "--idempotency-key", "ü"], "--idempotency-key: must be one key of 1 to 255 visible ASCII characters"),
        (["x", "--as", "nobody"], "No key has the name or id nobody"),
        (["x", "--as", "gone"], "The key of gone is revoked; `soundpost keys rotate "),
        (["x"], "Give --as NAME, whose task it is. The callers: ours, tests."),
        (["x", "--output", "kept.wav"], "exists already: nothing is overwritten."),
        (["x", "--output", "kept.wav/sub/rain.wav"], "cannot be made"),
    ],
)
def test_order_that_cannot_be_taken_says_why_and_is_not_stored(
    command: Command, database_url: str, tmp_path: Path, words: list[str], said: str
) -> None:
    stored(database_url, _three_keys)
    (tmp_path / "kept.wav").write_text("mine")

    chosen = [] if "--as" in words or words == ["x"] else ["--as", "tests"]
    ended = command("tasks", "submit", *words, *chosen)

    assert (ended.exit_code, ended.stdout) == (2, "")
    assert said in ended.stderr
    assert json.loads(command("tasks", "list", "--json").stdout) == []
    assert (tmp_path / "kept.wav").read_text() == "mine"


RETRIES = [
    *((status, Charge.none, [], 0) for status in (S.failed, S.canceled)),
    (S.failed, Charge.refunded, [], 0),
    (S.failed, Charge.charged, [], 2),
    (S.failed, Charge.possible, [], 2),
    (S.failed, Charge.possible, ["--yes"], 0),
    (S.succeeded, Charge.charged, ["--yes"], 0),
    *((status, Charge.charged, ["--yes"], 1) for status in S if status not in FINAL),
]


@pytest.mark.parametrize(("status", "charge", "options", "code"), RETRIES)
def test_task_is_ordered_again_once_it_has_ended_and_costs_are_accepted(
    command: Command, database_url: str, status: TaskStatus, charge: Charge, options: list[str], code: int
) -> None:
    async def fill(database: Database) -> str:
        return (await add_task(database, await add_key(database), status, charge=charge)).id

    old = stored(database_url, fill)
    ended = command("tasks", "retry", old, *options)

    tasks = [task["id"] for task in json.loads(command("tasks", "list", "--json").stdout)]
    assert (ended.exit_code, len(tasks)) == (code, 2 if code == 0 else 1)
    assert ended.stdout == ("" if code else f"{tasks[0]}\n")
    if code == 2:
        assert ended.stderr.endswith("charged: a new one costs again. Add --yes to order it.\n")


def test_retry_copies_the_order_and_makes_one_task_however_often_it_is_run(command: Command, database_url: str) -> None:
    same: dict[str, Any] = {
        "prompt": "rain",
        "model": "V5_5",
        "sound_tempo": 90,
        "sound_key": "Am",
        "sound_loop": True,
        "grab_lyrics": True,
        "webhook_url": "https://example.com/hook",
        "callback_url": "https://example.com/back",
    }

    async def fill(database: Database) -> str:
        key_id = await add_key(database, "theirs")
        labels = {"scene": "attic"}
        return (await add_task(database, key_id, S.failed, charge=Charge.none, labels=labels, **same)).id

    async def read(database: Database) -> list[Task]:
        async with database.reads() as session:
            return list(await session.scalars(select(Task).order_by(Task.id)))

    old_id = stored(database_url, fill)
    first, second = (command("tasks", "retry", old_id) for _ in range(2))
    old, new = stored(database_url, read)

    assert (first.stdout, second.stdout) == (f"{new.id}\n", f"{new.id}\n")
    assert (first.stderr, second.stderr) == ("", "It was ordered again already: that task is queued.\n")
    assert (old.status, new.status, new.charge, new.posts) == (S.failed, S.queued, Charge.none, 0)
    names = [*same, "labels", "api_key_id"]
    assert {name: getattr(new, name) for name in names} == {name: getattr(old, name) for name in names}


def test_retry_refuses_what_nobody_could_order_any_more(command: Command, database_url: str) -> None:
    async def fill(database: Database) -> list[str]:
        ours, gone, late = [await add_key(database, name) for name in ("ours", "gone", "late")]
        async with database.writes.begin() as session:
            (await session.get_one(ApiKey, gone)).revoked_at = MORNING
            (await session.get_one(ApiKey, late)).expires_at = MORNING
        old_model = await add_task(database, ours, S.failed, charge=Charge.none, model="V3")
        return [
            old_model.id,
            *[(await add_task(database, each, S.failed, charge=Charge.none)).id for each in (gone, late)],
        ]

    old_model, of_gone, of_late = stored(database_url, fill)

    endings = {each: command("tasks", "retry", each) for each in (old_model, of_gone, of_late, "nothing")}

    assert [(each.exit_code, each.stdout) for each in endings.values()] == [(2, ""), (2, ""), (2, ""), (1, "")]
    assert endings[old_model].stderr == "--model: must be one of V5, V5_5\n"
    assert "is revoked; `soundpost keys rotate" in endings[of_gone].stderr
    assert "The key of late has expired; `soundpost keys set" in endings[of_late].stderr
    assert endings["nothing"].stderr == "No task has this id; `soundpost tasks list` shows them.\n"


def _progress(ended: CommandResult) -> list[str]:
    return [line.partition(" s  ")[2] for line in ended.stderr.splitlines()]


async def _three_keys(database: Database) -> None:
    await add_key(database, "ours")
    await add_key(database)
    gone = await add_key(database, "gone")
    async with database.writes.begin() as session:
        (await session.get_one(ApiKey, gone)).revoked_at = MORNING
