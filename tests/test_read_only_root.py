"""A process whose whole file system is read-only but for var and the temporary folder does all of its work."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from moto.server import ThreadedMotoServer

from tests.support.api import client_of, create_task
from tests.support.processes import Processes, free_port
from tests.support.service import is_archived
from tests.support.settings import ROOT
from tests.support.wait import eventually

# `make proof` runs these: they need namespaces, which a machine may keep from its users.
pytestmark = pytest.mark.slow
# Mounts are those of the process alone. All that is writable is a mount of its own.
CONFINED = """
set -e
mount --make-rprivate /
for folder in $WRITABLE; do mount -t tmpfs tmpfs $folder; done
mount -o remount,bind,ro /
for kept in /tmp /root /home; do
    if mountpoint -q $kept; then mount -o remount,bind,ro $kept; fi
done
cd .
if touch here /tmp/here 2>/dev/null; then echo "it can be written to" >&2; exit 1; fi
exec "$@"
"""


@asynccontextmanager
async def confined(
    folder: Path, writable: list[Path], environment: dict[str, str], *command: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a command of `soundpost` that can write to these folders and nowhere else; it must end well when stopped."""
    log = folder / f"{command[0]}.log"
    # The files of these imports are not cached: nobody could write them.
    given = {**environment, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    given["WRITABLE"] = " ".join(map(str, writable))
    # Root needs no namespace of users, in which the sockets of others would be out of reach.
    as_root = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    soundpost = sys.executable, "-m", "app.cli", *command
    with log.open("w") as file:
        process = await asyncio.create_subprocess_exec(
            *("unshare", *as_root, "--mount", "/bin/sh", "-c", CONFINED, "sh", *soundpost),
            cwd=folder,
            env=given,
            stdout=file,
            stderr=file,
        )
    try:
        yield process
        assert process.returncode is None, log.read_text()
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0, log.read_text()
        assert "Read-only file system" not in log.read_text()
    except BaseException:
        print(log.read_text()[-4000:])
        raise
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_one_process_on_sqlite_writes_to_var_alone(tmp_path: Path) -> None:
    var, port = tmp_path / "var", free_port()
    var.mkdir()
    with Processes(tmp_path) as processes:
        sandbox = await processes.sandbox()
        url = f"http://127.0.0.1:{port}"
        environment = processes.environment(upstream_url=sandbox.url, public_url=url, secret_keys=None)
        # Not even a temporary folder: downloads are spooled beside the audio.
        async with confined(tmp_path, [var], environment, "serve", "--port", str(port)):
            await _order_and_download(url)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_processes_on_postgresql_and_s3_write_to_the_temporary_folder_alone(
    database_url: str, tmp_path: Path
) -> None:
    tmp, other_tmp, port = tmp_path / "tmp", tmp_path / "other-tmp", free_port()
    tmp.mkdir()
    other_tmp.mkdir()
    s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    try:
        host, s3_port = s3.get_host_and_port()
        async with httpx.AsyncClient(trust_env=False) as aws_client:
            (await aws_client.put(f"http://{host}:{s3_port}/audio")).raise_for_status()
        aws = {
            "AWS_ENDPOINT_URL": f"http://{host}:{s3_port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }
        with Processes(tmp_path, database_url=database_url, storage_url="s3://audio/ours") as processes:
            sandbox = await processes.sandbox()
            url = f"http://127.0.0.1:{port}"
            environment = {**processes.environment(upstream_url=sandbox.url, public_url=url), **aws}
            serving = "serve", "--port", str(port), "--no-loops", "--workers", "2"
            async with (
                confined(tmp_path, [tmp], {**environment, "TMPDIR": str(tmp)}, *serving),
                confined(tmp_path, [other_tmp], {**environment, "TMPDIR": str(other_tmp)}, "worker"),
            ):
                await _order_and_download(url)
    finally:
        s3.stop()


async def _order_and_download(url: str) -> None:
    """Wait for the service, and take a task through to its audio."""
    async with client_of(url) as client:

        async def is_ready() -> bool:
            try:
                return (await client.get("/readyz")).is_success
            except httpx.TransportError:
                return False

        await eventually(is_ready, within=60)
        task = await create_task(client)

        async def has_audio() -> bool:
            return is_archived((await client.get(f"/v1/tasks/{task['id']}")).json())

        await eventually(has_audio, within=40)
        ready = (await client.get("/readyz")).json()
        audio = await client.get(f"/v1/tasks/{task['id']}/clips/0/audio")

    assert ready["status"] == "ok", ready
    assert audio.content.startswith(b"RIFF")


def test_image_needs_no_more_than_these() -> None:
    """The test stands for the image: it, too, has var alone, and its current folder is the one above."""
    dockerfile = (ROOT / "Dockerfile").read_text()

    assert "WORKDIR /app\n" in dockerfile
    assert "VOLUME /app/var\n" in dockerfile
    assert "PYTHONDONTWRITEBYTECODE=1" in dockerfile
