"""README promises nothing that does not work: its commands run, its snippets verify, its tables are complete."""

import base64
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import pytest
import typer
from standardwebhooks import Webhook
from typer.testing import CliRunner

from app.cli.main import main
from app.config import Settings
from app.errors import cases
from app.sandbox import FAULTS
from tests.support.processes import free_port, service_process
from tests.support.receivers import Received, receiving
from tests.support.service import Service
from tests.support.settings import ROOT

README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def snippets(language: str) -> list[str]:
    """The code blocks of README in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


TOUR = snippets("bash")
Verify = Callable[[str, dict[str, str], bytes], Any]
RUN_IN_NODE = """
import { readFileSync } from "node:fs";
import { verify } from "./verify.mjs";
const { secret, headers, body } = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(verify(secret, headers, Buffer.from(body, "base64"))));
"""


def test_every_command_of_the_tour_works(tmp_path: Path) -> None:
    service, sandbox = str(free_port()), str(free_port())
    script = "\n".join(TOUR).replace("8000", service).replace("8001", sandbox)
    command = tmp_path / "bin" / "soundpost"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m app.cli "$@"\n')
    command.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SOUNDPOST_")}
    environment |= {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    log = tmp_path / "tour.log"
    with log.open("w") as output:
        tour = subprocess.Popen(
            ["/bin/bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code = tour.wait(150)
    finally:
        # The tour leaves its two servers running, as it would on a reader's machine.
        os.killpg(tour.pid, signal.SIGKILL)

    assert code == 0, log.read_text()
    assert (tmp_path / "rain.wav").read_bytes().startswith(b"RIFF")
    with closing(sqlite3.connect(tmp_path / "var/soundpost.db")) as database:
        called = database.execute("SELECT url FROM webhook_endpoints WHERE disabled_at IS NULL").fetchall()
    assert called == []


def test_tour_has_commands() -> None:
    assert sum(block.count("curl ") for block in TOUR) >= 10


@pytest.mark.parametrize("setting", sorted(Settings.model_fields))
def test_every_setting_is_explained(setting: str) -> None:
    assert f"`SOUNDPOST_{setting.upper()}`" in README


async def test_page_of_each_problem_type_says_what_happened_and_what_to_do(service: Service) -> None:
    for case in cases():
        page = (await service.client.get(f"/problems/{case.slug}")).raise_for_status().text
        assert escape(case.title) in page
        assert f"HTTP {case.status}." in page
        assert escape(case.advice) in page


def test_problem_types_that_are_named_exist() -> None:
    named = set(re.findall(r"`/problems/([a-z-]+)`", README))

    assert named
    assert named - {case.slug for case in cases()} == set()


def test_every_command_is_named_and_every_named_one_exists() -> None:
    commands = _commands()

    assert {_command_of(words, commands) for words in _invocations()} == set(commands)


def test_every_option_that_is_named_exists() -> None:
    commands = _commands()
    for words in _invocations():
        options = {word for word in words if word.startswith("--")}
        assert options - commands[_command_of(words, commands)] == set(), words


def test_every_fault_of_the_sandbox_is_printed() -> None:
    listed = CliRunner().invoke(main, ["sandbox", "--list-faults"])

    assert "`soundpost sandbox --list-faults`" in README
    assert listed.exit_code == 0, listed.output
    assert set(FAULTS) - {word.partition("=")[0] for word in listed.stdout.split()} == set()


@pytest.mark.parametrize("language", ["python", "js"])
async def test_snippet_verifies_a_delivery_and_nothing_else(language: str, tmp_path: Path) -> None:
    verify = _verify_in_python() if language == "python" else _verify_in_node(tmp_path)
    secret, delivery = await _delivery(tmp_path)
    headers, body = delivery.headers, delivery.body
    during_rotation = headers | {"webhook-signature": f"v1,c29tZXRoaW5n {headers['webhook-signature']}"}
    forgeries = [
        (secret, headers, body.replace(b"webhook.test", b"task.failed!")),
        (secret, headers | {"webhook-id": "another"}, body),
        (secret, headers | {"webhook-timestamp": str(int(headers["webhook-timestamp"]) + 1)}, body),
        (secret, headers | {"webhook-signature": ""}, body),
        (secret, {}, body),
        ("whsec_" + base64.b64encode(b"another secret").decode(), headers, body),
        (secret, _signed_years_ago(secret, body), body),
    ]

    assert verify(secret, headers, body)["type"] == "webhook.test"
    assert verify(secret, during_rotation, body)["type"] == "webhook.test"
    for forgery in forgeries:
        with pytest.raises(Exception, match=r"."):
            verify(*forgery)


def test_the_two_commands_are_targets_of_make() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE)) <= targets


async def _delivery(folder: Path) -> tuple[str, Received]:
    """What the service sends to an endpoint, and the secret that its caller has for it."""
    async with receiving() as receiver, service_process(f"sqlite+aiosqlite:///{folder}/x.db", folder) as (client, _):
        endpoint = (await client.post("/v1/webhook-endpoints", json={"url": receiver.url})).raise_for_status().json()
        path = f"/v1/webhook-endpoints/{endpoint['id']}"
        secret = (await client.get(f"{path}/secret")).raise_for_status().json()["secret"]
        (await client.post(f"{path}/test")).raise_for_status()
        await receiver.until(1)
    return secret, receiver.requests[0]


def _signed_years_ago(secret: str, body: bytes) -> dict[str, str]:
    sent_at = datetime(2021, 2, 25, tzinfo=UTC)
    return {
        "webhook-id": "old",
        "webhook-timestamp": str(int(sent_at.timestamp())),
        "webhook-signature": Webhook(secret).sign("old", sent_at, body.decode()),
    }


def _verify_in_python() -> Verify:
    [snippet] = snippets("python")
    names: dict[str, Any] = {}
    exec(snippet, names)  # noqa: S102 - README's own
    verify: Verify = names["verify"]
    return verify


def _verify_in_node(folder: Path) -> Verify:
    [snippet] = snippets("js")
    (folder / "verify.mjs").write_text(snippet)
    (folder / "run.mjs").write_text(RUN_IN_NODE)

    def verify(secret: str, headers: dict[str, str], body: bytes) -> Any:
        given = json.dumps({"secret": secret, "headers": headers, "body": base64.b64encode(body).decode()})
        command = ["node", str(folder / "run.mjs")]
        ended = subprocess.run(command, input=given, capture_output=True, text=True)
        if ended.returncode:
            raise ValueError(ended.stderr)
        return json.loads(ended.stdout)

    return verify


def _commands() -> dict[str, set[str]]:
    """Every command of `soundpost` with its options."""
    found: dict[str, set[str]] = {}

    def walk(command: Any, name: str) -> None:
        children = getattr(command, "commands", {})
        for word, child in children.items():
            walk(child, f"{name} {word}".strip())
        if not children:
            found[name] = {"--help", *(option for each in command.params for option in each.opts)}

    walk(typer.main.get_command(main), "")
    return found


def _invocations() -> list[list[str]]:
    """The words behind each `soundpost` in code, in README and where it sends operators."""
    named = re.findall(r"(?<=[ `(\n])soundpost ([a-z][^`\n>&)|:]*)", README + OPERATIONS)
    return [line.split() for line in named]


def _command_of(words: list[str], commands: dict[str, set[str]]) -> str:
    names = [" ".join(words[:count]) for count in (2, 1)]
    return next((name for name in names if name in commands), names[0])
