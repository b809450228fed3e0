"""What ships around the code holds together: the locks, the image, the composition, the settings that they name."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from app.config import PREFIX, Settings

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ["requirements.lock", "requirements-dev.lock"]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", "")


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_requirement_has_a_hash(lock: str) -> None:
    requirements = _requirements(lock)

    assert requirements
    assert [name for name, pin in requirements.items() if "--hash=sha256:" not in pin] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_name_no_host(lock: str) -> None:
    text = (ROOT / lock).read_text()

    assert "://" not in text
    assert re.findall(r"^--.*", text, re.MULTILINE) == []


def test_what_runs_is_what_was_tested() -> None:
    runtime, development = (_requirements(lock) for lock in LOCKS)

    assert {name: pin for name, pin in runtime.items() if development.get(name) != pin} == {}


def test_locks_contain_every_dependency_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [re.split(r"[\[>=<~!]", line)[0] for line in project["project"]["dependencies"]]

    assert set(asked) - set(_requirements("requirements.lock")) == set()


def test_every_make_target_that_is_spoken_of_exists() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    texts = [file.read_text() for file in (*ROOT.glob("*.md"), ROOT / ".ci" / "run")]
    spoken_of = {target for text in texts for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)}

    assert spoken_of >= {"test", "demo"}
    assert spoken_of - set(targets) == set()


def test_every_setting_is_explained_in_the_env_example() -> None:
    settings = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    composed = set(re.findall(r"SOUNDPOST_[A-Z0-9_]+|POSTGRES_PASSWORD", (ROOT / "docker-compose.yml").read_text()))

    explained = set(_example())

    assert settings - explained == set()
    assert {name.removesuffix("_FILE") for name in composed} - explained == set()


def test_env_example_changes_nothing_until_something_is_uncommented() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()

    assert [line for line in lines if line and not line.startswith("#")] == []


def test_every_value_in_the_env_example_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in _example().items()))
    monkeypatch.chdir(tmp_path)

    settings = Settings()

    assert settings.public_url == _example()["SOUNDPOST_PUBLIC_URL"]


def test_image_gets_every_file_that_it_copies() -> None:
    let_in = re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copied = {source for words in _instructions("COPY") if "--from" not in words for source in words.split()[:-1]}

    assert copied - set(let_in) == set()


def test_image_is_not_run_by_root() -> None:
    user, group = _instructions("USER")[-1].split(":")

    assert int(user) > 0
    assert int(group) > 0


def test_wheel_installed_alone_runs_the_demo(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for part in ("app", "migrations"):
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]
    _run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source))
    shutil.rmtree(source)
    [wheel] = tmp_path.glob("*.whl")
    venv = tmp_path / "venv"
    _run(sys.executable, "-m", "venv", "--without-pip", str(venv))
    python = str(venv / "bin" / "python")
    _run(*pip, "--python", python, "install", "--no-deps", "--no-index", str(wheel))
    [packages] = venv.glob("lib/*/site-packages")
    # The dependencies are those of this environment. Its own .pth files, which lead to the checkout, do not count.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    (tmp_path / "elsewhere").mkdir()

    where = _run(python, "-c", "import app; print(app.__file__)", folder=tmp_path / "elsewhere")
    shown = _run(str(venv / "bin" / "soundpost"), "demo", folder=tmp_path / "elsewhere")

    assert where.startswith(str(packages))
    assert _files_of_pages(packages) == _files_of_pages(ROOT)
    files = [Path(line) for line in shown.splitlines() if line.startswith("/")]
    assert files
    assert all(file.read_bytes().startswith(b"RIFF") for file in files)


def _files_of_pages(folder: Path) -> set[str]:
    """What the console is made of beside its code, below the folder that has the package."""
    console = folder / "app" / "console"
    found = (path for part in ("static", "templates") for path in (console / part).rglob("*") if path.is_file())
    return {path.relative_to(console).as_posix() for path in found}


def _run(*command: str, folder: Path | None = None) -> str:
    """Run a command with nothing of this checkout in its environment; return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["serve", "worker"])
def test_services_wait_for_the_migration(name: str) -> None:
    awaited = COMPOSE["services"][name]["depends_on"]

    assert awaited["database"]["condition"] == "service_healthy"
    assert awaited["migrate"]["condition"] == "service_completed_successfully"


@pytest.mark.parametrize("name", ["keys", "migrate", "serve", "worker"])
def test_containers_can_write_to_their_volume_and_the_temporary_folder_alone(name: str) -> None:
    container = COMPOSE["services"][name]

    assert container["read_only"] is True
    assert [mount.partition(":")[2] for mount in container["volumes"]] + container["tmpfs"] == ["/app/var", "/tmp"]  # noqa: S108


@pytest.mark.parametrize("empty_database_url", ["postgresql"], indirect=True)
def test_composition_makes_a_sound_with_no_key_and_no_settings(empty_database_url: str, tmp_path: Path) -> None:
    composition = Composition(empty_database_url, tmp_path)
    composition.run("keys")
    composition.run("migrate")
    with composition.started("sandbox"), composition.started("serve") as url, composition.started("worker"):
        key = composition.run("serve", ["keys", "create", "me"])
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as client:
            task = client.post("/v1/tasks", json={"prompt": "soft rain on a tin roof"}).raise_for_status().json()
            done = _await_end(client, task["id"])

    assert done["status"] == "succeeded"
    assert done["resolved_by"] == "callback"
    assert done["clips"]


class Composition:
    """The services of docker-compose.yml with their very commands and environment, as processes on this machine."""

    def __init__(self, database_url: str, folder: Path) -> None:
        ports = {name: str(_free_port()) for name in ("serve", "sandbox", "worker")}
        self._folder = folder
        self._ports = ports
        # What containers have for themselves and processes must share.
        self._here = {
            "postgresql+asyncpg://soundpost:soundpost@database:5432/soundpost": database_url,
            "http://serve:8000": f"http://127.0.0.1:{ports['serve']}",
            "http://127.0.0.1:8000": f"http://127.0.0.1:{ports['serve']}",
            "http://sandbox:8001": f"http://127.0.0.1:{ports['sandbox']}",
            "10.213.77.2/32": "127.0.0.1/32",
            "/app/var": str(folder / "var"),
            "0.0.0.0": "127.0.0.1",  # noqa: S104 - it is what is replaced
            "8001": ports["sandbox"],
            "9100": ports["worker"],
        }
        (folder / "var").mkdir()

    def run(self, name: str, command: list[str] | None = None) -> str:
        """Run a service to its end, or another command in its place; return what it printed."""
        done = subprocess.run(
            self._command(name, command), env=self._environment(name), cwd=self._folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @contextmanager
    def started(self, name: str) -> Iterator[str]:
        """Run a service until the end of the block, where it must stop when asked to; yield its address, if any."""
        with ExitStack() as stack:
            log = stack.enter_context((self._folder / f"{name}.log").open("w"))
            process = stack.enter_context(
                subprocess.Popen(
                    self._command(name), env=self._environment(name), cwd=self._folder, stdout=log, stderr=log
                )
            )
            stack.callback(process.kill)
            yield self._await_start(name, process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0, (self._folder / f"{name}.log").read_text()

    def _await_start(self, name: str, process: subprocess.Popen[bytes]) -> str:
        if name not in self._ports:
            return ""
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(self._ports[name]))) == 0:
                    return f"http://127.0.0.1:{self._ports[name]}"
            time.sleep(0.05)
        raise AssertionError((self._folder / f"{name}.log").read_text())

    def _command(self, name: str, command: list[str] | None = None) -> list[str]:
        service = COMPOSE["services"][name]
        if "entrypoint" in service:
            return [self._localised(word) for word in service["entrypoint"] + service["command"]]
        given = [self._localised(word) for word in command or service["command"]]
        port = ["--port", self._ports["serve"]] if given[0] == "serve" else []
        return [sys.executable, "-m", "app.cli", *given, *port]

    def _environment(self, name: str) -> dict[str, str]:
        composed = COMPOSE["services"][name].get("environment", {})
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        return {"PATH": path, "PYTHONPATH": str(ROOT)} | {key: self._localised(text) for key, text in composed.items()}

    def _localised(self, text: str) -> str:
        text = _interpolated(text)
        for there, here in self._here.items():
            text = text.replace(there, here)
        return text


def _interpolated(text: str) -> str:
    """What compose makes of a value where no variable is set: its defaults, the inner ones first."""
    before = ""
    while before != text:
        before, text = text, re.sub(r"(?<!\$)\$\{\w+:-([^${}]*)\}", r"\1", text)
    return text.replace("$$", "$")


def _await_end(client: httpx.Client, task_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        task: dict[str, Any] = client.get(f"/v1/tasks/{task_id}").raise_for_status().json()
        if task["completed_at"]:
            return task
        time.sleep(0.2)
    raise AssertionError(f"still not at its end: {task}")


def _requirements(lock: str) -> dict[str, str]:
    """Each requirement with its hashes, without who asked for it, and without where it is needed."""
    lines = [line for line in (ROOT / lock).read_text().splitlines() if not line.lstrip().startswith("#")]
    pins = "\n".join(lines).replace("\\\n", "").splitlines()
    return {re.split(r"[\[= ;]", pin)[0]: re.sub(r" ;.*?(?= --hash)", "", " ".join(pin.split())) for pin in pins if pin}


def _example() -> dict[str, str]:
    return dict(re.findall(r"^# ([A-Z_0-9]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))


def _instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
