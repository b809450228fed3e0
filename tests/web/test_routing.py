"""What every route of the service has, whichever room it comes from."""

from collections.abc import Iterator, Mapping
from inspect import iscoroutinefunction

import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts

from app.config import Settings
from app.main import create_app
from app.services import build_services
from app.web.routing import RetryOnSerializationFailure


@pytest.fixture(scope="module")
def app() -> FastAPI:
    """The service as it is served."""
    given: Mapping[str, object] = {"_env_file": None, "upstream_api_key": "none", "secret_keys": "a-secret-of-sixteen"}
    return create_app(build_services(Settings(**given)))  # type: ignore[arg-type]


def test_every_route_retries_after_a_serialization_failure(app: FastAPI) -> None:
    others = [path for path, route in _routes(app) if not isinstance(route, RetryOnSerializationFailure)]

    assert len(list(_routes(app))) > 30
    assert others == []


def test_every_get_route_answers_head(app: FastAPI) -> None:
    methods: dict[str, set[str]] = {}
    for path, route in _routes(app):
        methods.setdefault(path, set()).update(route.methods or ())

    assert [path for path, found in methods.items() if "GET" in found and "HEAD" not in found] == []


def test_no_route_runs_in_a_thread(app: FastAPI) -> None:
    in_threads = {
        f"{path}: {dependant.call}"
        for path, route in _routes(app)
        for dependant in _dependants(route.dependant)
        if not (iscoroutinefunction(dependant.call) or iscoroutinefunction(type(dependant.call).__call__))
    }

    assert in_threads == set()


def _dependants(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for inner in dependant.dependencies:
        yield from _dependants(inner)


def _routes(app: FastAPI) -> Iterator[tuple[str, APIRoute]]:
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if isinstance(route, APIRoute):
            yield str(context.path), route
