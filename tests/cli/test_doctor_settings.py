"""`soundpost doctor` lists every setting with its value and source, and shows nothing of a secret."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.config import PREFIX, SECRETS, Settings
from app.config.listing import list_settings
from tests.support.processes import Processes
from tests.support.settings import UNREACHABLE
from tests.test_config import GOOD, NONSENSE


async def test_every_setting_is_listed_with_its_source_and_no_secret_is_shown(tmp_path: Path) -> None:
    given = {name: f"canary-of-{name.lower()}-canary" for name in SECRETS if name != "DATABASE_URL"}
    given["API_KEYS"] = f"caller:{given['API_KEYS']}"
    (tmp_path / "key").write_text(given.pop("UPSTREAM_API_KEY"))
    (tmp_path / ".env").write_text("SOUNDPOST_POLL_AFTER=50\nSOUNDPOST_POLL_EVERY=20\n")
    database = "postgresql://user:the-canary-word@127.0.0.1:9/name?sslpassword=canary&connect_timeout=1"
    settings: dict[str, str | None] = {
        "database_url": database,
        "upstream_url": UNREACHABLE,
        "upstream_api_key": None,
        "poll_every": "25.5",
        "grace": " ",
        **{name.lower(): value for name, value in given.items()},
    }
    with Processes(tmp_path, upstream_api_key_file=str(tmp_path / "key"), **settings) as processes:
        as_text, as_json = [await processes.run("doctor", *options) for options in ((), ("--json",))]

    findings = json.loads(as_json.stdout)
    listed = {each["name"]: each for each in findings[0]["settings"]}
    assert list(listed) == [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    for name, value, source in (
        ("POLL_AFTER", "50", ".env"),
        ("POLL_EVERY", "25.5", "environment"),
        ("GRACE", "10", "default"),
        ("PUBLIC_URL", None, "default"),
        ("SECRET_KEYS", "***", "environment"),
        ("DATABASE_URL", "postgresql://user:***@127.0.0.1:9/name?sslpassword=***&connect_timeout=1", "environment"),
    ):
        assert listed[f"{PREFIX}{name}"] == {"name": f"{PREFIX}{name}", "value": value, "source": source, "file": None}
    of_file = {"name": "SOUNDPOST_UPSTREAM_API_KEY", "value": "***", "source": "file", "file": f"{tmp_path}/key"}
    assert listed["SOUNDPOST_UPSTREAM_API_KEY"] == of_file
    assert f"SOUNDPOST_UPSTREAM_API_KEY: *** (file {tmp_path}/key)" in as_text.stdout.splitlines()
    assert "SOUNDPOST_POLL_AFTER: 50 (.env)" in as_text.stdout.splitlines()
    assert "SOUNDPOST_PUBLIC_URL: not set (default)" in as_text.stdout.splitlines()
    for ended in (as_text, as_json):
        assert "canary" not in ended.stdout + ended.stderr
        assert ended.code == 1


def test_value_is_listed_as_it_can_be_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in GOOD.items():
        monkeypatch.setenv(f"{PREFIX}{name}", value)
    settings = Settings()
    listed = list(list_settings(Settings, settings))
    for each in listed:
        if each.name.removeprefix(PREFIX) not in SECRETS:
            monkeypatch.setenv(each.name, str(each.value))

    assert {each.source for each in listed} == {"environment"}
    assert Settings() == settings


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, value, _ in NONSENSE if "canary" in value])
async def test_refused_value_is_not_shown(name: str, value: str, tmp_path: Path) -> None:
    chosen: dict[str, str | None] = {"poll_every": "17", name.lower(): value}
    with Processes(tmp_path, **chosen) as processes:
        ended = await processes.run("doctor", "--json")

    findings: list[dict[str, Any]] = json.loads(ended.stdout)
    listed = {each["name"]: each["value"] for each in findings[0]["settings"]}
    assert ended.code == 1
    assert [finding["status"] for finding in findings] == ["down"]
    assert "canary" not in ended.stdout
    assert (listed[f"{PREFIX}{name}"], listed["SOUNDPOST_POLL_EVERY"]) == ("***", "17")


async def test_settings_that_cannot_be_read_are_one_finding(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"SOUNDPOST_GRACE=\xff")
    with Processes(tmp_path) as processes:
        unreadable = await processes.run("doctor", "--json")
        (tmp_path / ".env").unlink()
        missing = await processes.run("doctor", "--json", secret_keys_file="/nowhere/secret")

    findings = [json.loads(ended.stdout) for ended in (unreadable, missing)]
    assert [len(each) for each in findings] == [1, 1]
    assert findings[0][0]["detail"] == ".env cannot be read: it is not UTF-8"
    assert "SOUNDPOST_SECRET_KEYS_FILE names a file that cannot be read: /nowhere/secret" in findings[1][0]["detail"]
    assert (unreadable.code, missing.code) == (1, 1)


def test_terminal_of_eighty_columns_shows_whole_names_and_no_longer_line(tmp_path: Path) -> None:
    environment = Processes(tmp_path, upstream_url=UNREACHABLE, log_level="error").environment()
    terminal, inside = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "app.cli", "doctor"],
        cwd=tmp_path,
        env={**environment, "COLUMNS": "80", "TERM": "dumb"},
        stdout=inside,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(inside)
        shown = b""
        # Linux says EIO where others say the end.
        try:
            while part := os.read(terminal, 65_536):
                shown += part
        except OSError:
            pass
        os.close(terminal)

    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).splitlines()
    assert process.returncode == 1
    assert max(map(len, lines)) <= 80
    assert any(line.split() == ["SOUNDPOST_DATABASE_STATEMENT_TIMEOUT", "15", "default"] for line in lines)
    assert any(line.startswith("PROBLEM  database: ") for line in lines)
