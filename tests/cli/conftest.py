"""Commands on the test's database."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli.main import main
from tests.support.settings import SECRET_KEY


@pytest.fixture
def command(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run `soundpost` on the test's database, inside this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOUNDPOST_DATABASE_URL", database_url)
    monkeypatch.setenv("SOUNDPOST_SECRET_KEYS", SECRET_KEY)
    return lambda *words, **options: CliRunner().invoke(main, words, **options)
