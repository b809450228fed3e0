"""Where settings come from besides the environment, and which names in it are no settings."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, PydanticBaseSettingsSource

from app.config.values import cleaned

PREFIX = "SOUNDPOST_"
SECRETS = ("UPSTREAM_API_KEY", "SECRET_KEYS", "API_KEYS", "CALLBACK_HMAC_KEY", "DATABASE_URL")
# What Kubernetes sets in every pod beside a Service that is called soundpost.
_SERVICE_LINK = re.compile(r"(\w+_)?(SERVICE_(HOST|PORT\w*)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")


class SecretFiles(PydanticBaseSettingsSource):
    """Reads `SOUNDPOST_…_FILE`, as containers hand secrets over."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """The content of one setting's file, or None. Raises ValueError for a file that cannot be read."""
        path = os.environ.get(f"{PREFIX}{field_name.upper()}_FILE") if field_name.upper() in SECRETS else None
        if not path:
            return None, field_name, False
        try:
            return Path(cleaned(path)).read_text(encoding="utf-8"), field_name, False
        except (OSError, ValueError):
            raise ValueError(f"{PREFIX}{field_name.upper()}_FILE names a file that cannot be read: {path}") from None

    def __call__(self) -> Mapping[str, Any]:  # type: ignore[override]
        """The settings that are given as files."""
        values = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in values.items() if value is not None}


def unknown_settings(settings: type[BaseSettings]) -> dict[str, str | None]:
    """Each SOUNDPOST_ variable of the environment and of .env that is no setting, with the nearest one that is."""
    known = {*map(str.upper, settings.model_fields), *(f"{name}_FILE" for name in SECRETS)}
    given = {*EnvSettingsSource(settings).env_vars, *DotEnvSettingsSource(settings).env_vars}
    found: dict[str, str | None] = {}
    for variable in sorted(name.upper() for name in given):
        name = variable.removeprefix(PREFIX)
        if name not in (variable, *known) and not _SERVICE_LINK.fullmatch(name):
            nearest = get_close_matches(name, known, 1)
            found[variable] = PREFIX + nearest[0] if nearest else None
    return found
