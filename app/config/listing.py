"""Every setting as an operator reads it: its value as it is written, secrets masked, and where it comes from."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from datetime import timedelta
from typing import Literal, NamedTuple

from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource

from app.config.database_url import masked_url
from app.config.sources import PREFIX, SECRETS
from app.config.values import Prices, Rate, cleaned

MASK = "***"
Source = Literal["environment", "file", ".env", "default"]


class ListedSetting(NamedTuple):
    """One setting. `value` is None where none is set, and `file` the path of a secret that was read from one."""

    name: str
    value: str | None
    source: Source
    file: str | None = None


def list_settings(
    kind: type[BaseSettings], settings: BaseSettings | None, refused: Collection[str] = ()
) -> Iterator[ListedSetting]:
    """
    Every setting of this kind; without `settings` as it was given, because the fields `refused` are not valid.

    Of a secret neither the length nor any part is shown, nor what was refused: it may be a
    secret in the wrong place. Raises OSError or UnicodeDecodeError if .env cannot be read.
    """
    environment, dotenv = (_of(source) for source in (EnvSettingsSource(kind), DotEnvSettingsSource(kind)))
    for field, described in kind.model_fields.items():
        variable = f"{PREFIX}{field.upper()}"
        file = (os.environ.get(f"{variable}_FILE") or None) if field.upper() in SECRETS else None
        places: Mapping[Source, object] = {
            "file": file,
            "environment": environment.get(field),
            ".env": dotenv.get(field),
            "default": described.get_default(),
        }
        source: Source = next((place for place, given in places.items() if given is not None), "default")
        value = places[source] if settings is None else getattr(settings, field)
        is_masked = field in refused and source != "default"
        yield ListedSetting(variable, MASK if is_masked else _shown(field, value), source, file)


def _of(source: EnvSettingsSource) -> Mapping[str, str]:
    """What a source gives, by field; white space alone counts as not set."""
    given = {name.upper(): value for name, value in source.env_vars.items() if value}
    ours = {name: value for name, value in given.items() if name.startswith(PREFIX) and not _is_blank(value)}
    return {name.removeprefix(PREFIX).lower(): value for name, value in ours.items()}


def _is_blank(value: str) -> bool:
    try:
        return not cleaned(value)
    except ValueError:
        return False


def _shown(field: str, value: object) -> str | None:
    if value is None:
        return None
    if field == "database_url":
        return masked_url(str(value))
    return MASK if field.upper() in SECRETS else _written(value) or None


def _written(value: object) -> str:
    """A value in the form in which it is set."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, timedelta):
        return _written(value.total_seconds())
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, Rate):
        return f"{value.requests}/{_written(value.period)}"
    if isinstance(value, dict):
        return ",".join(ordered if ordered == sent else f"{ordered}={sent}" for ordered, sent in value.items())
    if isinstance(value, Prices):
        return ",".join([str(value.other), *(f"{model}={price}" for model, price in value.by_model.items())])
    if isinstance(value, tuple):
        return ",".join(map(_written, value))
    return str(value)
