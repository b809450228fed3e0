"""One kind of database with the servers on it, which start when a row first needs them and end with the run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from app.database.engine import Database
from tests.bench import counted_sqlite
from tests.bench.client import send_all
from tests.bench.comparing import Served
from tests.bench.servers import Server, start_fastify, start_naive, start_service
from tests.bench.stores import Counts, Store, execute
from tests.support.filling import Owner

Made = TypeVar("Made")
# Requests whose statements are counted, all the same or, of callbacks, as many of each kind.
COUNTED, COUNTED_CALLBACKS = 64, 384
# In seconds.
ENOUGH = 30


@dataclass(frozen=True)
class Size:
    """How long to measure: rounds of so many seconds, samples of a latency, connections in a crowd."""

    rounds: int = 5
    seconds: float = 2
    samples: int = 100
    crowd: int = 1000
    is_quick: bool = False
    shows_statements: bool = False


@dataclass
class Stand:
    """What rows measure on. `stack` ends the servers."""

    store: Store
    size: Size
    stack: ExitStack
    _names: dict[str, int] = field(default_factory=dict)

    @cached_property
    def service(self) -> Server:
        """The service without its loops: what requests cost by themselves."""
        return self._kept(start_service(self.store, "service", self.store.create("service"), "--no-loops"))

    @cached_property
    def naive(self) -> Server:
        """FastAPI with SQLAlchemy's ORM, and without a database under /plain."""
        return self._kept(start_naive(self.store))

    @cached_property
    def fastify(self) -> Server | None:
        """Fastify with node-postgres, if it can be had."""
        server = start_fastify(self.store)
        return server and self._kept(server)

    @cached_property
    def owner(self) -> Owner:
        """The key that requests carry, which has no endpoint."""
        return owner_in(self.service.database_url)

    def fill(self, work: Callable[[Database], Coroutine[Any, Any, Made]], url: str | None = None) -> Made:
        """Write to the service's database, past the service."""
        return asyncio.run(_with_database(url or self.service.database_url, work))

    def new_name(self, name: str) -> str:
        """A name that no other database, file or process of this stand has."""
        self._names[name] = self._names.get(name, 0) + 1
        return f"{name}{self._names[name]}"

    @contextmanager
    def running(
        self,
        name: str,
        *options: str,
        url: str | None = None,
        counts: Path | None = None,
        profile: Path | None = None,
        **settings: str,
    ) -> Iterator[Server]:
        """Another service, by default on a database of its own, until the block ends; the files as in start_service."""
        unique = self.new_name(name)
        watched = {"counts": counts, "profile": profile}
        server = start_service(
            self.store, unique, url or self.store.create(unique), *options, **watched, settings=settings
        )
        try:
            yield server
        finally:
            server.stop()

    def rounds(self, most: int = 5) -> Iterator[int]:
        """The numbers of the rounds, of which none begins after ENOUGH: what is slow is measured once."""
        began = time.monotonic()
        for number in range(min(most, self.size.rounds)):
            if number == 0 or time.monotonic() - began < ENOUGH:
                yield number

    def count(self, variant: Served) -> tuple[float, float]:
        """Statements and commits of the service for each request, over some hundred of them."""
        count = COUNTED_CALLBACKS if variant.requests.used_up else COUNTED
        requests = variant.requests.take(count)
        if self.store.is_sqlite:
            file, server = self._counted_on_sqlite
            before = counted_sqlite.read(file)
            asyncio.run(send_all(server.url, requests, variant.connections))
            after = counted_sqlite.read(file)
            counts = Counts(after[0] - before[0], after[1] - before[1])
        else:
            with self.store.logged(self.service.database_url) as found:
                asyncio.run(send_all(self.service.url, requests, variant.connections))
            counts = found[0]
        if self.size.shows_statements:
            counts.show(count, "request")
        return counts.statements / count, counts.commits / count

    @cached_property
    def _counted_on_sqlite(self) -> tuple[Path, Server]:
        file = self.store.folder / "statements"
        url = self.service.database_url
        return file, self._kept(start_service(self.store, "counted", url, "--no-loops", counts=file))

    def _kept(self, server: Server) -> Server:
        self.stack.callback(server.stop)
        return server


def owner_in(url: str) -> Owner:
    """The key that requests carry, which has no endpoint."""
    [[key_id]] = execute(url, "SELECT id FROM api_keys WHERE name = 'tests'")
    return Owner(key_id, endpoint_id="")


async def _with_database(url: str, work: Callable[[Database], Coroutine[Any, Any, Made]]) -> Made:
    database = Database(url)
    try:
        return await work(database)
    finally:
        await database.close()
