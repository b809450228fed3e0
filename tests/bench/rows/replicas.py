"""Two services on one PostgreSQL."""

from __future__ import annotations

from tests.bench.messages import KINDS, callback_body
from tests.bench.report import Figure, ratios
from tests.bench.rows.single_requests import AT_ONCE, JSON, callback_lines
from tests.bench.stand import Stand, owner_in
from tests.bench.wrk import Requests, run_at_once
from tests.support.filling import fill_generating


def replicas(stand: Stand) -> list[Figure]:
    """Callbacks for two services on one PostgreSQL, against one of them."""
    if stand.store.is_sqlite:
        return []
    with stand.running("replica", "--no-loops") as first:
        url = first.database_url
        walks = _walks(stand, url)
        with stand.running("replica", "--no-loops", url=url) as second:
            alone, both = [], []
            for _ in range(stand.size.rounds):
                [load] = run_at_once([(first.url, walks[0])], AT_ONCE, stand.size.seconds)
                alone.append(load.requests / load.seconds)
                first.settle()
                targets = (first.url, walks[0]), (second.url, walks[1])
                both.append(
                    sum(each.requests / each.seconds for each in run_at_once(targets, AT_ONCE, stand.size.seconds))
                )
                first.settle()
    how = f"{AT_ONCE} connections to each; two services, PostgreSQL and two wrk share the cores of this machine"
    return [
        Figure("one", alone, "/s"),
        Figure("two", both, "/s"),
        Figure("two : one", ratios(both, alone), "×", how, at_least=1.6),
    ]


def _walks(stand: Stand, url: str) -> list[Requests]:
    """Callbacks for each of the two, of generating tasks that the other has not."""
    tasks, owner = (6_000 if stand.size.is_quick else 40_000), owner_in(url)
    stand.fill(lambda database: fill_generating(database, [owner], tasks), url)
    bodies, walks = [], []
    for kind in KINDS:
        bodies.append(stand.store.folder / f"{kind}.json")
        bodies[-1].write_text(callback_body(kind))
    lines = list(callback_lines(tasks))
    for number in range(2):
        file, half = stand.store.folder / f"replica{number}", lines[number::2]
        file.write_text("\n".join(half))
        walks.append(Requests(file, bodies, JSON, used_up=True, lines=len(half)))
    return walks
