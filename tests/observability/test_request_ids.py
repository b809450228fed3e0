"""Every response names its request, by the id under which the log knows it."""

import asyncio
import re
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from tests.support.service import Service, is_archived, serve_with_sandbox
from tests.support.settings import KEY

MADE = re.compile("[0-9a-f]{32}")
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-Request-Id: mine\r\n"
# The paths of a task, and of others, by what answers them.
ANSWERED = {
    "fast path": "/v1/tasks/{id}",
    "first page": "/v1/tasks",
    "route": "/v1/tasks/{id}?",
    "wait": "/v1/tasks/{id}/events",
    "file": "/v1/tasks/{id}/clips/0/audio",
    "not modified": "/openapi.json",
    "drop-in": "/api/v1/generate/record-info?taskId={id}",
    "envelope": "/api/v1/generate/record-info?taskId=nobody",
    "problem": "/v1/tasks/nobody",
    "no route": "/nowhere",
    "probe": "/livez",
    "page": "/docs",
}


async def test_every_answer_has_the_id_that_its_request_gave_or_a_new_one(database_url: str, tmp_path: Path) -> None:
    async with serve_with_sandbox(database_url, tmp_path) as service:
        task = await service.until(await service.create_task(), is_archived)
        paths = {what: path.format(id=task["id"]) for what, path in ANSWERED.items()}
        headers = {"wait": {"Accept": "text/event-stream"}}
        named = {
            what: await service.client.get(path, headers={"X-Request-Id": f"of-{number}", **headers.get(what, {})})
            for number, (what, path) in enumerate(paths.items())
        }
        unnamed = {what: await service.client.get(path, headers=headers.get(what)) for what, path in paths.items()}
        ordered = await service.client.post("/v1/tasks", json={"prompt": "x"}, headers={"X-Request-Id": "order:1"})
        reported = await service.anonymous.post(service.callback_path(task["id"]), content=b"?")
        forged = await service.anonymous.post(f"/callbacks/{task['id']}/{'x' * 32}", content=b"?")
        preflight = await service.anonymous.options(task["clips"][0]["audio_url"], headers={"X-Request-Id": "pre"})

    assert {what: answer.headers.get_list("x-request-id") for what, answer in named.items()} == {
        what: [f"of-{number}"] for number, what in enumerate(paths)
    }
    made = [answer.headers["x-request-id"] for answer in (*unnamed.values(), reported, forged)]
    assert len(set(made)) == len(paths) + 2
    assert all(MADE.fullmatch(each) for each in made)
    assert (ordered.headers["x-request-id"], preflight.headers["x-request-id"]) == ("order:1", "pre")


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a\tb", "<script>", "a,b", "é"])
async def test_an_id_that_is_not_plain_is_replaced(service: Service, given: str) -> None:
    answer = await service.client.get("/v1/tasks", headers={b"X-Request-Id": given.encode()})

    assert MADE.fullmatch(answer.headers["x-request-id"])


@pytest.mark.parametrize(
    ("head", "status", "request_id"),
    [
        (b"GARBAGE\r\n\r\n", b"400", MADE.pattern),
        (b"GET / HTTP/1.1\r\nX-Request-Id: mine\r\n\r\n", b"400", "mine"),
        # Read, or cut off before it is.
        (b"GET / HTTP/1.1\r\nX-Request-Id: mine\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", b"431", f"mine|{MADE.pattern}"),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", b"501", "mine"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nz\r\n", b"400", "mine"),
    ],
)
async def test_what_is_no_request_gets_an_id_too(service: Service, head: bytes, status: bytes, request_id: str) -> None:
    # Behind a request on the same connection, whose id is not that of the next.
    before = b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Request-Id: before\r\n\r\n"
    with capture_logs() as lines:
        first, answer = await _answers(service, before, head)

    [found] = re.findall(rb"(?i)\nx-request-id: (.*)\r", answer)
    assert b"before" in first
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert re.fullmatch(request_id, found.decode())
    assert found.decode() in {line.get("request_id") for line in lines}


async def test_pipelined_request_is_not_logged_as_its_predecessors(service: Service) -> None:
    known = f"GET /v1/tasks/x HTTP/1.1\r\nHost: x\r\nX-Request-Id: one\r\nAuthorization: Bearer {KEY}\r\n\r\n"
    stranger = "GET /v1/tasks/x HTTP/1.1\r\nHost: x\r\nX-Request-Id: two\r\nConnection: close\r\n\r\n"
    with capture_logs([structlog.contextvars.merge_contextvars]) as lines:
        await _answers(service, (known + stranger).encode())

    requests = {line["request_id"]: line.get("caller") for line in lines if line["event"] == "request"}
    assert requests == {"one": "tests", "two": None}


async def _answers(service: Service, *requests: bytes) -> list[bytes]:
    """What comes back for each of these, sent one after the other on one connection."""
    url = service.client.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    answers = []
    for request in requests:
        writer.write(request)
        is_last = request is requests[-1]
        async with asyncio.timeout(10):
            answers.append(await reader.read() if is_last else await reader.readuntil(b"\r\n\r\n"))
            length = 0 if is_last else int(re.findall(rb"(?i)content-length: (\d+)", answers[-1])[0])
            await reader.readexactly(length)
    writer.close()
    return answers
