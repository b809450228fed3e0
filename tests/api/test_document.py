"""The OpenAPI document: reviewed as a snapshot, and good enough to make clients from."""

import asyncio
import importlib
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.config import Settings
from app.errors import cases
from app.main import create_app
from app.services import build_services
from tests.api.document import SNAPSHOT, document, operations
from tests.support.api import until_final
from tests.support.processes import service_process
from tests.support.service import Service
from tests.support.settings import KEY
from tests.support.wait import eventually


def test_document_is_the_one_that_was_reviewed() -> None:
    current = json.dumps(document(), indent=1, ensure_ascii=False) + "\n"

    assert current == SNAPSHOT.read_text(), "if the change is meant: make openapi"


def test_every_operation_has_an_id_of_its_own() -> None:
    ids = [operation["operationId"] for _, _, operation in operations()]

    assert len(set(ids)) == len(ids)


def test_every_reference_leads_somewhere() -> None:
    whole = document()

    assert [reference for reference in _references(whole) if not _leads_somewhere(whole, reference)] == []


def test_every_status_is_described_with_its_body() -> None:
    whole = document()

    for _, path, operation in operations():
        for status, answer in operation["responses"].items():
            answer = _resolved(whole, answer)
            assert answer["description"]
            if status >= "400":
                assert answer["content"], (path, status)


def test_models_are_those_of_this_service() -> None:
    settings = Settings.model_validate({**_SETTINGS, "models": "V6,V5"})

    order = create_app(build_services(settings)).openapi()["components"]["schemas"]["TaskCreate"]

    assert order["properties"]["model"]["enum"] == ["V6", "V5", None]


async def test_each_problem_type_is_a_page(service: Service) -> None:
    for case in cases():
        page = await service.client.get(f"/problems/{case.slug}")
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert case.title in page.text or "'" in case.title

    assert (await service.client.get("/problems/nonsense")).status_code == 404


async def test_generated_client_creates_a_task_and_gets_its_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openapi.json").write_text(json.dumps(document()))
    (tmp_path / "config.json").write_text(json.dumps({"post_hooks": [], "content_type_overrides": _FILES}))
    generate = ["generate", "--path", "openapi.json", "--config", "config.json", "--meta", "none"]
    command = [sys.executable, "-m", "openapi_python_client", *generate, "--output-path", "soundpost_client"]
    made = await asyncio.to_thread(subprocess.run, command, cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "arning" not in made.stdout, made.stdout
    monkeypatch.syspath_prepend(tmp_path)
    client_room = importlib.import_module("soundpost_client")
    models = importlib.import_module("soundpost_client.models")
    calls = {name: importlib.import_module(f"soundpost_client.api.{tag}.{name}") for name, tag in _CALLS.items()}

    url = f"sqlite+aiosqlite:///{tmp_path}/soundpost.db"
    async with (
        service_process(url, tmp_path) as (http, _),
        client_room.AuthenticatedClient(base_url=str(http.base_url), token=KEY) as client,
    ):
        body = models.TaskCreate(prompt="soft rain", sound_tempo=90, sound_key=models.TaskCreateSoundKey.AM)
        ordered = await calls["create_task"].asyncio_detailed(client=client, body=body, idempotency_key="order-1")
        await until_final(http, ordered.parsed.id)
        task = await calls["get_task"].asyncio(ordered.parsed.id, client=client)
        page = await calls["list_tasks"].asyncio(client=client, status=models.TaskStatus.SUCCEEDED, limit=1)
        refused = await calls["cancel_task"].asyncio(ordered.parsed.id, client=client)
        await eventually(partial(_is_archived, http, ordered.parsed.id))
        audio = await calls["get_clip_audio"].asyncio(ordered.parsed.id, 0, client=client)

    assert (ordered.status_code, type(ordered.parsed)) == (202, models.TaskRead)
    assert (task.status, task.sound_tempo, len(task.clips) > 0) == (models.TaskStatus.SUCCEEDED, 90, True)
    assert [listed.id for listed in page.items] == [task.id]
    assert audio.payload.read(4) == b"RIFF"
    assert (type(refused), refused.type_) == (models.Problem, "/problems/task-already-final")


# The generator reads files of these types only if it is told that they are files.
_FILES = dict.fromkeys(["audio/mpeg", "image/png", "application/x-subrip"], "application/octet-stream")
_CALLS = {**dict.fromkeys(["create_task", "get_task", "list_tasks", "cancel_task"], "tasks"), "get_clip_audio": "clips"}
_SETTINGS = {"_env_file": None, "upstream_api_key": "none", "secret_keys": "a-secret-of-sixteen"}


async def _is_archived(client: httpx.AsyncClient, task_id: str) -> bool:
    clips = (await client.get(f"/v1/tasks/{task_id}")).json()["clips"]
    return clips[0]["archived_at"] is not None


def _references(value: Any) -> list[str]:
    if isinstance(value, list):
        return [reference for member in value for reference in _references(member)]
    if not isinstance(value, dict):
        return []
    own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
    return own + [reference for member in value.values() for reference in _references(member)]


def _leads_somewhere(whole: Any, reference: str) -> bool:
    place = whole
    for step in reference.removeprefix("#/").split("/"):
        if step not in place:
            return False
        place = place[step]
    return True


def _resolved(whole: Any, answer: dict[str, Any]) -> dict[str, Any]:
    name = answer.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = whole["components"]["responses"][name] if name else answer
    return found
