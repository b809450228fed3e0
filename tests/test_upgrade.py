"""A new release with a new schema takes the place of the one before while requests come, and none of them fails."""

import asyncio
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine, create_engine, inspect, make_url, text

from app import __version__
from app.database.migrations import heads
from tests.support.api import FINAL, client_of
from tests.support.processes import CommandResult, Processes, free_port
from tests.support.sandbox import submits_at
from tests.support.settings import ROOT, UNREACHABLE
from tests.support.wait import eventually

NEXT_VERSION, NEXT_REVISION = "99.0.0", "20991231_2359_notes"
MIGRATION = f'''"""Notes on tasks, found by an index that is built while tasks are written."""

import sqlalchemy as sa
from alembic import op

revision = "{NEXT_REVISION}"
down_revision = "{{before}}"
oldest_compatible = "{{oldest}}"


def upgrade() -> None:
    op.add_column("tasks", sa.Column("note", sa.String(length=100), nullable=True))
    if op.get_bind().dialect.name == "sqlite":
        op.create_index("ix_tasks_note", "tasks", ["note"])
        return
    with op.get_context().autocommit_block():
        op.create_index("ix_tasks_note", "tasks", ["note"], postgresql_concurrently=True, if_not_exists=True)


def downgrade() -> None:
    op.drop_index("ix_tasks_note", "tasks")
    op.drop_column("tasks", "note")
'''
DRAIN_DELAY = 1.5


@dataclass(frozen=True)
class Release:
    """A release of the service: the tree that its commands run from, in a folder and with settings."""

    tree: Path
    folder: Path
    settings: dict[str, str]

    @asynccontextmanager
    async def serving(self, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run a replica until the end of the block, which it survives if something went wrong before."""
        log = self.folder / f"{self.tree.name}-{port}.log"
        replica = await self._start("serve", "--port", str(port), log=log)
        try:
            await eventually(lambda: _is_ready(port), within=60)
            yield replica
        except BaseException:
            print(log.read_text()[-4000:])
            raise
        finally:
            with suppress(ProcessLookupError):
                replica.kill()
            await replica.wait()

    async def run(self, *command: str) -> CommandResult:
        """Run a command to its end."""
        log = self.folder / "command.log"
        code = await (await self._start(*command, log=log)).wait()
        return CommandResult(code, "", log.read_text())

    async def _start(self, *command: str, log: Path) -> asyncio.subprocess.Process:
        environment = {**Processes(self.folder, **self.settings).environment(), "PYTHONPATH": str(self.tree)}
        arguments = sys.executable, "-m", "app.cli", *command
        with log.open("w") as file:
            return await asyncio.create_subprocess_exec(
                *arguments, cwd=self.folder, env=environment, stdout=file, stderr=file
            )


@dataclass
class Balancer:
    """A load balancer of connections: to the replicas that are ready, in turn, and to the next if one refuses."""

    ports: Sequence[int]
    ready: set[int] = field(default_factory=set)

    @asynccontextmanager
    async def balancing(self, port: int) -> AsyncIterator[None]:
        turns = cycle(self.ports)

        async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _ in range(2 * len(self.ports)):
                chosen = next(turns)
                if chosen in self.ready:
                    with suppress(ConnectionError):
                        upstream = await asyncio.open_connection("127.0.0.1", chosen)
                        break
            else:
                writer.close()
                return
            # Connections that the client keeps are open until the end of the test.
            with suppress(asyncio.CancelledError):
                await asyncio.gather(_pipe(reader, upstream[1]), _pipe(upstream[0], writer))

        async with await asyncio.start_server(connect, "127.0.0.1", port):
            looking = asyncio.create_task(self._look())
            yield
            looking.cancel()

    async def _look(self) -> None:
        while True:
            for port in self.ports:
                (self.ready.add if await _is_ready(port) else self.ready.discard)(port)
            await asyncio.sleep(0.1)


@dataclass
class Load:
    """Callers that order, read, list and wait all the time, and what came of it."""

    client: httpx.AsyncClient
    answers: Counter[str] = field(default_factory=Counter)
    ordered: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        done = asyncio.Event()
        calls: list[Callable[[], Awaitable[None]]] = [self._order, self._order, self._read, self._list, self._wait]
        callers = [asyncio.create_task(self._repeat(call, done)) for call in calls]
        yield
        done.set()
        await asyncio.gather(*callers)

    async def _repeat(self, call: Callable[[], Awaitable[None]], done: asyncio.Event) -> None:
        while not done.is_set():
            await call()
            await asyncio.sleep(0.05)

    async def _call(self, method: str, path: str, **options: object) -> httpx.Response | None:
        try:
            answer = await self.client.request(method, path, **options)  # type: ignore[arg-type]
        except httpx.TransportError as error:
            self.answers[repr(error)] += 1
            return None
        self.answers[str(answer.status_code)] += 1
        return answer

    async def _order(self, **headers: str) -> None:
        answer = await self._call("POST", "/v1/tasks", json={"prompt": "rain"}, headers=headers)
        if answer is not None and answer.is_success:
            self.ordered.append(answer.json()["id"])

    async def _wait(self) -> None:
        await self._order(Prefer="wait=5")

    async def _read(self) -> None:
        if self.ordered:
            await self._call("GET", f"/v1/tasks/{self.ordered[-1]}")

    async def _list(self) -> None:
        await self._call("GET", "/v1/tasks")


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_two_releases_of_the_schema_are_rolled_without_a_failed_request(
    database_url: str, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    port, *ports = (free_port() for _ in range(3))
    balancer, entry = Balancer(ports), f"http://127.0.0.1:{port}"
    with Processes(tmp_path) as processes:
        sandbox = await processes.sandbox(rate=1000, delay=0.5, credits=100_000)
        urls = {"database_url": database_url, "public_url": entry, "upstream_url": sandbox.url}
        pace = {"upstream_rate": "500/1", "poll_after": "20", "drain_delay": str(DRAIN_DELAY)}
        old, new = _releases(tmp_path, **urls, **pace)
        async with AsyncExitStack() as stack:
            replicas = [await stack.enter_async_context(old.serving(each)) for each in ports]
            await stack.enter_async_context(balancer.balancing(port))
            client = await stack.enter_async_context(client_of(entry))
            load = Load(client)
            await eventually(lambda: balancer.ready == {*ports})
            began = time.monotonic()
            async with load.running():
                await asyncio.sleep(1)
                migrated = await new.run("migrate")
                assert migrated.code == 0, migrated.stderr
                # Both of the release before stay ready on the new schema.
                await asyncio.sleep(2)
                assert balancer.ready == {*ports}
                for replica, each in zip(replicas, ports, strict=True):
                    replica.terminate()
                    assert await asyncio.wait_for(replica.wait(), 20) == 0
                    await stack.enter_async_context(new.serving(each))
                    await eventually(lambda: balancer.ready == {*ports})
                await asyncio.sleep(1)
            seconds = time.monotonic() - began
            version = (await client.get("/")).json()["version"]
            tasks = await _until_all_final(client, load.ordered)
            sent = Counter(submit["caller_task_id"] for submit in await submits_at(sandbox.url))

    measured(f"rolled upgrade in {seconds:.0f} s under load: {dict(load.answers)}, {len(tasks)} tasks")
    assert set(load.answers) <= {"200", "202"}, load.answers
    assert len(load.ordered) > 50
    assert version == NEXT_VERSION
    assert Counter(tasks.values()) == {"succeeded": len(load.ordered)}
    assert {task: sent[task] for task in load.ordered if sent[task] != 1} == {}
    assert "ix_tasks_note" in _indexes_of_tasks(database_url)


async def test_release_before_starts_again_on_the_new_schema_but_migrates_nothing(
    database_url: str, tmp_path: Path
) -> None:
    old, new = _releases(tmp_path, database_url=database_url, upstream_url=UNREACHABLE)

    migrated = await new.run("migrate")
    async with old.serving(free_port()):
        # It is ready, or this block would not begin.
        refused = await old.run("migrate")
    again = await new.run("migrate")

    assert (migrated.code, again.code) == (0, 0), migrated.stderr
    assert refused.code == 1
    assert "a newer release made it" in refused.stderr


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_release_that_does_not_work_on_the_new_schema_is_not_ready(database_url: str, tmp_path: Path) -> None:
    # As the one after the next, which removes what this release still reads.
    _, contracting = _releases(tmp_path, oldest=NEXT_REVISION, database_url=database_url)

    migrated = await contracting.run("migrate")
    with Processes(tmp_path, database_url=database_url, upstream_url=UNREACHABLE) as processes:
        replica = processes.start("serve", "--port", str(port := free_port()))
        async with client_of(f"http://127.0.0.1:{port}") as client:
            await eventually(partial(_answers, client), within=60)
            ready = await client.get("/readyz")
        assert await replica.stop() == 0

    assert migrated.code == 0
    assert ready.status_code == 503
    assert ready.json()["checks"]["migrations"]["detail"].startswith("the schema is not this release's")


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_migration_comes_again_while_somebody_holds_the_table_and_keeps_nobody_waiting(
    database_url: str, tmp_path: Path
) -> None:
    _, new = _releases(tmp_path, database_url=database_url)
    engine = _engine(database_url)
    with engine.connect() as holder, engine.connect() as reader:
        holder.execute(text("SELECT count(*) FROM tasks"))
        migrating = asyncio.create_task(new.run("migrate"))
        waits: list[float] = []
        while len(waits) < 30 and not migrating.done():
            began = time.monotonic()
            await asyncio.to_thread(reader.execute, text("SELECT count(*) FROM tasks"))
            reader.rollback()
            waits.append(time.monotonic() - began)
            await asyncio.sleep(0.2)
        is_waiting = not migrating.done()
        holder.rollback()
        migrated = await migrating
    engine.dispose()

    assert is_waiting
    assert max(waits) > 0.5, "the migration never waited for the lock"
    assert max(waits) < 3.5
    assert migrated.code == 0, migrated.stderr


def _releases(folder: Path, *, oldest: str | None = None, **settings: str) -> tuple[Release, Release]:
    """This release and the next one, which works with those from `oldest` on."""
    next_one = _next_release(folder / "next", oldest)
    return Release(ROOT, folder, settings), Release(next_one, folder, settings)


def _next_release(tree: Path, oldest: str | None) -> Path:
    """A copy of this release with another version, one more column, and the migration that adds it."""
    for part in ("app", "migrations"):
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file, pattern, text_ in (
        (tree / "app" / "__init__.py", re.escape(f'"{__version__}"'), f'"{NEXT_VERSION}"'),
        (tree / "app" / "models" / "tasks.py", r"(class Task\(.*?)(\n    id: )", r"\1\n    note: Mapped[str | None]\2"),
    ):
        changed, count = re.subn(pattern, text_, file.read_text(), count=1, flags=re.DOTALL)
        assert count == 1, file
        file.write_text(changed)
    [before] = heads()
    script = MIGRATION.replace("{before}", before).replace("{oldest}", oldest or before)
    (tree / "migrations" / "versions" / "2099-12-31-2359_notes.py").write_text(script)
    return tree


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    with suppress(ConnectionError):
        writer.close()
        await writer.wait_closed()


async def _is_ready(port: int) -> bool:
    async with client_of(f"http://127.0.0.1:{port}", None, timeout=5) as client:
        try:
            return (await client.get("/readyz")).status_code == 200
        except httpx.TransportError:
            return False


async def _answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/livez")).is_success
    except httpx.TransportError:
        return False


async def _until_all_final(client: httpx.AsyncClient, ids: Sequence[str]) -> dict[str, str]:
    """The status of each task once all are final."""
    found: dict[str, str] = {}

    async def are_final() -> bool:
        for id_ in ids:
            if found.get(id_) not in FINAL:
                found[id_] = (await client.get(f"/v1/tasks/{id_}")).raise_for_status().json()["status"]
                if found[id_] not in FINAL:
                    return False
        return True

    await eventually(are_final, within=40)
    return found


def _engine(database_url: str) -> Engine:
    return create_engine(make_url(database_url).set(drivername="postgresql+psycopg"))


def _indexes_of_tasks(database_url: str) -> set[str | None]:
    engine = _engine(database_url)
    names = {index["name"] for index in inspect(engine).get_indexes("tasks")}
    engine.dispose()
    return names
