"""One line for each thing that happens, in which no secret has a place."""

import asyncio
import io
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import redirect_stderr
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import structlog
from sqlalchemy.exc import DBAPIError
from structlog.testing import capture_logs

from app.database.engine import Database, insert_new
from app.models import PeriodicJob
from app.observability.logging import MAX_VALUE_LENGTH, FoldRepeats, configure_logging
from tests.support.api import client_of, create_task, until_final, until_status
from tests.support.processes import Process, Processes, free_port
from tests.support.receivers import Reply, receiving
from tests.support.sandbox import control, submits_at
from tests.support.service import Service
from tests.support.settings import settings_of
from tests.support.wait import eventually

TOKEN = "x" * 32


@pytest.fixture(autouse=True)
def _loggers_stay_as_they_are() -> Iterator[None]:
    root, manager = logging.getLogger(), logging.Logger.manager
    handlers, level = root.handlers, root.level
    levels = {logger: logger.level for logger in manager.loggerDict.values() if isinstance(logger, logging.Logger)}
    yield
    root.handlers, root.level = handlers, level
    for logger, own in levels.items():
        logger.setLevel(own)
    structlog.reset_defaults()


@pytest.mark.parametrize(
    "secret",
    [
        f"https://sounds.example/callbacks/{'0' * 32}/{TOKEN}",
        f"POST /callbacks/{'0' * 32}/{TOKEN}?x=1 failed",
        f"https%3A%2F%2Fsounds.example%2Fcallbacks%2F{'0' * 32}%2F{TOKEN}",
        f"https://sounds.example/v1/tasks/1/clips/0/audio?expires=1&signature={TOKEN}",
        f"'Authorization': 'Bearer {TOKEN}'",
        f"whsec_{TOKEN}",
        f"api_key={TOKEN}&x=1",
    ],
)
def test_secrets_are_redacted_in_every_part_of_a_record(secret: str) -> None:
    by_us, by_a_library, by_an_error = _logged(secret)

    assert TOKEN not in json.dumps([by_us, by_a_library, by_an_error])
    assert "***" in by_us["url"]
    assert "***" in by_a_library["event"]
    assert "***" in by_an_error["exception"]


@pytest.mark.parametrize("character", ["x", "\n", "\x01", "é", "\U0001f327"])
def test_every_record_is_one_short_line(character: str) -> None:
    for record in _logged("line\nafter line" + character * 100_000):
        assert len(json.dumps(record)) < 8_000


def test_long_text_is_cut_at_its_beginning() -> None:
    by_us, *_ = _logged("x" * MAX_VALUE_LENGTH + "the cause")

    assert by_us["url"].endswith("the cause")


def test_many_beginnings_of_a_credential_are_redacted_at_once() -> None:
    began = time.process_time()
    _logged("a://a:" * 2_600)

    assert time.process_time() - began < 0.5


def test_nothing_that_is_logged_commands_the_terminal() -> None:
    errors, hostile = io.StringIO(), "rain\x1b[2J\x9b\u202e\r"
    with redirect_stderr(errors):
        configure_logging(settings_of("sqlite+aiosqlite:///unused.db", log_format="console"))
        structlog.get_logger().info("it", message=hostile, messages=[hostile])
        logging.getLogger("library").warning("it said: %s", hostile)
        try:
            raise RuntimeError(hostile)
        except RuntimeError:
            logging.getLogger("library").exception("it broke")

    assert {character for character in errors.getvalue() if not character.isprintable()} == {"\n"}
    assert errors.getvalue().count(r"rain\x1b[2J\x9b\u202e\r") >= 3
    # Lines of a traceback stay lines.
    assert "\nTraceback (most recent call last):\n" in errors.getvalue()


@pytest.mark.parametrize(
    "path",
    [f"/callbacks/./{'0' * 32}/{TOKEN}", f"/callbacks/{'0' * 32}.json/{TOKEN}", f"/callback/x/{TOKEN}", "/\x1b[2J\x9b"],
)
async def test_request_line_has_no_token_and_no_control_character(service: Service, path: str) -> None:
    with capture_logs() as lines:
        await service.anonymous.get(quote(path))

    [shown] = [line["path"] for line in lines if line["event"] == "request"]
    assert TOKEN not in shown
    assert shown.isprintable()


@pytest.mark.parametrize(
    ("level", "said"), [("debug", ["debug", "info", "error"]), ("info", ["info", "error"]), ("error", ["error"])]
)
def test_nothing_below_the_level_is_logged(level: str, said: list[str]) -> None:
    errors = io.StringIO()
    with redirect_stderr(errors):
        configure_logging(settings_of("sqlite+aiosqlite:///unused.db", log_level=level, log_format="json"))
        for each in ("debug", "info", "error"):
            getattr(structlog.get_logger(), each)("it")

    assert [json.loads(line)["level"] for line in errors.getvalue().splitlines()] == said


def test_repeated_warning_is_counted_instead_of_written() -> None:
    fold = FoldRepeats(timedelta(seconds=0.2))

    def passes(**fields: Any) -> dict[str, Any] | None:
        record = logging.LogRecord("x", logging.WARNING, "", 0, {"event": "claim_failed", **fields}, None, None)
        return {**fields, **vars(record)["msg"]} if fold.filter(record) else None

    first, *others = [passes(error="OSError", loop=str(number), timestamp=number) for number in range(5)]
    another = passes(error="TimeoutError")
    time.sleep(0.25)
    next_one = passes(error="OSError")

    assert first is not None
    assert others == [None] * 4
    assert another is not None
    assert next_one == {"event": "claim_failed", "error": "OSError", "repeated": 4}


@pytest.mark.parametrize("empty_database_url", ["postgresql"], indirect=True)
async def test_database_without_tables_is_one_line_that_says_migrate(empty_database_url: str, tmp_path: Path) -> None:
    with Processes(tmp_path, log_format="json", database_url=empty_database_url) as processes:
        sandbox = await processes.sandbox()
        service = processes.start("serve", "--port", str(port := free_port()), upstream_url=sandbox.url)
        await eventually(lambda: "soundpost migrate" in service.log, within=60)
        async with client_of(f"http://127.0.0.1:{port}") as client:
            await eventually(partial(_is_answered, client, "/livez"), within=30)
            # So long ago there were fifteen lines.
            await asyncio.sleep(3)
            errors = [line for line in _lines(service) if line["level"] in ("warning", "error")]
            migrated = await processes.run("migrate")
            await eventually(partial(_is_answered, client, "/v1/usage"), within=30)
            task = await create_task(client)
            done = await until_final(client, task["id"])

    assert [(line["event"], line.get("reason")) for line in errors] == [
        ("commit_retried", "the schema is not this release's: run `soundpost migrate`")
    ]
    assert migrated.code == 0, migrated.stderr
    assert done["status"] == "succeeded"


@pytest.mark.parametrize("empty_database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_statement_that_is_refused_is_an_exception_and_no_line(empty_database_url: str, driver: str) -> None:
    errors = io.StringIO()
    with redirect_stderr(errors):
        configure_logging(settings_of(empty_database_url, log_format="json"))
        database = Database(empty_database_url.replace("asyncpg", driver))
        with pytest.raises(DBAPIError):
            await _insert(database)
        await database.close()

    assert errors.getvalue() == ""


async def test_failures_and_holds_are_warnings_that_say_why(database_url: str, tmp_path: Path) -> None:
    settings = {"log_format": "json", "hold_recheck": "0.2"}
    async with receiving(Reply(500)) as receiver:
        with Processes(tmp_path, **settings) as processes:
            sandbox = await processes.sandbox()
            service = await processes.serve(database_url, sandbox.url)
            async with client_of(service.url) as client:
                failed = await create_task(client, "soft rain [fault:failed]", webhook_url=receiver.url)
                await until_final(client, failed["id"])
                await receiver.until(1)
                await create_task(client, "soft rain [fault:audio-404]")
                await eventually(lambda: "the host answered 404" in service.log)
                await control(sandbox.url, credits=0)
                await create_task(client)
                await eventually(lambda: "hold_rechecked" in service.log)
            assert await service.stop() == 0

    warnings = {line["event"]: line for line in _lines(service) if line["level"] == "warning"}
    assert warnings["task_failed"]["task_id"] == failed["id"]
    assert warnings["task_failed"]["code"] == "upstream_failed"
    assert warnings["task_failed"]["message"]
    assert (warnings["delivery_attempted"]["status_code"], warnings["delivery_attempted"]["task_id"]) == (
        500,
        failed["id"],
    )
    assert warnings["archive"]["problem"] == "the host answered 404"
    assert "no credits" in warnings["submits_held"]["advice"]
    assert warnings["hold_rechecked"]["reason"] == "no_credits"


async def test_lines_of_a_request_say_whose_it_is_and_which(migrated_sqlite: Path, tmp_path: Path) -> None:
    database_url = f"sqlite+aiosqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'x.db')}"
    with Processes(tmp_path, log_format="json", log_level="debug") as processes:
        sandbox = await processes.sandbox()
        service = await processes.serve(database_url, sandbox.url)
        async with client_of(service.url) as client:
            named = await client.get("/v1/tasks", headers={"X-Request-Id": "order-7"})
            unnamed = await client.get("/v1/usage")
            nonsense = await client.get("/v1/credits", headers={"X-Request-Id": "a b"})
            stranger = await client.get("/v1/deliveries", headers={"Authorization": "Bearer nobody"})
        assert await service.stop() == 0

    paths = "/v1/tasks", "/v1/usage", "/v1/credits", "/v1/deliveries"
    lines = {line["path"]: line for line in _lines(service) if line["event"] == "request" and line["path"] in paths}
    assert (named.headers["x-request-id"], lines["/v1/tasks"]["request_id"]) == ("order-7", "order-7")
    assert (unnamed.headers["x-request-id"], nonsense.headers["x-request-id"]) == (
        lines["/v1/usage"]["request_id"],
        lines["/v1/credits"]["request_id"],
    )
    assert len({line["request_id"] for line in lines.values()}) == 4
    assert {lines[path]["caller"] for path in ("/v1/tasks", "/v1/usage", "/v1/credits")} == {"tests"}
    assert (stranger.status_code, lines["/v1/deliveries"]["status"]) == (401, 401)
    assert "caller" not in lines["/v1/deliveries"]
    assert "/readyz" not in lines


async def test_attempt_that_the_stop_cuts_off_is_a_line_too(migrated_sqlite: Path, tmp_path: Path) -> None:
    database_url = f"sqlite+aiosqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'x.db')}"
    with Processes(tmp_path, log_format="json", grace="1") as processes:
        sandbox = await processes.sandbox()
        service = await processes.serve(database_url, sandbox.url)
        async with client_of(service.url) as client:
            task = await create_task(client, "soft rain [fault:hang]")
            await until_status(client, task["id"], "submitting")
        await eventually(partial(_is_submitted, sandbox.url))
        assert await service.stop() == 0

    [submit] = [line for line in _lines(service) if line["event"] == "submit"]
    assert (submit["task_id"], submit["attempt"], submit["outcome"]) == (task["id"], 1, "interrupted")


def _lines(process: Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.log.splitlines()]


async def _insert(database: Database) -> None:
    async with database.transaction() as (session, now):
        # Several rows: psycopg sends them as a pipeline.
        rows: list[dict[str, Any]] = [{"name": name, "due_at": now, "attempts": 0, "detail": {}} for name in ("a", "b")]
        await insert_new(session, PeriodicJob, *rows)


async def _is_submitted(sandbox_url: str) -> bool:
    return len(await submits_at(sandbox_url)) == 1


async def _is_answered(client: httpx.AsyncClient, path: str) -> bool:
    try:
        return (await client.get(path)).is_success
    except httpx.TransportError:
        return False


def _logged(text: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The records of a text that we log, that a library logs, and that an error carries."""
    errors = io.StringIO()
    with redirect_stderr(errors):
        configure_logging(settings_of("sqlite+aiosqlite:///unused.db", log_format="json"))
        structlog.get_logger().info("it", url=text)
        logging.getLogger("library").warning("it said: %s", text)
        try:
            raise RuntimeError(text)
        except RuntimeError:
            logging.getLogger("library").exception("it broke")
    by_us, by_a_library, by_an_error = (json.loads(line) for line in errors.getvalue().splitlines())
    return by_us, by_a_library, by_an_error


async def test_requests_that_succeed_are_told_at_debug_level_only(service: Service) -> None:
    with capture_logs() as lines:
        await service.client.get("/v1/tasks")
        await service.client.get("/v1/tasks/nonsense")
        await service.anonymous.get("/readyz")

    requests = {line["path"]: line["log_level"] for line in lines if line["event"] == "request"}
    # Lines at debug level are there only where that level is on.
    assert requests.pop("/v1/tasks/nonsense") == "info"
    assert set(requests.values()) <= {"debug"}
