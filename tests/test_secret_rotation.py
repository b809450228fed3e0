"""SIGHUP: a running process takes new secrets from their files and from .env, and no request fails meanwhile."""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from sqlalchemy import make_url

from app.keyring import Keyring
from tests.support.api import Json, client_of, create_task, until_final, until_status
from tests.support.processes import Process, Processes
from tests.support.settings import KEY, OTHER_KEY, ROOT, UPSTREAM_KEY
from tests.support.wait import eventually

OLD, NEW = "the-old-secret-key-of-the-service", "the-new-secret-key-of-the-service"
WRONG_KEY = "an-upstream-key-that-is-refused"
HMAC_KEYS = "the-first-key-of-the-upstream", "the-second-key-of-the-upstream"


class Files:
    """The files that hold the secrets of a process, by the names of their settings."""

    def __init__(self, folder: Path, **secrets: str) -> None:
        self._folder = folder
        for name, secret in secrets.items():
            self.write(name, secret)
        # Each secret has a file instead of a value; a file wins over the database's URL that a process is given.
        self.settings: dict[str, Any] = {
            **{f"{name}_file": str(folder / name) for name in secrets},
            **{name: None for name in secrets if name != "database_url"},
        }

    def write(self, name: str, secret: str) -> None:
        """Replace a secret as Kubernetes does: by a rename."""
        draft = self._folder / f"{name}.new"
        draft.write_text(f"{secret}\n")
        draft.rename(self._folder / name)


@asynccontextmanager
async def traffic(client: httpx.AsyncClient, answers: list[int]) -> AsyncIterator[None]:
    """Order and read without a pause inside the block; collects the status of each answer, 0 for none."""

    async def order_and_read() -> None:
        while not done.is_set():
            for request in (
                partial(client.post, "/v1/tasks", json={"prompt": "rain"}),
                partial(client.get, "/v1/tasks"),
            ):
                try:
                    answers.append((await request()).status_code)
                except httpx.TransportError:
                    answers.append(0)
            await asyncio.sleep(0.05)

    done = asyncio.Event()
    callers = [asyncio.create_task(order_and_read()) for _ in range(3)]
    yield
    done.set()
    await asyncio.gather(*callers)


@pytest.mark.parametrize(
    ("database_url", "arguments"),
    [("sqlite", ()), ("postgresql", ("--workers", "2"))],
    ids=["one process", "two processes"],
    indirect=["database_url"],
)
async def test_service_takes_new_keys_from_their_files_without_a_failed_request(
    database_url: str, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    files = Files(tmp_path, upstream_api_key=WRONG_KEY, secret_keys=OLD, api_keys=f"tests:{KEY},leaver:{OTHER_KEY}")
    answers: list[int] = []
    with Processes(tmp_path, **files.settings, upstream_rate="500/1") as processes:
        sandbox = await processes.sandbox(rate=1000, credits=100_000)
        service = await processes.serve(database_url, sandbox.url, *arguments)
        async with client_of(service.url) as client, client_of(service.url, OTHER_KEY) as leaver:
            held = await create_task(client)
            await eventually(partial(_is_ready_to, "degraded", client))
            async with traffic(client, answers):
                files.write("upstream_api_key", UPSTREAM_KEY)
                os.kill(service.pid, signal.SIGHUP)
                done = await until_final(client, held["id"])

                files.write("secret_keys", f"{NEW},{OLD}")
                files.write("api_keys", f"tests:{KEY},joiner:a-key-that-was-not-there")
                os.kill(service.pid, signal.SIGHUP)
                await _everywhere(service, partial(_signs_with, NEW))
                await _everywhere(service, partial(_answers, "a-key-that-was-not-there", 200))
                await _everywhere(service, partial(_answers, OTHER_KEY, 401))
            refused = await leaver.get("/v1/tasks")
            # What it tells may be a second old.
            await eventually(partial(_is_ready_to, "ok", client))
            ready = (await client.get("/readyz")).json()
        log = service.log

    assert done["status"] == "succeeded"
    assert refused.status_code == 401
    assert set(answers) == {200, 202}
    assert ready["checks"]["secret_keys"]["status"] == "ok"
    assert "server_process_replaced" not in log
    renewed = [line["changed"] for line in map(json.loads, log.splitlines()) if line["event"] == "secrets_renewed"]
    assert renewed == [
        *[["SOUNDPOST_UPSTREAM_API_KEY"]] * (len(renewed) // 2),
        *[["SOUNDPOST_SECRET_KEYS", "SOUNDPOST_API_KEYS"]] * (len(renewed) // 2),
    ]
    assert [secret for secret in (OLD, NEW, KEY, OTHER_KEY, WRONG_KEY) if secret in log] == []


async def test_callback_of_a_task_that_was_sent_before_the_rotation_is_taken(database_url: str, tmp_path: Path) -> None:
    files = Files(tmp_path, secret_keys=OLD)
    with Processes(tmp_path, **files.settings, poll_after="60") as processes:
        sandbox = await processes.sandbox(delay=2)
        service = await processes.serve(database_url, sandbox.url)
        async with client_of(service.url) as client:
            task = await until_status(client, (await create_task(client))["id"], "generating")
            files.write("secret_keys", f"{NEW},{OLD}")
            os.kill(service.pid, signal.SIGHUP)
            await _everywhere(service, partial(_signs_with, NEW))
            still = (await client.get(f"/v1/tasks/{task['id']}")).json()
            done = await until_final(client, task["id"])
            link = done["clips"][0]["audio_url"]
            is_linked = (await client.get(link, headers={"Authorization": ""})).is_success

    assert still["status"] == "generating"
    assert (done["status"], done["resolved_by"]) == ("succeeded", "callback")
    assert is_linked


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_worker_takes_a_new_upstream_key(database_url: str, tmp_path: Path) -> None:
    files = Files(tmp_path, upstream_api_key=WRONG_KEY)
    with Processes(tmp_path, **files.settings) as processes:
        sandbox = await processes.sandbox()
        service = await processes.serve(database_url, sandbox.url, "--no-loops")
        worker = processes.worker(database_url, sandbox.url, public_url=service.url)
        async with client_of(service.url) as client:
            task = await create_task(client)
            await eventually(partial(_is_ready_to, "degraded", client))
            files.write("upstream_api_key", UPSTREAM_KEY)
            os.kill(worker.pid, signal.SIGHUP)
            done = await until_final(client, task["id"])

    assert done["status"] == "succeeded"


async def test_secrets_of_the_env_file_are_read_again_and_nothing_else(migrated: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"SOUNDPOST_SECRET_KEYS={OLD}\n")
    with Processes(tmp_path, secret_keys=None) as processes:
        service = await processes.serve(migrated, "http://127.0.0.1:9")
        (tmp_path / ".env").write_text(f"SOUNDPOST_SECRET_KEYS={NEW},{OLD}\nSOUNDPOST_MODELS=V9\n")
        os.kill(service.pid, signal.SIGHUP)
        await _everywhere(service, partial(_signs_with, NEW))
        async with client_of(service.url) as client:
            task = await create_task(client)

    assert task["model"] == "V5"


@pytest.mark.parametrize(
    ("arguments", "name", "secret", "problem"),
    [
        ((), "secret_keys", "short", "SOUNDPOST_SECRET_KEYS needs at least one key, each of 16 characters or more"),
        ((), "upstream_api_key", "", "SOUNDPOST_UPSTREAM_API_KEY is not set any more"),
        ((), "callback_hmac_key", "", "SOUNDPOST_CALLBACK_HMAC_KEY is not set any more"),
        ((), "api_keys", "no pairs", "SOUNDPOST_API_KEYS must be name:key pairs"),
        ((), "database_url", "sqlite+aiosqlite:///another.db", "SOUNDPOST_DATABASE_URL names another database"),
        ((), "secret_keys", None, "SOUNDPOST_SECRET_KEYS_FILE names a file that cannot be read"),
        (("--workers", "2"), "secret_keys", None, "SOUNDPOST_SECRET_KEYS_FILE names a file that cannot be read"),
    ],
)
async def test_secrets_that_cannot_be_used_change_nothing_and_say_what_to_do(
    migrated: str, arguments: tuple[str, ...], name: str, secret: str | None, problem: str, tmp_path: Path
) -> None:
    given = {"secret_keys": OLD, "upstream_api_key": WRONG_KEY, "callback_hmac_key": HMAC_KEYS[0]}
    files = Files(tmp_path, **given, api_keys=f"tests:{KEY}", database_url=migrated)
    with Processes(tmp_path, **files.settings, log_format="json") as processes:
        service = await processes.serve(migrated, "http://127.0.0.1:9", "--no-loops", *arguments)
        if secret is None:
            (tmp_path / name).unlink()
        else:
            files.write(name, secret)
        # The others are not taken alone: what belongs together changes together, or not at all.
        files.write("api_keys" if name != "api_keys" else "secret_keys", f"tests:{NEW}")
        os.kill(service.pid, signal.SIGHUP)
        await eventually(lambda: "secrets_not_renewed" in service.log)
        async with client_of(service.url) as client:
            is_ours = (await client.get("/v1/tasks")).is_success
            signs = await _signs_with(OLD, client)
        code = await service.stop()
        log = service.log

    [line] = [line for line in map(json.loads, log.splitlines()) if line["event"] == "secrets_not_renewed"]
    assert line["level"] == "error"
    assert line["problem"].startswith(problem)
    assert "send SIGHUP again" in line["advice"]
    assert (is_ours, signs, code) == (True, True, 0)


@pytest.mark.parametrize("content", [None, b"\xff" * 40], ids=["gone", "damaged"])
@pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["one", "several"])
async def test_key_file_that_is_gone_or_damaged_is_not_made_anew_while_the_service_runs(
    migrated: str, tmp_path: Path, arguments: tuple[str, ...], content: bytes | None
) -> None:
    file = tmp_path / "soundpost.db.secret"
    file.write_text(OLD)
    with Processes(tmp_path, secret_keys=None, log_format="json") as processes:
        service = await processes.serve(migrated, "http://127.0.0.1:9", "--no-loops", *arguments)
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        os.kill(service.pid, signal.SIGHUP)
        await eventually(lambda: "secrets_not_renewed" in service.log, within=30)
        refused, is_there = service.log, file.exists()
        file.write_text(f"{OLD}\n")
        os.kill(service.pid, signal.SIGHUP)
        await eventually(lambda: "secrets_renewed" in service.log, within=30)
        async with client_of(service.url) as client:
            assert await _signs_with(OLD, client)

    assert f"The key file {file.name} beside the database cannot be read" in refused
    assert is_there is (content is not None)


async def test_another_key_of_the_upstreams_signatures_counts_from_sighup_on(migrated: str, tmp_path: Path) -> None:
    files = Files(tmp_path, callback_hmac_key=HMAC_KEYS[0])
    with Processes(tmp_path, **files.settings, secret_keys=OLD) as processes:
        service = await processes.serve(migrated, "http://127.0.0.1:9", "--no-loops")
        async with client_of(service.url) as client:
            task = await create_task(client)
            path = f"/callbacks/{task['id']}/{Keyring(OLD).callback_token(task['id'])}"
            before = [(await client.post(path, **_signed(key))).status_code for key in HMAC_KEYS]
            files.write("callback_hmac_key", HMAC_KEYS[1])
            os.kill(service.pid, signal.SIGHUP)
            await eventually(lambda: "secrets_renewed" in service.log)
            after = [(await client.post(path, **_signed(key))).status_code for key in HMAC_KEYS]

    assert (before, after) == ([200, 401], [401, 200])


@pytest.mark.parametrize("driver", ["postgresql+asyncpg", "postgresql+psycopg"])
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_new_connections_use_the_new_credentials_of_the_database(
    database_url: str, driver: str, tmp_path: Path
) -> None:
    plain = make_url(database_url).set(drivername="postgresql")
    roles = [f"soundpost_{uuid4().hex}" for _ in range(2)]
    urls = [plain.set(drivername=driver, username=role).render_as_string(hide_password=False) for role in roles]
    files = Files(tmp_path, database_url=urls[0])
    answers: list[int] = []
    with psycopg.connect(plain.render_as_string(hide_password=False), autocommit=True) as admin:

        def users() -> set[str]:
            rows = admin.execute("SELECT usename FROM pg_stat_activity WHERE usename LIKE 'soundpost!_%' ESCAPE '!'")
            return {name for (name,) in rows.fetchall() if name in roles}

        for role in roles:
            admin.execute(f"CREATE ROLE {role} LOGIN SUPERUSER".encode())
        try:
            with Processes(tmp_path) as processes:
                sandbox = await processes.sandbox(rate=1000)
                service = await processes.serve(urls[0], sandbox.url, **files.settings)
                async with client_of(service.url) as client:
                    async with traffic(client, answers):
                        before = users()
                        files.write("database_url", urls[1])
                        os.kill(service.pid, signal.SIGHUP)
                        await eventually(lambda: "secrets_renewed" in service.log)
                        await asyncio.sleep(0.5)
                    during = users()
                    admin.execute(f"ALTER ROLE {roles[0]} NOLOGIN".encode())
                    admin.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (roles[0],)
                    )
                    await eventually(partial(_is_answered, client))
                    done = await until_final(client, (await create_task(client))["id"])
                    await eventually(lambda: users() == {roles[1]})
        finally:
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = ANY(%s)", (roles,))
            for role in roles:
                admin.execute(f"DROP ROLE {role}".encode())

    assert before == {roles[0]}
    assert roles[0] in during
    assert set(answers) == {200, 202}
    assert done["status"] == "succeeded"


@pytest.mark.parametrize("driver", ["postgresql+asyncpg", "postgresql+psycopg"])
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_secrets_are_corrected_by_another_sighup_while_the_database_refuses_the_former_ones(
    database_url: str, driver: str, tmp_path: Path
) -> None:
    good = make_url(database_url).set(drivername=driver)
    bad = good.set(username=f"nobody_{uuid4().hex}").render_as_string(hide_password=False)
    files = Files(tmp_path, secret_keys=OLD, database_url=good.render_as_string(hide_password=False))
    plain = good.set(drivername="postgresql").render_as_string(hide_password=False)
    with Processes(tmp_path, log_format="json", **files.settings) as processes, psycopg.connect(plain) as admin:
        service = await processes.serve(database_url, "http://127.0.0.1:9", "--no-loops")

        async def is_refused() -> bool:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            return any("commit_retried" in line and "does not exist" in line for line in service.log.splitlines())

        # What is noted of the new key waits for this lock, until its connection is lost.
        admin.execute("LOCK TABLE periodic_jobs")
        files.write("database_url", bad)
        files.write("secret_keys", f"{NEW},{OLD}")
        os.kill(service.pid, signal.SIGHUP)
        await eventually(lambda: "secrets_renewed" in service.log)
        await eventually(is_refused)
        admin.rollback()
        files.write("database_url", good.render_as_string(hide_password=False))
        os.kill(service.pid, signal.SIGHUP)
        async with client_of(service.url) as client:
            await eventually(partial(_is_answered, client))


async def test_sighup_while_processes_start_ends_none_of_them(migrated: str, tmp_path: Path) -> None:
    files = Files(tmp_path, secret_keys=OLD)
    with Processes(tmp_path, **files.settings) as processes:
        service = await processes._listening(
            *("serve", "--port", "0", "--no-loops", "--workers", "2"),
            database_url=migrated,
            upstream_url="http://127.0.0.1:9",
        )
        await eventually(lambda: len(service.children) > 1)
        files.write("secret_keys", f"{NEW},{OLD}")
        os.kill(service.pid, signal.SIGHUP)
        await _everywhere(service, partial(_signs_with, NEW))
        # One that is started later has the new secrets too, whatever has become of their file.
        (tmp_path / "secret_keys").unlink()
        os.kill(_server_processes(service)[0], signal.SIGKILL)
        await eventually(lambda: "server_process_replaced" in service.log)
        await _everywhere(service, partial(_signs_with, NEW))
        log = service.log

    assert log.count("server_process_replaced") == 1


# Runs a command up to its first import of the service; the code says whether SIGHUP is blocked by then.
UNTIL_IMPORTED = """
import os, signal, sys
from app.cli.main import main
def watch(event, arguments):
    if event == "import" and arguments[0] in ("app.observability.logging", "app.server", "app.lifecycle"):
        os._exit(40 + (signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, ())))
sys.addaudithook(watch)
main(sys.argv[1:])
"""


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_sighup_waits_from_before_the_service_is_imported(command: str) -> None:
    ended = subprocess.run([sys.executable, "-c", UNTIL_IMPORTED, command], cwd=ROOT, timeout=30, check=False)

    assert ended.returncode == 41


@pytest.fixture
def migrated(migrated_sqlite: Path, tmp_path: Path) -> str:
    file = tmp_path / "soundpost.db"
    file.write_bytes(migrated_sqlite.read_bytes())
    return f"sqlite+aiosqlite:///{file}"


async def _everywhere(service: Process, is_so: Callable[[httpx.AsyncClient], Awaitable[bool]]) -> None:
    """Wait until this holds at every process of a service: each connection may reach another one."""

    async def ten_times() -> bool:
        for _ in range(10):
            async with client_of(service.url) as client:
                try:
                    if not await is_so(client):
                        return False
                except httpx.TransportError:
                    return False
        return True

    await eventually(ten_times, within=30)


async def _signs_with(key: str, client: httpx.AsyncClient) -> bool:
    challenge = uuid4().hex
    return (await client.get(f"/callbacks/{challenge}")).text == Keyring(key).prove_reach(challenge)


async def _answers(key: str, status: int, client: httpx.AsyncClient) -> bool:
    return (await client.get("/v1/tasks", headers={"Authorization": f"Bearer {key}"})).status_code == status


async def _is_answered(client: httpx.AsyncClient) -> bool:
    return (await client.get("/v1/tasks")).is_success


async def _is_ready_to(state: str, client: httpx.AsyncClient) -> bool:
    checks: Json = (await client.get("/readyz")).json()["checks"]
    return bool(checks["queue"]["status"] == state)


def _signed(key: str) -> Json:
    at = int(time.time())
    signature = base64.b64encode(hmac.digest(key.encode(), f"up-1.{at}".encode(), hashlib.sha256)).decode()
    body = {"code": 200, "msg": "text", "data": {"callbackType": "text", "task_id": "up-1", "data": []}}
    return {"json": body, "headers": {"X-Webhook-Timestamp": str(at), "X-Webhook-Signature": signature}}


def _server_processes(service: Process) -> list[int]:
    return [pid for pid in service.children if b"--multiprocessing-fork" in Path(f"/proc/{pid}/cmdline").read_bytes()]
