"""`soundpost worker`: what it answers on its port, for probes and for Prometheus."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.support.api import client_of, create_task, until_final
from tests.support.processes import Processes, free_port
from tests.support.scrapes import scrape
from tests.support.wait import eventually


async def test_worker_tells_on_its_port_whether_it_is_well_and_what_it_did(database_url: str, tmp_path: Path) -> None:
    port = free_port()
    with Processes(tmp_path) as processes:
        sandbox = await processes.sandbox()
        service = await processes.serve(database_url, sandbox.url, "--no-loops")
        worker = processes.worker(database_url, sandbox.url, worker_port=str(port), public_url=service.url)
        await eventually(lambda: worker.output.endswith("\n"), 60)
        async with client_of(service.url) as client, client_of(f"http://127.0.0.1:{port}", None) as probe:
            done = await until_final(client, (await create_task(client))["id"])
            alive, ready = await probe.get("/livez"), await probe.get("/readyz")
            seen, of_service = await scrape(probe), await scrape(client)
            elsewhere = await probe.post("/v1/tasks", json={"prompt": "soft rain"})
        code = await worker.stop()

    assert worker.output == f"soundpost worker listening on http://0.0.0.0:{port}\n"
    assert done["status"] == "succeeded"
    assert (alive.json(), ready.status_code, ready.json()["status"]) == ({"status": "ok"}, 200, "ok")
    assert seen("soundpost_upstream_calls_total", kind="submit", outcome="ok") == 1
    assert seen("soundpost_task_transitions_total", status="submitting", resolved_by="") == 1
    assert (seen("soundpost_tasks_created_total"), of_service("soundpost_tasks_created_total")) == (0, 1)
    assert elsewhere.status_code == 404
    # What a server counts alone is what only it has.
    assert {name for name in of_service.names - seen.names if not name.startswith("soundpost_http_")} == set()
    assert code == 0


async def test_worker_whose_port_is_taken_says_so_before_it_does_anything(tmp_path: Path) -> None:
    with socket.socket() as taken, Processes(tmp_path) as processes:
        taken.bind(("0.0.0.0", 0))  # noqa: S104 - as the worker does
        taken.listen()
        ended = await processes.run("worker", worker_port=str(taken.getsockname()[1]))

    assert ended.code == 1
    assert "Address already in use. Choose another with SOUNDPOST_WORKER_PORT." in ended.stderr
    # The database of the default settings was not made.
    assert not (tmp_path / "var").exists()
