"""The OpenAPI document of the service as it comes; run as a module it writes the snapshot again."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from app.config import Settings
from app.main import create_app
from app.services import build_services

SNAPSHOT = Path(__file__).with_name("openapi.json")


@cache
def document() -> dict[str, Any]:
    """What /openapi.json answers with the default settings."""
    given: dict[str, Any] = {"_env_file": None, "upstream_api_key": "none", "secret_keys": "a-secret-of-sixteen"}
    return create_app(build_services(Settings(**given))).openapi()


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every operation with its method and path."""
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(document(), indent=1, ensure_ascii=False) + "\n")
