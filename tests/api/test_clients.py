"""Clients that generators make from the OpenAPI document order, wait, download and verify."""

import asyncio
import hashlib
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from tests.api.document import document
from tests.support.processes import service_process
from tests.support.receivers import receiving
from tests.support.settings import KEY

TYPESCRIPT = Path(__file__).with_name("typescript")
_TASKS = ["create_task", "get_task", "list_tasks", "cancel_task"]
CALLS = {**dict.fromkeys(_TASKS, "tasks"), "get_clip_audio": "clips", "get_webhook_secret": "webhooks"}


async def test_python_client_orders_waits_downloads_and_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openapi.json").write_text(json.dumps(document()))
    (tmp_path / "config.json").write_text(json.dumps({"post_hooks": []}))
    generate = ["generate", "--path", "openapi.json", "--config", "config.json", "--meta", "none"]
    made = await _run(
        tmp_path, sys.executable, "-m", "openapi_python_client", *generate, "--output-path", "soundpost_client"
    )
    assert "arning" not in made, made
    monkeypatch.syspath_prepend(tmp_path)
    client_room = importlib.import_module("soundpost_client")
    models = importlib.import_module("soundpost_client.models")
    calls = {name: importlib.import_module(f"soundpost_client.api.{tag}.{name}") for name, tag in CALLS.items()}

    url = f"sqlite+aiosqlite:///{tmp_path}/soundpost.db"
    async with (
        receiving() as receiver,
        service_process(url, tmp_path) as (http, _),
        client_room.AuthenticatedClient(base_url=str(http.base_url), token=KEY) as client,
    ):
        body = models.TaskCreate(prompt="soft rain", sound_key=models.TaskCreateSoundKey.AM, webhook_url=receiver.url)
        ordered = await calls["create_task"].asyncio_detailed(client=client, body=body, idempotency_key="order-1")
        task = await calls["get_task"].asyncio(ordered.parsed.id, client=client, prefer="wait=60")
        page = await calls["list_tasks"].asyncio(client=client, status=models.TaskStatus.SUCCEEDED, limit=1)
        refused = await calls["cancel_task"].asyncio(task.id, client=client)
        audio = (await calls["get_clip_audio"].asyncio(task.id, task.clips[0].index, client=client)).payload.read()
        clip = (await calls["get_task"].asyncio(task.id, client=client)).clips[0]
        secret = await calls["get_webhook_secret"].asyncio(client=client)
        await receiver.until(1)
        event = Webhook(secret.secret).verify(receiver.requests[0].body, receiver.requests[0].headers)

    assert (ordered.status_code, type(ordered.parsed)) == (202, models.OrderedTask)
    assert (task.status, len(task.clips) > 0) == (models.TaskStatus.SUCCEEDED, True)
    assert [listed.id for listed in page.items] == [task.id]
    assert (type(refused), refused.type_) == (models.Problem, "/problems/task-already-final")
    assert (audio[:4], hashlib.sha256(audio).hexdigest()) == (b"RIFF", clip.sha256)
    assert (event["type"], event["data"]["task"]["id"]) == ("task.succeeded", task.id)


async def test_typescript_client_orders_waits_downloads_and_verifies(tmp_path: Path) -> None:
    project = tmp_path / "client"
    shutil.copytree(TYPESCRIPT, project)
    (project / "openapi.json").write_text(json.dumps(document()))
    await _run(project, "npm", "ci", "--no-audit", "--no-fund", "--prefer-offline", "--ignore-scripts")
    bin_ = project / "node_modules" / ".bin"
    await _run(project, str(bin_ / "openapi-typescript"), "openapi.json", "--output", "soundpost.d.ts")
    await _run(project, str(bin_ / "tsc"))

    async with service_process(f"sqlite+aiosqlite:///{tmp_path}/soundpost.db", tmp_path) as (http, _):
        shown = await _run(project, "node", "built/tour.js", str(http.base_url).rstrip("/"), KEY)

    assert json.loads(shown) == {
        "status": "succeeded",
        "magic": "RIFF",
        "is_whole": True,
        "event": "task.succeeded",
        "is_same_task": True,
    }


async def _run(folder: Path, *command: str) -> str:
    """Run a command to its end in this folder; return what it printed."""
    done = await asyncio.to_thread(subprocess.run, command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
