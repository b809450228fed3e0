"""Bad input on every operation of the document: never a 5xx, always a problem, and fields are named."""

from typing import Any

import httpx
import pytest

from app.enums import TaskStatus
from tests.api.document import operations
from tests.support.service import Service

JSON = {"content-type": "application/json"}
ID = "01a2044c4ed17520a475c896c407af74"
FINAL_SUMMARIES = (
    '{"prompt": %s}',
    '{"url": %s}',
    '{"since": %s}',
    '{"prompt": "a", "metadata": {"k": %s}}',
    '{"x": %s}',
)
VALUES = ("1e309", "-1e400", "NaN", "Infinity", r'"\ud800"', r'"\u0000"', "[[[]]]", "{}", "1" + "0" * 400, "true")

# Body, headers, and the statuses that are an answer to it.
BODIES: list[tuple[bytes, dict[str, str], set[int]]] = [
    (b"", JSON, {400, 422}),
    (b"{", JSON, {400}),
    (b"\xff", JSON, {400}),
    (b"null", JSON, {400, 422}),
    (b"[]", JSON, {422}),
    (b'"text"', JSON, {422}),
    (b"[" * 10_000, JSON, {400}),
    (b'{"a":' * 70 + b"1" + b"}" * 70, JSON, {400}),
    (b'{"prompt": "a", "prompt": "b"}', JSON, {422}),
    (b'{"prompt": "' + b"x" * 70_000 + b'"}', JSON, {413}),
    (b"{}", {"content-type": "text/plain"}, {415}),
    (b"{}", {"content-type": "application/json; charset=utf-16"}, {415}),
    (b"{}", {**JSON, "content-encoding": "gzip"}, {415}),
    *((ending.replace("%s", value).encode(), JSON, {400, 422}) for ending in FINAL_SUMMARIES for value in VALUES),
]
QUERIES = ["\0", "%ff", "%zz", "\ud800", "-1", "1e9", "9" * 400, "x" * 2_000, "'; --", "NaN", "😀", "a=b", "[]"]
HEADERS: dict[str, list[bytes]] = {
    "Idempotency-Key": [b"", b"\xff", b"x" * 256, b'"', b'"a', b"a\tb", "é".encode()],
    "If-None-Match": [b"", b"\xff", b'"', b"," * 3_000],
    "Prefer": [b"wait", b"wait=-1", b"wait=1e9", b"\xff", b"," * 3_000, b"wait=99999999999999999999x"],
    "Last-Event-ID": [b"\xff", b"x" * 3_000],
    "Accept": [b"", b"\xff", b"text/event-stream;q=9", b"," * 3_000, b"image/png"],
    "Range": [b"\xff", b"bytes=9-1"],
}


async def test_no_body_is_a_failure_of_ours(service: Service) -> None:
    for method, path in _paths():
        if method not in ("POST", "PUT", "PATCH") or path.startswith("/api/"):
            continue
        takes_a_body = await _takes_a_body(method, path)
        for body, headers, statuses in BODIES:
            answer = await service.client.request(method, path, content=body, headers=headers)
            _assert_problem(answer, method, path, body[:60])
            # Whoever is no admin is refused, whatever the body is.
            if takes_a_body and path.count(ID) == 0 and not path.startswith("/v1/keys/"):
                assert answer.status_code in statuses, (method, path, body[:60], answer.text)


async def test_no_query_is_a_failure_of_ours(service: Service) -> None:
    for method, path, operation in operations():
        at = _filled(path)
        names = [parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "query"]
        for name in names or ["unknown"]:
            for value in QUERIES:
                escaped = value if value.startswith("%") else _escaped(value)
                answer = await service.client.request(method, f"{at}?{name}={escaped}")
                _assert_problem(answer, method, at, f"{name}={value!r}")
                if answer.status_code == 422:
                    assert any(name in error["pointer"] for error in answer.json()["errors"]) or "body" in answer.text


async def test_no_header_is_a_failure_of_ours(service: Service) -> None:
    for method, path, operation in operations():
        path = _filled(path)
        told = {parameter["name"].lower() for parameter in operation.get("parameters", ())}
        for name, values in HEADERS.items():
            for value in values if name.lower() in told else values[1:2]:
                sent = [(name.encode(), value), (b"content-type", b"application/json")]
                body = b'{"prompt": "rain", "url": "https://example.com/"}' if method in ("POST", "PATCH") else b""
                answer = await service.client.request(method, path, headers=sent, content=body)
                _assert_problem(answer, method, path, (name, value[:40]))


async def test_bad_idempotency_key_is_refused_by_its_name(service: Service) -> None:
    for value in HEADERS["Idempotency-Key"]:
        sent = [(b"Idempotency-Key", value), (b"content-type", b"application/json")]
        answer = await service.client.post("/v1/tasks", headers=sent, content=b'{"prompt": "rain"}')
        assert (answer.status_code, _pointers(answer)) == (422, ["#/header/Idempotency-Key"]), value
    twice = [(b"Idempotency-Key", b"a"), (b"Idempotency-Key", b"b")]
    answer = await service.client.post("/v1/tasks", headers=twice, json={"prompt": "rain"})
    assert (answer.status_code, _pointers(answer)) == (422, ["#/header/Idempotency-Key"])


async def test_other_methods_are_405_and_name_those_that_work(service: Service) -> None:
    documented: dict[str, set[str]] = {}
    for method, path, _ in operations():
        documented.setdefault(path, set()).add(method)

    for path, methods in documented.items():
        if path.startswith("/api/"):
            continue
        methods |= {"HEAD"} if "GET" in methods else set()
        for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"} - methods:
            answer = await service.client.request(method, _filled(path))
            if answer.status_code == 404 and path.startswith("/callbacks"):
                continue
            assert answer.status_code == 405, (method, path)
            assert methods <= set(answer.headers["allow"].split(", ")), (method, path)


@pytest.mark.parametrize(
    ("method", "path", "pointers"),
    [
        ("GET", "/v1/tasks?stauts=failed&limit=2", ["#/query/stauts"]),
        ("GET", "/v1/tasks?limit=1&limit=2", ["#/query/limit"]),
        ("GET", "/v1/tasks?metadata.a=1&metadata.a=2", ["#/query/metadata.a"]),
        ("GET", "/v1/tasks?metadata.a=1&meta.b=2&x=", ["#/query/meta.b", "#/query/x"]),
        ("HEAD", "/v1/usage?until=2026-01-01T00:00:00Z&from=x", None),
        ("POST", "/v1/tasks?wait=5", ["#/query/wait"]),
        ("GET", f"/v1/tasks/{ID}/clips/0/audio?expires=1&signature=a&download=1", ["#/query/download"]),
        ("GET", f"/v1/tasks/{ID}/clips/0/audio?expires=1&expires=2&signature=a", ["#/query/expires"]),
        ("GET", "/v1/deliveries?state=pending", ["#/query/state"]),
    ],
)
async def test_unknown_or_repeated_query_parameter_is_named(
    service: Service, method: str, path: str, pointers: list[str] | None
) -> None:
    body = {"json": {"prompt": "rain"}} if method == "POST" else {}

    answer = await service.client.request(method, path, **body)  # type: ignore[arg-type]

    assert answer.status_code == 422
    if pointers is not None:
        assert _pointers(answer) == pointers
    assert (await service.client.get("/v1/tasks")).json()["items"] == []


async def test_known_query_parameters_and_those_of_others_are_taken(service: Service) -> None:
    paths = [
        "/v1/tasks?status=failed&model=V5&limit=2&metadata.a=1&metadata.b=2&created_after=2026-01-01T00:00:00Z",
        "/v1/usage?since=2026-01-01T00:00:00Z&until=2026-02-01T00:00:00Z",
        "/v1/webhook-endpoints?limit=2",
        "/v1/deliveries?status=pending&limit=2",
        # The vendor's clients and probes may add their own.
        "/livez?verbose",
    ]

    assert [(await service.client.get(path)).status_code for path in paths] == [200] * len(paths)


async def test_head_is_answered_like_get_without_a_body(service: Service) -> None:
    task = await service.add_task(TaskStatus.succeeded)
    for path in {_filled(path, task.id) for method, path, _ in operations() if method == "GET"}:
        answers = [await service.client.request(method, path) for method in ("HEAD", "GET")]

        about_head, about_get = [_stable_parts(answer) for answer in answers]
        assert about_head == about_get, path
        assert answers[0].content == b"", path


async def test_head_of_a_stream_does_not_last(service: Service) -> None:
    task = await service.add_task(TaskStatus.generating)

    answer = await service.client.head(f"/v1/tasks/{task.id}/events", headers={"Accept": "text/event-stream"})

    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"


async def test_unacceptable_media_type_is_406_before_anything_is_done(service: Service) -> None:
    refused = ["text/html", "application/json;q=0", "image/*", "application/json;q=0, text/*"]
    taken = ["*/*", "application/*;q=0.1", "text/html, application/json", "text/html;q=0.9, */*;q=0.1", ""]

    answers = [await service.client.post("/v1/tasks", json={"prompt": "a"}, headers={"Accept": a}) for a in refused]
    others = [await service.client.get("/v1/tasks", headers={"Accept": accept}) for accept in taken]

    assert {(answer.status_code, answer.json()["type"]) for answer in answers} == {(406, "/problems/not-acceptable")}
    assert {answer.status_code for answer in others} == {200}
    assert others[0].json()["items"] == []


def _paths() -> list[tuple[str, str]]:
    return [(method, _filled(path)) for method, path, _ in operations()]


def _filled(path: str, task_id: str = ID) -> str:
    path = path.replace("{task_id}", task_id)
    for name in ("endpoint_id", "delivery_id"):
        path = path.replace(f"{{{name}}}", ID)
    return path.replace("{token}", "t").replace("{index}", "0")


def _stable_parts(answer: httpx.Response) -> tuple[int, dict[str, str]]:
    """What two answers about one thing have in common; only their moments differ."""
    return answer.status_code, {
        name: value for name, value in answer.headers.items() if name not in ("date", "x-request-id")
    }


async def _takes_a_body(method: str, path: str) -> bool:
    return any((m, _filled(p)) == (method, path) and "requestBody" in o for m, p, o in operations())


def _escaped(value: str) -> str:
    return "".join(f"%{byte:02X}" for byte in value.encode("utf-8", "surrogatepass"))


def _assert_problem(answer: httpx.Response, *context: Any) -> None:
    # Asking for the credits of an account that is not reachable is the upstream's failure.
    assert answer.status_code < 500 or "upstream" in answer.text or "/credit" in str(answer.url), (context, answer.text)
    if answer.status_code >= 400 and "/api/" not in str(answer.url):
        assert answer.headers["content-type"] == "application/problem+json", (context, answer.text)
        assert len(answer.content) <= 2_000, context
        if answer.status_code == 422:
            assert answer.json().get("errors"), (context, answer.text)


def _pointers(answer: httpx.Response) -> list[str]:
    return [error["pointer"] for error in answer.json()["errors"]]
