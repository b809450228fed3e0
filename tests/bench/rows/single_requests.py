"""Rows of single requests, under load from wrk: callbacks, submits, reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from app.keyring import Keyring
from tests.bench.comparing import SERVICE, Comparison, Pgbench, Served, Variant
from tests.bench.messages import KINDS, callback_body
from tests.bench.report import Figure
from tests.bench.servers import NO_NODE
from tests.bench.stand import Stand
from tests.bench.stores import execute
from tests.bench.wrk import Requests
from tests.support.filling import fill_finished, fill_generating
from tests.support.settings import KEY, SECRET_KEY

JSON = {"Content-Type": "application/json"}
WITH_KEY = {"Authorization": f"Bearer {KEY}"}
AT_ONCE = 64
READERS = 16
# The callbacks of one task stand further apart than the requests that are under way at once.
APART = 2 * AT_ONCE
PLAIN, ORM, FASTIFY = "(a) FastAPI, no database", "(b) FastAPI + ORM", "(c) Fastify + pg"


def callbacks(stand: Stand) -> list[Figure]:
    """Callbacks stored, applied, committed and answered: each task gets text, first and complete."""
    tasks = 6_000 if stand.size.is_quick else 40_000
    owner = stand.owner
    stand.fill(lambda database: fill_generating(database, [owner], tasks))
    bodies = [_file(stand, f"{kind}.json", callback_body(kind)) for kind in KINDS]
    lines = list(callback_lines(tasks))
    requests = Requests(_file(stand, "callbacks", "\n".join(lines)), bodies, JSON, used_up=True, lines=len(lines))
    service = Served(SERVICE, stand.service, requests, AT_ONCE)
    return _against_inserts(stand, service, bodies[-1], {ORM: 3, FASTIFY: 1})


def submit(stand: Stand) -> list[Figure]:
    """Orders, durable before their 202."""
    body = _file(stand, "order.json", json.dumps({"prompt": "soft rain", "metadata": {"scene": "s7", "part": "p7"}}))
    requests = Requests(_file(stand, "orders", "/v1/tasks 1 -"), [body], {**JSON, **WITH_KEY})
    return _against_inserts(stand, Served(SERVICE, stand.service, requests, AT_ONCE), body, {ORM: 3})


def reads(stand: Stand) -> list[Figure]:
    """One task by its id."""
    _fill_readable(stand)
    tasks = _file(stand, "tasks", _lines(f"/v1/tasks/1{number:031x} 0 -" for number in range(1, 2001)))
    rows = _file(stand, "rows", _lines(f"/rows/{number:032x} 0 -" for number in range(1, 2001)))
    service = Served(SERVICE, stand.service, Requests(tasks, headers=WITH_KEY), READERS)
    variants: list[Variant] = [service, Served(ORM, stand.naive, Requests(rows), READERS)]
    if not stand.size.is_quick:
        nothing = _file(stand, "nothing", "/plain/1 0 -")
        variants.append(Served(PLAIN, stand.naive, Requests(nothing), READERS))
    return _compare(stand, variants, {ORM: 2})


def first_page(stand: Stand) -> list[Figure]:
    """The newest 50 tasks: against one row by its id, and against 50 rows, of the ORM."""
    _fill_readable(stand)
    page = Requests(_file(stand, "page", "/v1/tasks 0 -"), headers=WITH_KEY)
    rows = _file(stand, "rows", _lines(f"/rows/{number:032x} 0 -" for number in range(1, 2001)))
    service = Served(SERVICE, stand.service, page, READERS)
    variants: list[Variant] = [service, Served(ORM, stand.naive, Requests(rows), READERS)]
    if not stand.size.is_quick:
        fifty = Requests(_file(stand, "rows50", "/rows 0 -"))
        variants.append(Served(f"{ORM}, 50 rows", stand.naive, fifty, READERS))
    return _compare(stand, variants, {ORM: 2})


def callback_lines(tasks: int) -> Iterable[str]:
    """The three callbacks of each generating task, APART from each other, in the order of their kinds."""
    keyring = Keyring(SECRET_KEY)
    for first in range(1, tasks + 1, APART):
        ids = [f"3{number:031x}" for number in range(first, min(first + APART, tasks + 1))]
        paths = [f"/callbacks/{task_id}/{keyring.callback_token(task_id)}" for task_id in ids]
        for body in range(1, len(KINDS) + 1):
            yield from (f"{path} {body} {task_id}" for path, task_id in zip(paths, ids, strict=True))


def _against_inserts(stand: Stand, service: Served, body: Path, targets: dict[str, float]) -> list[Figure]:
    """Compare with servers that insert the same body as one row."""
    row = Requests(_file(stand, "insert", "/rows 1 -"), [body], JSON)
    variants: list[Variant] = [service, Served(ORM, stand.naive, row, AT_ONCE)]
    has_room = not stand.size.is_quick
    if stand.fastify is not None and (has_room or FASTIFY in targets):
        variants.append(Served(FASTIFY, stand.fastify, row, AT_ONCE))
    if stand.fastify is not None and has_room:
        variants.append(Pgbench(stand.fastify.database_url, body.read_text(), AT_ONCE))
    if has_room:
        plain = Requests(_file(stand, "plain", "/plain 1 -"), [body], JSON)
        variants.append(Served(PLAIN, stand.naive, plain, AT_ONCE))
    figures = _compare(stand, variants, targets)
    if stand.fastify is None and not stand.store.is_sqlite:
        figures.append(Figure(FASTIFY, [], "/s", NO_NODE))
    return figures


def _compare(stand: Stand, variants: Sequence[Variant], targets: dict[str, float]) -> list[Figure]:
    comparison = Comparison(stand.store, variants)
    comparison.take_turns(stand.size.rounds, stand.size.seconds, warms_up=not stand.size.is_quick)
    service = variants[0]
    assert isinstance(service, Served)
    statements, commits = stand.count(service)
    return comparison.figures(targets, "/s", f"{statements:.2f} statements, {commits:.2f} commits a request")


def _fill_readable(stand: Stand) -> None:
    """Give the service and the ORM a few thousand rows to read, once."""
    url = stand.service.database_url
    if execute(url, f"SELECT 1 FROM tasks WHERE id = '1{1:031x}'"):  # noqa: S608 - a number of ours
        return
    owner = stand.owner
    stand.fill(lambda database: fill_finished(database, [owner], 2_000))
    ids = "printf('%032x', n)" if stand.store.is_sqlite else "lpad(to_hex(n), 32, '0')"
    body = json.dumps({"prompt": "soft rain on a tin roof", "model": "V5", "status": "succeeded"})
    numbers = "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 2000)"
    into = "INSERT INTO rows (id, created_at, body)"
    # No word of it comes from outside.
    execute(stand.naive.database_url, f"{into} {numbers} SELECT {ids}, CURRENT_TIMESTAMP, '{body}' FROM numbers")  # noqa: S608


def _file(stand: Stand, name: str, text: str) -> Path:
    file = stand.store.folder / name
    file.write_text(text)
    return file


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines)
