"""One trace for the whole life of a task, whoever does the work, in which no secret has a place."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanKind, StatusCode, format_span_id, format_trace_id

from app.egress import plain_client
from app.observability.tracing import span, start_tracing, stop_tracing
from tests.support.receivers import receiving
from tests.support.rows import reread
from tests.support.service import Service, is_archived, serve, serve_with_sandbox
from tests.support.settings import KEY, SECRET_KEY
from tests.support.wait import eventually

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLER = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"}
PROMPT = "a canary that sings in the rain"
ATTEMPTS = {
    "submit": SpanKind.INTERNAL,
    "callback": SpanKind.CONSUMER,
    "archive": SpanKind.INTERNAL,
    "question": SpanKind.INTERNAL,
    "deliver": SpanKind.INTERNAL,
}
ROUTES = {
    "POST /v1/tasks",
    "GET /v1/tasks/{task_id}",
    "GET /v1/tasks/{task_id}/clips/{index}/audio",
    "POST /callbacks/{task_id}/{token}",
}


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """The spans that have ended, while this process traces."""
    exporter = InMemorySpanExporter()
    start_tracing(SimpleSpanProcessor(exporter))
    yield exporter
    stop_tracing()


async def test_a_task_is_one_trace_from_its_caller_to_its_webhook(
    database_url: str, tmp_path: Path, spans: InMemorySpanExporter
) -> None:
    async with receiving() as receiver, serve_with_sandbox(database_url, tmp_path) as service:
        body = {"prompt": PROMPT, "webhook_url": receiver.url_at("/hook?secret=of-the-receiver"), "grab_lyrics": True}
        body["metadata"] = {"scene": "value-of-the-label"}
        order = (await service.client.post("/v1/tasks", json=body, headers=CALLER)).json()
        task = await service.until(order["id"], is_archived)
        await service.until(order["id"], lambda task: all(clip["lyrics"] for clip in task["clips"]))
        await receiver.until(1)
        [webhook] = receiver.requests
        await service.anonymous.get(task["clips"][0]["audio_url"])
        await eventually(lambda: "deliver" in names(spans))

    done = spans.get_finished_spans()
    [ordered] = [span for span in done if span.name == "POST /v1/tasks"]
    ours = [span for span in done if trace_of(span) == TRACE]
    assert (parent_of(ordered), trace_of(ordered), ordered.kind) == (PARENT, TRACE, SpanKind.SERVER)
    attempts = {name: [span for span in ours if span.name == name] for name in ATTEMPTS}
    assert {name: len(found) > 0 for name, found in attempts.items()} == dict.fromkeys(ATTEMPTS, True)
    for name, found in attempts.items():
        assert {(parent_of(span), span.kind) for span in found} == {(span_of(ordered), ATTEMPTS[name])}
        assert {span.attributes["soundpost.task_id"] for span in found if span.attributes} == {task["id"]}
        assert {span.status.status_code for span in found} == {StatusCode.UNSET}
    uploaded = {shown(span)["soundpost.upstream_task_id"] for name in ATTEMPTS for span in attempts[name]}
    assert uploaded == {task["upstream_task_id"]}
    [delivered], [submitted] = attempts["deliver"], attempts["submit"]
    assert webhook.headers["traceparent"] == f"00-{TRACE}-{span_of(delivered)}-01"
    assert webhook.headers["tracestate"] == CALLER["tracestate"]
    for attempt, status in ((delivered, 204), (submitted, 200)):
        [request] = [span for span in ours if parent_of(span) == span_of(attempt)]
        assert (request.name, request.kind) == ("POST", SpanKind.CLIENT)
        assert shown(request)["http.response.status_code"] == status
    assert shown(submitted)["soundpost.outcome"] == "ok"
    assert shown(delivered)["soundpost.status"] == "delivered"
    # The upstream sends no context: its requests are traces of their own, linked with the task's.
    calls = {span_of(span): span for span in done if span.name == "POST /callbacks/{task_id}/{token}"}
    linked = [format_span_id(link.context.span_id) for span in attempts["callback"] for link in span.links]
    assert set(linked) == set(calls)
    assert TRACE not in {trace_of(span) for span in calls.values()}
    back = [format_span_id(link.context.span_id) for span in calls.values() for link in span.links]
    assert set(back) == {span_of(span) for span in attempts["callback"]}
    token = service.services.keyring.callback_token(task["id"])
    secrets = {KEY, SECRET_KEY, token, PROMPT, "of-the-receiver", "value-of-the-label", "signature=", "/hook"}
    text = json.dumps([json.loads(span.to_json()) for span in done])
    assert {secret for secret in secrets if secret in text} == set()
    assert names(spans) <= {*ATTEMPTS, *ROUTES, "GET", "POST"}


async def test_calls_that_fail_are_spans_that_say_how(
    database_url: str, tmp_path: Path, spans: InMemorySpanExporter
) -> None:
    polling: dict[str, Any] = {"poll_after": 0, "poll_every": 0.1}
    async with receiving(500) as receiver, serve_with_sandbox(database_url, tmp_path, **polling) as service:
        refused = await service.create_task(f"{PROMPT} [fault:code-400]", webhook_url=receiver.url)
        lost = await service.create_task(f"{PROMPT} [fault:accept-then-reset,drop-callbacks]")
        absent = await service.create_task(f"{PROMPT} [fault:audio-404]")
        polled = await service.create_task(f"{PROMPT} [fault:poll-500=1,drop-callbacks]")
        await eventually(lambda: {"deliver", "archive", "poll"} <= {span.name for span in failed(spans)})
        await service.until(lost, lambda task: task["status"] == "unconfirmed")
        await service.until(polled, lambda task: task["status"] == "succeeded")
        await service.anonymous.post(f"/callbacks/{lost}/{'x' * 32}", content=b"{}")

    found = {(span.name, shown(span).get("soundpost.task_id"), shown(span)["error.type"]) for span in failed(spans)}
    assert found >= {
        ("submit", refused, "invalid"),
        ("submit", lost, "ambiguous"),
        ("archive", absent, "failed"),
        ("poll", polled, "failed"),
        ("deliver", refused, "500"),
    }
    # Without its message, which may hold what others sent.
    assert {span.status.description for span in failed(spans)} == {None}
    assert [event for span in spans.get_finished_spans() for event in span.events] == []
    assert "x" * 32 not in json.dumps([json.loads(span.to_json()) for span in spans.get_finished_spans()])


async def test_requests_to_strangers_carry_no_context(spans: InMemorySpanExporter) -> None:
    async with receiving() as stranger, plain_client(timedelta(seconds=5)) as client:
        with span("submit", CALLER):
            await client.post(stranger.url, json={})

    [request] = stranger.requests
    assert {"traceparent", "tracestate", "baggage"} & {*request.headers} == set()
    assert [trace_of(each) for each in spans.get_finished_spans()] == [TRACE, TRACE]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"traceparent": f"ff-{TRACE}-{PARENT}-01"},
        {"traceparent": f"00-{'0' * 32}-{PARENT}-01"},
        {"traceparent": f"00-{TRACE}-{'0' * 16}-01"},
        {"traceparent": f"00-{TRACE.upper()}-{PARENT}-01"},
        {"traceparent": f"00-{TRACE}-{PARENT}-01-more"},
        {"traceparent": f"00-{TRACE}-{PARENT}"},
        {"traceparent": "nonsense", "tracestate": "a=1"},
        {"tracestate": "a=1"},
        [("traceparent", CALLER["traceparent"]), ("traceparent", f"00-{TRACE}-{'1' * 16}-01")],
    ],
)
@pytest.mark.parametrize("traces", [False, True])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_context_that_is_none_is_not_continued(service: Service, headers: Any, traces: bool) -> None:
    exporter = InMemorySpanExporter()
    if traces:
        start_tracing(SimpleSpanProcessor(exporter))
    try:
        async with serve(service.database.url) as other:
            order = await other.client.post("/v1/tasks", json={"prompt": PROMPT}, headers=headers)
    finally:
        stop_tracing()

    kept = (await reread(service.database, order.json()["id"])).trace_context
    ordered = [trace_of(span) for span in exporter.get_finished_spans() if span.name == "POST /v1/tasks"]
    assert (kept or {}).keys() == ({"traceparent"} if traces else set())
    assert [TRACE in each for each in ordered] == [False] * traces


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["congo=t61,rojo=1"], "congo=t61,rojo=1"),
        (["congo=t61", "rojo=1"], "congo=t61,rojo=1"),
        (["a=1,a=2"], None),
        (["A=1"], None),
        ([",".join(f"k{number}=1" for number in range(33))], None),
        (["", "a=1"], "a=1"),
        # Of more than 512 characters the long members go first, then the last ones.
        ([f"a=1,long={'x' * 200},b={'y' * 100},c={'z' * 200},d=2"], f"a=1,b={'y' * 100},d=2"),
        ([",".join(f"{key}={'x' * 100}" for key in "abcdef")], ",".join(f"{key}={'x' * 100}" for key in "abcd")),
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_state_is_kept_as_far_as_it_is_valid_and_short(
    service: Service, given: list[str], kept: str | None
) -> None:
    headers = [("traceparent", CALLER["traceparent"]), *(("tracestate", each) for each in given)]
    order = await service.client.post("/v1/tasks", json={"prompt": PROMPT}, headers=headers)

    context = (await reread(service.database, order.json()["id"])).trace_context
    assert context == {"traceparent": CALLER["traceparent"], **({"tracestate": kept} if kept else {})}


async def test_without_tracing_the_callers_context_reaches_its_webhook_as_it_came(
    database_url: str, tmp_path: Path
) -> None:
    async with receiving() as receiver, serve_with_sandbox(database_url, tmp_path) as service:

        async def order(path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
            return (await service.client.post(path, json=body, headers=headers)).raise_for_status()

        body = {"prompt": PROMPT, "webhook_url": receiver.url_at("/plain")}
        await order("/v1/tasks", body, **CALLER)
        keyed = {**body, "webhook_url": receiver.url_at("/keyed")}
        await order("/v1/tasks", keyed, **{**CALLER, "Idempotency-Key": "k"})
        other = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "Idempotency-Key": "k"}
        again = await order("/v1/tasks", keyed, **other)
        vendors = {"prompt": PROMPT, "model": "V5", "callBackUrl": receiver.url_at("/vendor")}
        await order("/api/v1/generate/sounds", vendors, **CALLER)
        await order("/v1/tasks", {**body, "webhook_url": receiver.url_at("/untraced")})
        paths = {"/plain", "/keyed", "/vendor", "/untraced"}
        await eventually(lambda: {request.path for request in receiver.requests} == paths)

    assert again.headers["idempotency-replayed"] == "true"
    sent = {request.path: {name: request.headers.get(name) for name in CALLER} for request in receiver.requests}
    assert sent == {
        "/plain": CALLER,
        "/keyed": CALLER,
        "/vendor": CALLER,
        "/untraced": dict.fromkeys(CALLER),
    }


def failed(spans: InMemorySpanExporter) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.status.status_code is StatusCode.ERROR]


def names(spans: InMemorySpanExporter) -> set[str]:
    return {span.name for span in spans.get_finished_spans()}


def shown(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def trace_of(span: ReadableSpan) -> str:
    return format_trace_id((span.get_span_context() or INVALID_SPAN_CONTEXT).trace_id)


def span_of(span: ReadableSpan) -> str:
    return format_span_id((span.get_span_context() or INVALID_SPAN_CONTEXT).span_id)


def parent_of(span: ReadableSpan) -> str | None:
    return format_span_id(span.parent.span_id) if span.parent else None
