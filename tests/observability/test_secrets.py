"""Whatever happens, at debug level: no line of the log holds a secret, a token or what a caller wrote."""

import asyncio
import json
from collections import Counter
from pathlib import Path

import httpx
import pytest
from sqlalchemy import make_url

from tests.support.api import Json, client_of, create_task, until_final, until_status
from tests.support.processes import Processes
from tests.support.receivers import Received, Reply, receiving
from tests.support.sandbox import control, journal
from tests.support.wait import eventually

# Planted where the name says; each is looked for in all that every process has written.
CANARIES = {
    "upstream key": "canary-key-of-the-upstream",
    "API key": "canary-key-of-a-caller",
    "secret key": "canary-secret-key-that-signs",
    "HMAC key": "canary-key-of-the-callbacks",
    "database password": "canary-password",
    "header of the collector": "canary-of-the-collector",
    "prompt": 'canary in the coal mine, "singing" für die Leute',
    "label": "canary-value-of-a-label",
    "query of a webhook": "canary-query-of-a-receiver",
    "header of a webhook": "canary-header-of-a-receiver",
    "body of a receiver": "canary-answer-of-a-receiver",
    "unknown key": "canary-key-that-nobody-has",
    "forged token": "canary0token0of0a0forged0callbac",
    "forged signature": "canary0signature0of0a0link",
    "cookie": "canary-cookie",
    "idempotency key": "canary-idempotency-key",
}
SETTINGS = {
    "upstream_api_key": CANARIES["upstream key"],
    "api_keys": f"tests:{CANARIES['API key']}",
    "secret_keys": CANARIES["secret key"],
    "callback_hmac_key": CANARIES["HMAC key"],
    "log_level": "debug",
    "log_format": "json",
    "webhook_schedule": "0,0.1,0.1",
    "hold_recheck": "0.2",
    "submit_deadline": "5",
    "poll_after": "0.1",
    "poll_every": "0.1",
    "upstream_rate": "1000/10",
}
ATTEMPTS = {
    "submit": {"attempt", "outcome", "upstream_code"},
    "poll": {"attempt", "outcome", "stage", "upstream_code"},
    "archive": {"attempt", "outcome", "clip", "problem"},
    "question": {"attempt", "outcome", "clip"},
    "callback": {"outcome", "bytes", "request_id"},
    "delivery_attempted": {"attempt", "status", "status_code", "error", "event_id"},
}
FAULTS = (
    "drop-callbacks",
    "malformed-callback",
    "wrong-id",
    "failed",
    "sensitive",
    "code-400",
    "code-405=1",
    "http-500",
    "accept-then-reset",
    "audio-404=1",
    "html=1",
    "poll-500=1,drop-callbacks",
)


async def test_no_secret_is_logged_whatever_happens(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database_url = _with_password(database_url)
    secrets, logs = dict(CANARIES), list[str]()
    async with receiving() as receiver, receiving() as collector:
        receiver.respond = lambda request: _answer(request, receiver.requests)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization={CANARIES['header of the collector']}")
        with Processes(tmp_path, **SETTINGS) as processes:
            sandbox_options = ["--api-key", CANARIES["upstream key"], "--callback-hmac-key", CANARIES["HMAC key"]]
            sandbox = await processes.sandbox(*sandbox_options, rate=1000)
            service = await processes.serve(database_url, sandbox.url)
            async with client_of(service.url, CANARIES["API key"], headers=_headers()) as client:
                tasks = await _live(client, receiver.url_at(f"/hook?key={CANARIES['query of a webhook']}"))
                secrets |= await _intrude(client, tasks[0])
                await control(sandbox.url, credits=0)
                await create_task(client, CANARIES["prompt"])
                await eventually(lambda: "hold_rechecked" in service.log)
            sent = await journal(sandbox.url, kind="callback")
            secrets |= {f"callback {n}": entry["callback_url"].rpartition("/")[2] for n, entry in enumerate(sent)}
            secrets |= {f"signature {n}": _signature(request) for n, request in enumerate(receiver.requests)}
            commands = [["keys", "create", "other"], ["keys", "list"], ["doctor"], ["tasks", "show", tasks[0]["id"]]]
            for command in commands:
                ran = await processes.run(*command, database_url=database_url, upstream_url=sandbox.url)
                if command[:2] == ["keys", "create"]:
                    secrets["created key"] = ran.stdout.strip()
                logs.append(ran.stderr if command[0] in ("keys", "tasks") else ran.stdout + ran.stderr)
            at = {"database_url": database_url, "upstream_url": sandbox.url}
            rotated = await processes.run("keys", "rotate", await _key_id(processes, database_url, sandbox.url), **at)
            assert rotated.stdout.startswith("sp_"), rotated
            logs.append(rotated.stderr)
            audit = await processes.run("audit", "--json", **at)
            assert {"key.created", "key.rotated", "endpoint.secret_rotated"} <= {
                entry["action"] for entry in json.loads(audit.stdout)
            }
            secrets["rotated key"] = rotated.stdout.strip()
            logs.append(audit.stdout)
            assert await service.stop() == 0
            logs += [service.log, service.output]

    lines = [json.loads(line) for line in service.log.splitlines()]
    assert len({*secrets.values()}) > 40
    assert {
        name for name, secret in secrets.items() for log in logs if secret in log or _escaped(secret) in log
    } == set()
    assert {*ATTEMPTS, "request", "credits", "task_failed", "submits_held"} <= {line["event"] for line in lines}
    _check_attempts(lines)


def _check_attempts(lines: list[Json]) -> None:
    """Each attempt is one line, with all that is known of it."""
    attempts = [line for line in lines if line["event"] in ATTEMPTS]
    for line in attempts:
        assert {"task_id", "upstream_task_id", "duration_ms", "trace_id", "span_id"} | ATTEMPTS[line["event"]] <= {
            *line
        }
    kinds = {"submit": "task_id", "archive": "clip", "delivery_attempted": "delivery_id"}
    for event, what in kinds.items():
        made = Counter(
            (line["task_id"], line[what], line["attempt"], line.get("outcome"))
            for line in lines
            if line["event"] == event
        )
        assert {attempt: count for attempt, count in made.items() if count > 1} == {}
    known = {line["task_id"]: line["upstream_task_id"] for line in attempts if line["upstream_task_id"]}
    # Whoever knows the task by then knows the upstream's id.
    late = [line for line in attempts if line["event"] in ("poll", "archive", "question")]
    assert {line["upstream_task_id"] == known[line["task_id"]] for line in late} == {True}


async def _live(client: httpx.AsyncClient, webhook_url: str) -> list[Json]:
    """What a caller does in a day, and everything that the upstream can do to it."""
    prompt, labels = CANARIES["prompt"], {"scene": CANARIES["label"]}
    headers = {"X-Gateway-Key": CANARIES["header of a webhook"]}
    endpoint = (await client.post("/v1/webhook-endpoints", json={"url": webhook_url, "headers": headers})).json()
    body = {"prompt": prompt, "metadata": labels, "webhook_url": webhook_url, "grab_lyrics": True}
    for _ in range(2):
        answer = await client.post("/v1/tasks", json=body, headers={"Idempotency-Key": CANARIES["idempotency key"]})
    task: Json = answer.json()
    vendors = {"prompt": prompt, "model": "V5", "callBackUrl": webhook_url}
    dropin = (await client.post("/api/v1/generate/sounds", json=vendors)).json()["data"]["taskId"]
    faulty = [await create_task(client, f"{prompt} [fault:{fault}]", metadata=labels) for fault in FAULTS]
    held = await create_task(client, f"{prompt} [fault:delay-callbacks=20,poll-stale]")
    await until_status(client, held["id"], "generating")
    await client.post(f"/v1/tasks/{held['id']}/cancel")
    await client.get(f"/v1/tasks/{task['id']}", headers={"Prefer": "wait=5"})
    await client.get(f"/v1/tasks/{task['id']}/events", headers={"Accept": "text/event-stream"})
    for each in (task["id"], dropin, *(each["id"] for each in faulty)):
        await until_final(client, each)
    await client.get(f"/v1/tasks/{task['id']}/callbacks")
    await client.get("/v1/credits")
    await client.get(f"/v1/tasks?metadata.scene={CANARIES['label']}&status=failed")
    await client.get(f"/v1/webhook-endpoints/{endpoint['id']}/secret")
    await client.post(f"/v1/webhook-endpoints/{endpoint['id']}/rotate-secret")
    await client.post(f"/v1/webhook-endpoints/{endpoint['id']}/test")
    await client.delete(f"/v1/tasks/{faulty[3]['id']}")
    return [(await client.get(f"/v1/tasks/{task['id']}")).json()]


async def _intrude(client: httpx.AsyncClient, task: Json) -> dict[str, str]:
    """Requests that are refused; returns the secrets that the service itself has given out."""
    link = httpx.URL(task["clips"][0]["audio_url"])
    path = f"{link.path}?expires=1&signature={CANARIES['forged signature']}"
    nobody = {"Authorization": f"Bearer {CANARIES['unknown key']}"}
    await client.get(str(link), headers={"Authorization": ""})
    await client.get(path, headers=nobody)
    await client.get("/v1/tasks", headers=nobody)
    for forged in (f"/callbacks/{task['id']}/{CANARIES['forged token']}", f"/callback/{CANARIES['forged token']}/x"):
        await client.post(forged, content=json.dumps({"prompt": CANARIES["prompt"]}))
    await client.post("/v1/tasks", content=json.dumps({"prompt": CANARIES["prompt"]})[:-1], headers=_JSON)
    await client.post("/v1/tasks", json={"prompt": CANARIES["prompt"], CANARIES["label"]: 1})
    for header in ("Host", CANARIES["header of a webhook"] + "\n"):
        refused = {"url": "http://127.0.0.1:9/", "headers": {header: CANARIES["header of a webhook"]}}
        await client.post("/v1/webhook-endpoints", json=refused)
    await client.get("/v1/tasks", params={"prompt": CANARIES["prompt"], "token": CANARIES["forged token"]})
    secret = (await client.get("/v1/webhook-secret")).json()["secret"]
    return {"default secret": secret.removeprefix("whsec_"), "signature of a link": link.params["signature"]}


_JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("code", [400, 401, 455, 500, 531])
async def test_upstream_that_repeats_what_it_is_sent_gets_nothing_into_the_log(
    database_url: str, tmp_path: Path, code: int
) -> None:
    def repeat(request: Received) -> Reply:
        prompt = json.loads(request.body)["prompt"] if request.body else ""
        message = f"{request.head} {prompt} {request.body.decode()}"
        return Reply(200, body=json.dumps({"code": code, "msg": message, "data": None}).encode())

    async with receiving() as upstream:
        upstream.respond = repeat
        with Processes(tmp_path, **SETTINGS) as processes:
            service = await processes.serve(database_url, upstream.url)
            async with client_of(service.url, CANARIES["API key"]) as client:
                await create_task(client, CANARIES["prompt"])
                await eventually(lambda: '"submit"' in service.log)
                await client.get("/v1/credits")
                await asyncio.sleep(0.3)
            assert await service.stop() == 0

    [submitted, *_] = (request for request in upstream.requests if request.body)
    token = json.loads(submitted.body)["callBackUrl"].rpartition("/")[2]
    secrets = {**CANARIES, "token": token}
    log = service.log + service.output
    assert {name for name, secret in secrets.items() if secret in log or _escaped(secret) in log} == set()


def _answer(request: Received, before: list[Received]) -> Reply:
    """Refuse each webhook once, and repeat a secret."""
    is_first = sum(one.webhook_id == request.webhook_id for one in before) == 1
    return Reply(500 if is_first else 200, body=CANARIES["body of a receiver"].encode())


def _headers() -> dict[str, str]:
    return {"Authorization": f"Bearer {CANARIES['API key']}", "Cookie": f"session={CANARIES['cookie']}"}


def _signature(request: Received) -> str:
    return request.headers["webhook-signature"].removeprefix("v1,")


def _escaped(text: str) -> str:
    return json.dumps(text)[1:-1]


def _with_password(database_url: str) -> str:
    if database_url.startswith("sqlite"):
        return database_url
    return make_url(database_url).set(password=CANARIES["database password"]).render_as_string(hide_password=False)


async def _key_id(processes: Processes, database_url: str, upstream_url: str) -> str:
    listed = await processes.run("keys", "list", "--json", database_url=database_url, upstream_url=upstream_url)
    return str(next(key["id"] for key in json.loads(listed.stdout) if key["name"] == "other"))
