"""The OpenAPI document: reviewed as a snapshot, and good enough to make clients from."""

import json
from typing import Any

from app.config import Settings
from app.errors import cases
from app.main import create_app
from app.services import build_services
from tests.api.document import SNAPSHOT, document, operations
from tests.support.service import Service


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


def test_no_field_of_a_request_has_a_default_for_which_generators_require_it() -> None:
    schemas = document()["components"]["schemas"]
    requests = [schemas[name]["properties"] for name in ("TaskCreate", "EndpointCreate", "EndpointUpdate")]

    assert [name for fields in requests for name, field in fields.items() if "default" in field] == []
    assert requests[0]["sound_loop"]["description"].endswith("`false` unless given.")


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


_SETTINGS = {"_env_file": None, "upstream_api_key": "none", "secret_keys": "a-secret-of-sixteen"}


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
