"""One line for each thing that happens, in which no secret has a place."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import structlog

from app.observability.logging import MAX_VALUE_LENGTH, configure_logging
from tests.support.api import client_of, create_task, until_final
from tests.support.processes import Processes
from tests.support.sandbox import journal
from tests.support.settings import KEY, SECRET_KEY, settings_of

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


async def test_no_secret_is_logged_at_any_level(database_url: str, tmp_path: Path) -> None:
    with Processes(tmp_path, log_level="debug", log_format="json") as processes:
        sandbox = await processes.sandbox(api_key="canary-of-the-upstream")
        service = await processes.serve(database_url, sandbox.url, upstream_api_key="canary-of-the-upstream")
        async with client_of(service.url) as client:
            task = await create_task(client, "soft rain")
            await until_final(client, task["id"])
            refused = await create_task(client, "soft rain [fault:failed]")
            await until_final(client, refused["id"])
            await client.get("/v1/credits")
            await client.get(f"/v1/tasks?cursor={TOKEN}&signature={TOKEN}")
            await client.post(f"/callbacks/{task['id']}/{TOKEN}", content=b"{}")
            await client.get("/v1/tasks", headers={"Authorization": f"Bearer {TOKEN}"})
        callback_urls = {entry["callback_url"] for entry in await journal(sandbox.url, kind="callback")}
        assert await service.stop() == 0

    lines = [json.loads(line) for line in service.log.splitlines()]
    tokens = {url.rpartition("/")[2] for url in callback_urls}
    canaries = {KEY, SECRET_KEY, "canary-of-the-upstream", TOKEN, *tokens}
    assert len(tokens) == 2
    assert {canary for canary in canaries if canary in service.log} == set()
    assert {line["event"] for line in lines} >= {"submit", "callback"}
    assert {line["task_id"] for line in lines if line["event"] == "submit"} == {task["id"], refused["id"]}


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
