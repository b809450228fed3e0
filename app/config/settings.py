"""The settings themselves, with the rules that their values and their combinations must obey."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from app.config.values import (
    LastingSpan,
    Networks,
    OptionalRateSetting,
    Rate,
    RateSetting,
    Span,
    Spans,
    StringList,
    parse_span,
)

PREFIX = "SOUNDPOST_"
SECRETS = ("UPSTREAM_API_KEY", "SECRET_KEYS", "API_KEYS", "CALLBACK_HMAC_KEY", "DATABASE_URL")
NO_PUBLIC_URL = "https://soundpost.invalid"
# Where the upstream calls, below the public URL: the only path that must be reachable from outside.
CALLBACKS_PATH = "/callbacks/"
DAY = timedelta(days=1)


class Settings(BaseSettings):
    """What an operator may set; the names in the environment are these in capitals behind SOUNDPOST_."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", extra="ignore", hide_input_in_errors=True, env_ignore_empty=True
    )

    database_url: str = "sqlite+aiosqlite:///var/soundpost.db"
    upstream_url: str = "https://api.sunoapi.org"
    upstream_api_key: SecretStr | None = None
    public_url: str | None = None
    base_url: str | None = None
    secret_keys: SecretStr | None = None
    api_keys: SecretStr | None = None
    models: StringList = ("V5", "V5_5")
    upstream_rate: RateSetting = Rate(20, timedelta(seconds=10))
    poll_after: Span = timedelta(seconds=45)
    poll_every: Span = timedelta(seconds=30)
    submit_deadline: LastingSpan = timedelta(seconds=900)
    task_deadline: LastingSpan = timedelta(seconds=1800)
    hold_recheck: LastingSpan = timedelta(seconds=30)
    grace: Span = timedelta(seconds=10)
    callback_trust: Literal["token", "pull"] = "token"
    callback_hmac_key: SecretStr | None = None
    egress_allow: Networks = ()
    webhook_schedule: Spans = tuple(map(parse_span, (0, 5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)))
    webhook_timeout: LastingSpan = timedelta(seconds=15)
    key_rate: OptionalRateSetting = None
    storage_url: str = "file:var/audio"
    audio_max_mb: Annotated[float, Field(gt=0, le=2000)] = 50
    link_ttl: LastingSpan = DAY
    s3_redirect: bool = False
    retention_days: Annotated[float, Field(ge=0, le=36_500)] = 90
    log_format: Literal["console", "json"] | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    upstream_timeout: LastingSpan = timedelta(seconds=30)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """A value given in code wins over a secret's file, which wins over the environment and .env."""
        return init_settings, _SecretFiles(settings_cls), env_settings, dotenv_settings

    @field_validator("upstream_url", "public_url", "base_url")
    @classmethod
    def _is_a_web_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            url = urlsplit(value)
            is_usable = url.hostname and url.port != 0 and not (url.query or url.fragment or " " in value)
        except ValueError:
            is_usable = False
        if not is_usable or url.scheme not in ("http", "https"):
            raise ValueError("must be an address such as https://sounds.example.com")
        return value.rstrip("/")

    @field_validator("database_url")
    @classmethod
    def _names_a_driver_we_ship(cls, value: str) -> str:
        drivers = ("sqlite+aiosqlite", "postgresql+asyncpg", "postgresql+psycopg")
        try:
            url = make_url(value)
        except ArgumentError:
            raise ValueError("must be a database URL such as postgresql+asyncpg://user@host/name") from None
        if url.drivername not in drivers:
            raise ValueError(f"must begin with one of {', '.join(d + '://' for d in drivers)}")
        if url.drivername.startswith("sqlite") and url.database in (None, "", ":memory:"):
            raise ValueError("must name a file: what is kept in memory is lost with the process")
        return value

    @field_validator("storage_url")
    @classmethod
    def _names_a_storage_we_know(cls, value: str) -> str:
        if not re.fullmatch(r"file:.+|s3://[^/]+(/.*)?", value):
            raise ValueError("must be file: and a folder, such as file:var/audio, or s3://bucket/prefix")
        return value

    @field_validator("models")
    @classmethod
    def _names_a_model(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("must name at least one model")
        return value

    @field_validator("webhook_schedule")
    @classmethod
    def _tries_at_least_once(cls, value: tuple[timedelta, ...]) -> tuple[timedelta, ...]:
        if not value:
            raise ValueError("must name the pause before at least one attempt")
        return value

    @property
    def upstream_call_timeout(self) -> timedelta:
        """How long an exchange with the upstream may take; no answer to a submit is waited for beyond its deadline."""
        return min(self.upstream_timeout, self.submit_deadline)

    @property
    def submit_lease(self) -> timedelta:
        """How long a claimed submit is ours; it outlives the request, so that nobody judges it before its answer."""
        return self.upstream_call_timeout + timedelta(seconds=15)

    @property
    def webhook_lease(self) -> timedelta:
        """How long a claimed delivery is ours; one that ended mid-request would send the same event twice at once."""
        return self.webhook_timeout + timedelta(seconds=15)

    @property
    def audio_limit(self) -> int:
        """The largest audio file that is kept, in bytes."""
        return int(self.audio_max_mb * 1_000_000)

    @property
    def callback_base(self) -> str:
        """Where the upstream is told to call; it refuses submits without an address, reachable or not."""
        return self.public_url or NO_PUBLIC_URL

    @property
    def link_base(self) -> str:
        """What links that we give out begin with; empty makes them path-absolute."""
        return self.base_url or self.public_url or ""

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is the embedded one."""
        return self.database_url.startswith("sqlite")


class _SecretFiles(PydanticBaseSettingsSource):
    """Reads `SOUNDPOST_…_FILE`, as containers hand secrets over."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        path = os.environ.get(f"{PREFIX}{field_name.upper()}_FILE") if field_name.upper() in SECRETS else None
        if not path:
            return None, field_name, False
        try:
            return Path(path).read_text().strip(), field_name, False
        except (OSError, UnicodeDecodeError):
            raise ValueError(f"{PREFIX}{field_name.upper()}_FILE names a file that cannot be read: {path}") from None

    def __call__(self) -> Mapping[str, Any]:  # type: ignore[override]
        values = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in values.items() if value is not None}
