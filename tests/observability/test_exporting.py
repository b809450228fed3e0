"""Traces leave real processes by OTLP, and a collector that does not take them disturbs nothing."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from app import __version__
from app.observability.tracing import client_span, is_tracing_wanted, span
from tests.support.api import client_of, create_task, until_final
from tests.support.processes import Processes, free_port
from tests.support.receivers import Received, full_backlog, receiving
from tests.support.settings import KEY, ROOT, UNREACHABLE
from tests.support.wait import eventually

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
# Modules that nobody needs without traces.
SDK = "opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto", "google.protobuf", "requests", "urllib3"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("has_port", [False, True])
async def test_every_process_exports_its_part_of_a_trace_before_it_ends(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_port: bool
) -> None:
    async with receiving() as collector, receiving() as receiver:
        monkeypatch.setenv(ENDPOINT, collector.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20canary-of-the-collector")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=tests")
        # Longer than the test: all that comes is flushed at the stop.
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
        with Processes(tmp_path, log_level="debug", log_format="json") as processes:
            sandbox = await processes.sandbox()
            service = await processes.serve(database_url, sandbox.url, "--no-loops", "--workers", "2")
            port = str(free_port()) if has_port else None
            worker = processes.worker(database_url, sandbox.url, public_url=service.url, worker_port=port)
            async with client_of(service.url, headers={"Authorization": f"Bearer {KEY}", **CALLER}) as client:
                task = await create_task(client, webhook_url=receiver.url)
                await until_final(client, task["id"])
            await receiver.until(1)
            before = len(collector.requests)
            assert [await worker.stop(), await service.stop()] == [0, 0]

    exported = [(resource, span) for request in collector.requests for resource, span in _spans(request)]
    ours = [(resource, span) for resource, span in exported if span.trace_id.hex() == TRACE]
    names = {span.name: resource["service.instance.id"] for resource, span in ours}
    assert before == 0
    assert {request.path for request in collector.requests} == {"/v1/traces"}
    assert {request.headers["authorization"] for request in collector.requests} == {"Bearer canary-of-the-collector"}
    assert set(names) >= {"POST /v1/tasks", "submit", "callback", "deliver", "POST"}
    assert names["submit"] == names["deliver"] != names["POST /v1/tasks"]
    assert {(each["service.name"], each["service.version"]) for each, _ in exported} == {("soundpost", __version__)}
    assert {each["deployment.environment.name"] for each, _ in exported} == {"tests"}
    # A line of the log names the span under which it was written, and no line the collector's secret.
    [submit] = [json.loads(line) for line in worker.log.splitlines() if '"event": "submit"' in line]
    assert (submit["trace_id"], submit["span_id"]) in {(TRACE, span.span_id.hex()) for _, span in ours}
    assert "canary-of-the-collector" not in worker.log + service.log


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("collector", ["is away", "is silent", "refuses"])
async def test_collector_that_takes_nothing_disturbs_nothing(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collector: str
) -> None:
    async with receiving(400) as refusing:
        with full_backlog() as silent, Processes(tmp_path, log_format="json", grace="2") as processes:
            monkeypatch.setenv(
                ENDPOINT, {"is away": UNREACHABLE, "is silent": silent, "refuses": refusing.url}[collector]
            )
            monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
            sandbox = await processes.sandbox()
            service = await processes.serve(database_url, sandbox.url)
            async with client_of(service.url) as client:
                for _ in range(3):
                    task = await until_final(client, (await create_task(client))["id"])
                await eventually(lambda: "traces_not_exported" in service.log, within=20)
                await client.get("/v1/tasks")
            began = time.monotonic()
            assert await service.stop() == 0
            took = time.monotonic() - began

    lines = [json.loads(line) for line in service.log.splitlines()]
    assert task["status"] == "succeeded"
    assert [line["event"] for line in lines if line["level"] != "info"] == ["traces_not_exported"]
    assert took < 4


@pytest.mark.parametrize(
    ("variables", "is_wanted"),
    [
        ({}, False),
        ({ENDPOINT: " "}, False),
        ({ENDPOINT: "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({ENDPOINT: "http://collector:4318", "OTEL_SDK_DISABLED": "True"}, False),
        ({ENDPOINT: "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({ENDPOINT: "http://collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, False),
        ({ENDPOINT: "http://collector:4318", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}, True),
    ],
)
def test_environment_decides_whether_there_are_traces(
    variables: dict[str, str], is_wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert is_tracing_wanted() is is_wanted


def test_without_traces_a_span_is_one_constant_and_the_sdk_is_not_imported(tmp_path: Path) -> None:
    started = (
        "import sys; from app.server import make_app; from tests.support.settings import settings_of;"
        "make_app(settings_of('sqlite+aiosqlite:///x.db'), True); print(*sys.modules)"
    )
    code = [sys.executable, "-c", started]
    ran = subprocess.run(code, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)

    assert [name for name in ran.stdout.split() if name.startswith(SDK)] == []
    assert span("submit", CALLER) is span("poll", None) is client_span("POST", "host", 80)


def _spans(request: Received) -> list[tuple[dict[str, str], Any]]:
    """The spans of an export, each with what its process says of itself."""
    exported = ExportTraceServiceRequest.FromString(request.body)
    return [
        ({pair.key: pair.value.string_value for pair in group.resource.attributes}, span)
        for group in exported.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]
