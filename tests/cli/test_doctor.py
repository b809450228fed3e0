"""`soundpost doctor` says what is wrong and what to do about it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import client_of, create_task
from tests.support.processes import Processes, free_port
from tests.support.settings import UNREACHABLE, UPSTREAM_KEY
from tests.support.wait import eventually

# A folder in which no file can be created.
NO_DATABASE = "sqlite+aiosqlite:////proc/soundpost.db"


@pytest.mark.parametrize(
    ("settings", "controls", "check", "advice"),
    [
        ({}, {}, None, ""),
        ({"upstream_api_key": "wrong"}, {}, "upstream", "SOUNDPOST_UPSTREAM_API_KEY"),
        ({"upstream_api_key": ""}, {}, "upstream", "set it to the upstream's key"),
        ({}, {"credits": 0}, "upstream", "buy some"),
        ({}, {"credits": 30}, "credits", "for some 12 tasks at 2.5 each: buy more"),
        ({}, {"maintenance": True}, "upstream", "is under maintenance (455"),
        ({"upstream_url": "http://127.0.0.1:9"}, {}, "upstream", "it does not answer: check SOUNDPOST_UPSTREAM_URL"),
        ({"storage_url": "file:/proc/audio"}, {}, "storage", "SOUNDPOST_STORAGE_URL"),
        ({"public_url": "http://127.0.0.1:9"}, {}, "public_url", "(ConnectError: Connection refused)"),
        ({"base_url": "http://sounds.example."}, {}, "base_url", "begins with http://"),
        ({"poll_every": "often"}, {}, "settings", "SOUNDPOST_POLL_EVERY"),
        ({"secret_keys": "short"}, {}, "settings", "SOUNDPOST_SECRET_KEYS"),
        ({"secret_keys": None, "database_url": NO_DATABASE}, {}, "settings", "SOUNDPOST_SECRET_KEYS"),
    ],
)
async def test_problem_is_reported_with_what_to_do(
    database_url: str,
    tmp_path: Path,
    settings: dict[str, str | None],
    controls: dict[str, Any],
    check: str | None,
    advice: str,
) -> None:
    with Processes(tmp_path, database_url=database_url, upstream_api_key=UPSTREAM_KEY) as processes:
        sandbox = await processes.sandbox(**controls)
        chosen = {"upstream_url": sandbox.url, **settings}
        as_text, as_json = [await processes.run("doctor", *options, **chosen) for options in ((), ("--json",))]

    findings = json.loads(as_json.stdout)
    problems = [finding for finding in findings if finding["status"] in ("degraded", "down")]
    assert (as_text.code, as_json.code) == ((1, 1) if check else (0, 0))
    assert [finding["check"] for finding in problems] == ([check] if check else [])
    assert all(advice in finding["detail"] for finding in problems)
    assert as_text.stdout.count("PROBLEM") == len(problems)
    assert as_text.stdout.count("ok     ") == len([finding for finding in findings if finding["ok"]])
    assert as_text.stdout.count("skipped") == len([finding for finding in findings if finding["status"] == "skipped"])


async def test_held_queue_is_reported_in_the_words_of_readyz(database_url: str, tmp_path: Path) -> None:
    with Processes(tmp_path, upstream_api_key=UPSTREAM_KEY, hold_recheck="600") as processes:
        sandbox = await processes.sandbox(credits=0)
        port = free_port()
        service = await processes.serve(database_url, sandbox.url, port=port)
        async with client_of(service.url) as client:
            await create_task(client)

            async def is_held() -> bool:
                checks = (await client.get("/readyz")).json()["checks"]
                return bool(checks["queue"]["status"] == "degraded")

            await eventually(is_held)
            ready = (await client.get("/readyz")).json()["checks"]
        same = {"database_url": database_url, "upstream_url": sandbox.url, "public_url": service.url}
        ended = await processes.run("doctor", "--json", **same)

    found = {finding["check"]: finding for finding in json.loads(ended.stdout)}
    assert {name: found[name]["detail"] for name in ready} == {name: check["detail"] for name, check in ready.items()}
    assert not found["queue"]["ok"]
    assert "buy some" in found["queue"]["detail"]
    reached = {"check": "public_url", "ok": True, "status": "ok", "detail": "it reaches this service"}
    assert found["public_url"] == reached


async def test_checks_that_need_the_database_are_skipped_while_it_does_not_answer(tmp_path: Path) -> None:
    with Processes(tmp_path, database_url=NO_DATABASE) as processes:
        ended = await processes.run("doctor", "--json")

    findings = json.loads(ended.stdout)
    well = [finding["check"] for finding in findings if finding["ok"]]
    assert well == ["settings", "storage", "public_url", "base_url"]
    assert [finding["detail"] for finding in findings if finding["status"] == "down"] == [
        "the database does not answer (unable to open database file): check SOUNDPOST_DATABASE_URL"
    ]
    skipped = {finding["check"]: finding["detail"] for finding in findings if finding["status"] == "skipped"}
    assert skipped["migrations"] == "not checked, because of `database`"
    assert skipped["queue"] == skipped["upstream"] == "not checked, because of `migrations`"
    assert ended.code == 1


async def test_schema_of_another_release_needs_a_migration(empty_database_url: str, tmp_path: Path) -> None:
    with Processes(tmp_path, database_url=empty_database_url) as processes:
        ended = await processes.run("doctor")

    assert ended.code == 1
    assert "run `soundpost migrate`" in ended.stdout


async def test_variable_that_is_no_setting_is_warned_of_by_doctor_serve_and_worker(tmp_path: Path) -> None:
    typo = {"pol_every": "3", "upstream_url": UNREACHABLE, "api_keys": "shop:one-key,shop:another-key-of-the-shop"}
    with Processes(tmp_path, database_url=f"sqlite+aiosqlite:///{tmp_path}/soundpost.db", **typo) as processes:
        examined = await processes.run("doctor", "--json")
        servers = [processes.start("serve", "--port", "0"), processes.start("worker")]
        for server in servers:
            await eventually(lambda server=server: "unknown_setting" in server.log, 60)  # type: ignore[misc]
        await eventually(lambda: "configured_keys_doubtful" in servers[0].log, 60)

    settings = next(finding for finding in json.loads(examined.stdout) if finding["check"] == "settings")
    assert settings["ok"]
    for said in (settings["detail"], *(server.log for server in servers)):
        assert "SOUNDPOST_POL_EVERY" in said
        assert "SOUNDPOST_POLL_EVERY" in said
    for doubt in ("shop is there with different keys", "the key of shop has fewer than 16 characters"):
        assert doubt in settings["detail"]
        assert doubt in servers[0].log
