"""Servers of a run, as processes of their own: the service, and what it is measured against."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from app.config import PREFIX
from tests.bench.accounting import cpu_seconds, resident_kib
from tests.bench.stores import Store, plain_url
from tests.support.processes import free_port
from tests.support.settings import KEY, LOOPBACK, ROOT, SECRET_KEY, UNREACHABLE, UPSTREAM_KEY

BASELINES = Path(__file__).with_name("baselines")
# npm's packages, which make clean leaves where they are.
NODE_FOLDER = ROOT / "var" / "bench-node"
NO_NODE = "left out: node and npm are not installed"


@dataclass
class Server:
    """A server that runs; `database_url` names what it writes to."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    database_url: str = ""

    def cpu(self) -> float:
        """The seconds of CPU that it and its children have used."""
        return cpu_seconds(self.process.pid)

    def settle(self, within: float = 5) -> None:
        """Wait until it does nothing but what an idle one does: less than a fifth of a core."""
        deadline = time.monotonic() + within
        busy = True
        while busy and time.monotonic() < deadline:
            before = self.cpu()
            time.sleep(0.1)
            busy = self.cpu() - before > 0.02

    def resident_kib(self) -> int:
        """The memory that it and its children have in use."""
        return resident_kib(self.process.pid)

    def stop(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()


def start_service(
    store: Store,
    name: str,
    database_url: str,
    *options: str,
    counts: Path | None = None,
    profile: Path | None = None,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Server:
    """
    Start `soundpost serve`, and wait until it answers.

    With `counts`, SQLite's statements are counted in that file; with `profile`, it holds what runs between two SIGUSR1.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    chosen = {
        "database_url": database_url,
        "public_url": url,
        "upstream_url": UNREACHABLE,
        "upstream_api_key": UPSTREAM_KEY,
        "upstream_rate": "1000/1",
        "api_keys": f"tests:{KEY}",
        "secret_keys": SECRET_KEY,
        "egress_allow": LOOPBACK,
        "storage_url": f"file:{store.folder}/audio",
        "log_format": "json",
        **settings,
    }
    module = ["app.cli"]
    if counts is not None:
        module = ["tests.bench.counted_sqlite", str(counts)]
    elif profile is not None:
        module = ["tests.bench.profiled", str(profile)]
    command = [sys.executable, "-m", *module, "serve", "--port", str(port), *options]
    given = {f"{PREFIX}{setting.upper()}": value for setting, value in chosen.items()}
    return start(name, command, store.folder, url, "/readyz", given, database_url)


def start_naive(store: Store) -> Server:
    """Start FastAPI with SQLAlchemy's ORM."""
    database_url, port = store.create("naive", is_migrated=False), free_port()
    options = ["--port", str(port), "--no-access-log", "--log-level", "warning"]
    command = [sys.executable, "-m", "uvicorn", "tests.bench.baselines.naive:app", *options]
    url, settings = f"http://127.0.0.1:{port}", {"BENCH_DATABASE_URL": database_url}
    return start("naive", command, store.folder, url, "/plain/1", settings, database_url)


def start_fastify(store: Store) -> Server | None:
    """Start Fastify with node-postgres; None where there is no node, or the database is SQLite."""
    if store.is_sqlite or not install_fastify():
        return None
    database_url, port = store.create("fastify", is_migrated=False), free_port()
    settings = {
        "BENCH_DATABASE_URL": plain_url(database_url),
        "BENCH_PORT": str(port),
        "NODE_PATH": f"{NODE_FOLDER}/node_modules",
        "NODE_ENV": "production",
    }
    command = ["node", str(BASELINES / "fastify.cjs")]
    return start("fastify", command, store.folder, f"http://127.0.0.1:{port}", "/", settings, database_url)


def install_fastify() -> bool:
    """Install the packages of baselines/package.json once; False where node or npm is missing."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return False
    wanted = (BASELINES / "package.json").read_text()
    installed = NODE_FOLDER / "package.json"
    if not (NODE_FOLDER / "node_modules").exists() or installed.read_text() != wanted:
        NODE_FOLDER.mkdir(parents=True, exist_ok=True)
        installed.write_text(wanted)
        command = ["npm", "install", "--no-audit", "--no-fund", "--loglevel", "error", "--prefix", str(NODE_FOLDER)]
        subprocess.run(command, check=True)
    return True


def start(
    name: str,
    command: Sequence[str],
    folder: Path,
    url: str,
    path: str,
    settings: Mapping[str, str],
    database_url: str = "",
) -> Server:
    """Start a process in `folder`, and wait until `path` is answered, with whatever status but 503."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**inherited, "PYTHONPATH": str(ROOT), **settings},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    server = Server(process, url, log, database_url)
    deadline = time.monotonic() + 60
    while not answers(url + path):
        if process.poll() is not None or time.monotonic() > deadline:
            server.stop()
            raise SystemExit(f"{name} did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.01)
    return server


def answers(url: str) -> bool:
    """Whether a server answers there, with another status than 503."""
    try:
        with urllib.request.urlopen(url, timeout=10):  # noqa: S310 - always http
            return True
    except urllib.error.HTTPError as error:
        return error.code != 503
    except OSError:
        return False
