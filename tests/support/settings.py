"""The keys and settings that tests use."""

from pathlib import Path
from typing import Any

from app.config import Settings

ROOT = Path(__file__).resolve().parents[2]
KEY = "the-key-of-a-caller-in-tests"
OTHER_KEY = "the-key-of-another-caller"
SECRET_KEY = "a-secret-key-of-the-tests-alone"
UPSTREAM_KEY = "sandbox"
LOOPBACK = "127.0.0.0/8"
# The discard port, where nothing listens.
UNREACHABLE = "http://127.0.0.1:9"


def settings_of(database_url: str, **settings: Any) -> Settings:
    """Settings for tests; no .env is read."""
    given: dict[str, Any] = {
        "_env_file": None,
        "database_url": database_url,
        "upstream_url": UNREACHABLE,
        "upstream_api_key": UPSTREAM_KEY,
        "public_url": "https://sounds.example",
        "secret_keys": SECRET_KEY,
        "api_keys": f"tests:{KEY}",
        **settings,
    }
    return Settings(**given)
