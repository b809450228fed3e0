"""The problem document of every kind of exception."""

import json
import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Query
from pydantic import AfterValidator, BaseModel, Field
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app import errors
from app.errors import (
    AppError,
    FieldError,
    InternalError,
    InvalidRequest,
    NotFound,
    TaskNotFinal,
    UpstreamUnavailable,
)
from app.web import EdgeMiddleware, StrictModel, install_error_handlers
from app.web.problems import pointer_to, problem

SECRET = "hunter2-canary-hunter2"


def refuse_politely(value: str) -> str:
    raise ValueError(f"{value} is not what we hoped for")


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Order(StrictModel):
    count: int = 1
    words: list[str] = Field(default_factory=list)
    pairs: dict[str, int] = Field(default_factory=dict)
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None
    id: Annotated[uuid.UUID, Field(strict=False)] | None = None
    taste: Annotated[str, AfterValidator(refuse_politely)] | None = None


def bare_app() -> FastAPI:
    app = FastAPI()
    install_error_handlers(app)
    app.add_middleware(EdgeMiddleware)
    return app


def app_with(endpoint: Callable[..., Awaitable[Any]], method: str = "GET") -> FastAPI:
    app = bare_app()
    app.add_api_route("/it", endpoint, methods=[method])
    return app


async def ask(app: FastAPI, method: str = "GET", url: str = "/it", **options: Any) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://soundpost.test") as client:
        return await client.request(method, url, **options)


async def raised(error: Exception) -> httpx.Response:
    async def endpoint() -> None:
        raise error

    return await ask(app_with(endpoint))


async def order(body: Any) -> httpx.Response:
    async def endpoint(data: Order) -> Order:
        return data

    return await ask(app_with(endpoint, "POST"), "POST", json=body)


def read(response: Response) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(bytes(response.body))
    return body


@pytest.mark.parametrize("case", errors.cases(), ids=lambda case: case.__name__)
def test_every_error_has_its_own_title_and_is_in_the_drawing(case: type[AppError]) -> None:
    answer = problem(case())

    assert case.advice
    assert read(answer) == {
        "type": f"/problems/{case.slug}",
        "title": case.title,
        "status": case.status,
        "detail": case.advice,
    }
    assert answer.status_code == case.status
    assert answer.media_type == "application/problem+json"
    assert re.search(rf"── {case.__name__} +{case.status}\b", errors.__doc__ or "")


def test_no_two_cases_share_a_slug() -> None:
    slugs = [case.slug for case in errors.cases()]

    assert len(slugs) == len(set(slugs))


def test_a_problem_carries_detail_fields_headers_and_members() -> None:
    field: FieldError = {"pointer": "#/prompt", "detail": "Too long"}
    error = UpstreamUnavailable(
        "It said no.", errors=[field], headers={"Retry-After": "30"}, upstream_code=500, upstream_message="busy"
    )

    answer = problem(error)

    assert read(answer) == {
        "type": "/problems/upstream-unavailable",
        "title": "The upstream gave no usable answer.",
        "status": 502,
        "detail": "It said no.",
        "upstream_code": 500,
        "upstream_message": "busy",
        "errors": [field],
    }
    assert answer.headers["retry-after"] == "30"
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("letter", ["a", "\x00", "\ud800", "\u2028", "語", "😀", '"'])
def test_a_problem_never_exceeds_two_kilobytes(letter: str) -> None:
    field: FieldError = {"pointer": pointer_to(["x" * 80, letter * 9000]), "detail": letter * 9000}

    answer = problem(UpstreamUnavailable(letter * 9000, errors=[field] * 500, upstream_message=letter * 9000))

    assert len(answer.body) <= 2000
    assert read(answer)["errors"][0]["pointer"] == "#/" + "x" * 80


@pytest.mark.parametrize(
    ("tokens", "pointer"),
    [
        ([], "#"),
        (["prompt"], "#/prompt"),
        (["metadata", "a/b~c"], "#/metadata/a~1b~0c"),
        (["words", 3], "#/words/3"),
        (["a b%\x00\n"], "#/a%20b%25%00%0A"),
        (["ключ"], "#/%D0%BA%D0%BB%D1%8E%D1%87"),
        (["metadata", "k" * 1000], "#/metadata"),
    ],
)
def test_a_pointer_is_a_uri_fragment_of_bounded_length(tokens: list[str | int], pointer: str) -> None:
    assert pointer_to(tokens) == pointer


async def test_our_own_errors_are_answered_as_problems() -> None:
    answer = await raised(TaskNotFinal("It is still generating."))

    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"] == "It is still generating."


async def test_absent_routes_and_absent_things_read_alike() -> None:
    thing, route = await raised(NotFound()), await ask(bare_app())

    assert thing.content == route.content
    assert {**thing.headers, "x-request-id": ""} == {**route.headers, "x-request-id": ""}


@pytest.mark.parametrize("method", ["POST", "PUT", "HEAD", "OPTIONS", "TRACE"])
async def test_a_wrong_method_is_answered_with_every_right_one(method: str) -> None:
    async def endpoint(thing_id: str) -> None: ...

    router = APIRouter(prefix="/v1")
    for right in ("GET", "DELETE"):
        router.add_api_route("/things/{thing_id}", endpoint, methods=[right])
    app = bare_app()
    app.include_router(router)

    answer = await ask(app, method, "/v1/things/7")

    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, DELETE"
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("body", "pointer", "detail"),
    [
        ({"count": True}, "#/count", "Input should be a valid integer"),
        ({"count": "1"}, "#/count", "Input should be a valid integer"),
        ({"count": 1.5}, "#/count", "Input should be a valid integer"),
        ({SECRET: 1}, f"#/{SECRET}", "Extra inputs are not permitted"),
        ({"words": ["a", 1]}, "#/words/1", "Input should be a valid string"),
        ({"pairs": {"a/b": "x"}}, "#/pairs/a~1b", "Input should be a valid integer"),
        ({"pet": {"kind": SECRET}}, "#/pet", "This value cannot be accepted"),
        ({"id": SECRET}, "#/id", "This value cannot be accepted"),
        ({"taste": SECRET}, "#/taste", "This value cannot be accepted"),
        ([SECRET], "#", "Input should be a valid dictionary or object to extract fields from"),
    ],
)
async def test_a_refusal_names_the_field_and_never_quotes_its_value(body: Any, pointer: str, detail: str) -> None:
    answer = await order(body)

    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"pointer": pointer, "detail": detail}]


async def test_a_huge_wrong_body_gets_a_small_answer() -> None:
    answer = await order({"words": list(range(12_000))})

    assert answer.status_code == 422
    assert answer.json()["errors"][0] == {"pointer": "#/words/0", "detail": "Input should be a valid string"}
    assert len(answer.content) <= 2000


async def test_a_wrong_parameter_is_named_with_its_place() -> None:
    async def endpoint(limit: Annotated[int, Query(le=200)] = 50) -> int:
        return limit

    answer = await ask(app_with(endpoint), url="/it?limit=201")

    assert answer.status_code == 422
    assert answer.json()["errors"] == [
        {"pointer": "#/query/limit", "detail": "Input should be less than or equal to 200"}
    ]


async def test_a_missing_body_is_unreadable() -> None:
    async def endpoint(data: Order) -> Order:
        return data

    answer = await ask(app_with(endpoint, "POST"), "POST")

    assert answer.status_code == 400
    assert answer.json()["type"] == "/problems/unreadable-body"


@pytest.mark.parametrize(("status", "expected"), [(400, 400), (404, 404), (413, 413), (418, 500)])
async def test_errors_of_the_framework_become_our_problems(status: int, expected: int) -> None:
    answer = await raised(HTTPException(status, detail=SECRET))

    assert answer.status_code == expected
    assert answer.headers["content-type"] == "application/problem+json"
    assert SECRET not in answer.text


class DriverError(Exception):
    def __init__(self, sqlstate: str | None = None, cause: Exception | None = None) -> None:
        self.sqlstate = sqlstate
        self.__cause__ = cause


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OperationalError("select 1", {}, DriverError()), 503),
        (InterfaceError("select 1", {}, DriverError()), 503),
        (DBAPIError("select 1", {}, DriverError(), connection_invalidated=True), 503),
        (DBAPIError("select 1", {}, DriverError("40001")), 503),
        (DBAPIError("select 1", {}, DriverError("53100")), 503),
        (DBAPIError("select 1", {}, DriverError("57P03")), 503),
        (DBAPIError("select 1", {}, DriverError("26000")), 503),
        (DBAPIError("select 1", {}, DriverError("42P05")), 503),
        (DBAPIError("select 1", {}, DriverError("25P03")), 503),
        (DBAPIError("select 1", {}, DriverError("22P05")), 500),
        (InterfaceError("select 1", {}, DriverError(cause=ValueError("value out of int32 range"))), 500),
        (IntegrityError("insert", {}, DriverError("23505")), 500),
        (ConnectionResetError("not from the database"), 500),
    ],
)
async def test_only_a_database_that_is_away_is_a_503(error: Exception, status: int) -> None:
    answer = await raised(error)

    assert answer.status_code == status
    assert answer.headers.get("retry-after") == ("2" if status == 503 else None)
    assert "select" not in answer.text


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_database_that_cannot_be_reached_is_a_503(driver: str) -> None:
    async def endpoint() -> None:
        engine = create_async_engine(f"postgresql+{driver}://u@127.0.0.1:1/x")
        async with engine.connect() as connection:
            await connection.execute(text("select 1"))

    answer = await ask(app_with(endpoint))

    assert answer.status_code == 503
    assert answer.json()["type"] == "/problems/database-unavailable"
    assert answer.headers["retry-after"] == "2"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_slow_statement_is_no_database_that_is_away(database_url: str, driver: str) -> None:
    engine = create_async_engine(make_url(database_url).set(drivername=f"postgresql+{driver}"))

    async def endpoint() -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SET statement_timeout = '50ms'"))
            await connection.execute(text("SELECT pg_sleep(60)"))

    answer = await ask(app_with(endpoint))
    await engine.dispose()

    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/statement-timed-out")
    assert answer.headers["retry-after"] == "2"


async def test_a_pool_without_a_free_connection_is_a_503(tmp_path: Path) -> None:
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{tmp_path}/one.db", pool_size=1, max_overflow=0, pool_timeout=0.05
    )

    async def endpoint() -> None:
        async with engine.connect():
            pass

    async with engine.connect():
        answer = await ask(app_with(endpoint))
    await engine.dispose()

    assert answer.status_code == 503


async def test_an_unexpected_error_shows_the_caller_nothing_and_logs_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        answer = await raised(KeyError(SECRET))

    assert answer.status_code == 500
    assert answer.json() == {
        "type": "/problems/internal-error",
        "title": "Something failed on our side.",
        "status": 500,
        "detail": InternalError.advice,
    }
    (record,) = caplog.records
    assert re.fullmatch(
        r"request failed: KeyError at test_exception_handlers\.py:\d+ endpoint < middleware\.py:\d+ __call__",
        record.getMessage(),
    )
    assert record.exc_info is None
    assert SECRET not in caplog.text


async def test_errors_that_ended_a_request_are_not_logged_when_they_are_the_callers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        await raised(InvalidRequest("No."))

    assert caplog.records == []
