"""The settings themselves, with the rules that their values and their combinations must obey."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from app.config.database_url import check_database_url
from app.config.sources import PREFIX, SecretFiles
from app.config.values import (
    Models,
    Networks,
    OptionalRateSetting,
    Origins,
    PositiveSpan,
    Prices,
    PriceSetting,
    Rate,
    RateSetting,
    Span,
    Spans,
    cleaned,
    fits_header,
    parse_api_keys,
    parse_span,
    web_address,
)

# Where the upstream calls, below the public URL: the only path that must be reachable from outside.
CALLBACKS_PATH = "/callbacks/"
DAY = timedelta(days=1)


class SettingsFields(BaseSettings):
    """
    The settings of a process, each with its meaning, unit and range.

    In the environment their names are in capitals, with SOUNDPOST_ before them.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_file_encoding="utf-8-sig",
        extra="ignore",
        hide_input_in_errors=True,
        env_ignore_empty=True,
    )

    database_url: str = Field(
        default="sqlite+aiosqlite:///var/soundpost.db",
        description="The database: an SQLite file for one machine, or postgresql+asyncpg://user:password@host/name (or"
        " postgresql+psycopg://, behind PgBouncer) for many processes, with libpq's parameters.",
    )
    database_pool_size: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=10,
        description="Connections to PostgreSQL, 1 to 1000, that each process keeps open once it needed them.",
    )
    database_max_overflow: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=5, description="Connections, 0 to 1000, that each process opens beyond these and closes after use."
    )
    database_statement_timeout: PositiveSpan = Field(
        default=timedelta(seconds=15), description="Seconds, more than 0, after which PostgreSQL ends a statement."
    )
    database_lock_timeout: PositiveSpan = Field(
        default=timedelta(seconds=5),
        description="Seconds, more than 0, that a statement waits for a lock on PostgreSQL; then the answer is 503.",
    )
    upstream_url: str = Field(
        default="https://api.sunoapi.org", description="The base URL of the upstream, or of a mirror with the same API."
    )
    upstream_api_key: SecretStr | None = Field(
        default=None, description="The API key at the upstream. Without one `serve` and `worker` do not start."
    )
    public_url: str | None = Field(
        default=None,
        description="The base URL at which the upstream reaches this service; it needs only /callbacks/. Without one no"
        " callback can come, and polls find every result.",
    )
    base_url: str | None = Field(
        default=None,
        description="The base URL at which callers reach this service, for links given to them. Without one it is the"
        " public URL, and without both links begin with a slash.",
    )
    secret_keys: SecretStr | None = Field(
        default=None,
        description="Secrets, separated by commas, from which callback URLs, signed links and webhook secrets derive:"
        " the first signs, all verify. Without any, one is made beside an SQLite database; PostgreSQL requires one.",
    )
    api_keys: SecretStr | None = Field(
        default=None,
        description="Callers' API keys, as name:key pairs separated by commas. A key that is"
        " not listed any more is revoked when a service starts. More are made with `soundpost keys create`.",
    )
    models: Models = Field(
        default={"V5": "V5", "V5_5": "V5_5"},
        description="The models that callers may request, separated by commas, at least one; the first is the default."
        " V5=V6 sends V6 for requests of V5.",
    )
    credit_price: PriceSetting = Field(
        default=Prices({}),
        description="The credits that a task costs, with up to three decimals: 2.5, or by model, V6=4,V5=2.5.",
    )
    queue: Literal["fair", "fifo"] = Field(
        default="fair",
        description="Which task is submitted next: `fair` shares the upstream's rate among the keys by their weights,"
        " `fifo` takes the oldest, whosever it is.",
    )
    upstream_rate: RateSetting = Field(
        default=Rate(20, timedelta(seconds=10)),
        description="The requests that the upstream allows in any window, for all processes together, as"
        " requests/seconds: 1 to 10000 requests.",
    )
    poll_after: Span = Field(
        default=timedelta(seconds=45),
        description="Seconds from the submit to the first poll, 0 or more. Where no callback can come,"
        " polls begin after 3 seconds.",
    )
    poll_every: Span = Field(
        default=timedelta(seconds=30), description="Seconds from one poll of a task to the next, 0 or more."
    )
    submit_deadline: PositiveSpan = Field(
        default=timedelta(seconds=900),
        description="Seconds, more than 0, after which a task fails if the response to its submit was lost and no"
        " callback came.",
    )
    task_deadline: PositiveSpan = Field(
        default=timedelta(seconds=1800),
        description="Seconds, more than 0, after the submit until a task that is still generating fails. A later"
        " success revives it.",
    )
    hold_recheck: PositiveSpan = Field(
        default=timedelta(seconds=30),
        description="Seconds, more than 0, between two checks of the upstream's credits and key while submits are held"
        " for want of them, and between two tasks that show whether a refused model is taken again.",
    )
    grace: Span = Field(
        default=timedelta(seconds=10),
        description="Seconds, 0 or more, from SIGTERM until the process exits, for work that is under way.",
    )
    drain_delay: Span = Field(
        default=timedelta(),
        description="Seconds, 0 or more, after SIGTERM during which requests are still answered while /readyz is 503,"
        " so that a load balancer can stop sending them. The grace begins after it.",
    )
    callback_trust: Literal["token", "pull"] = Field(
        default="token",
        description="`token` believes every callback with the right secret URL; `pull` confirms a final one by a poll.",
    )
    callback_hmac_key: SecretStr | None = Field(
        default=None,
        description="The key with which the upstream signs its callbacks. With one, a valid X-Webhook-Signature is"
        " required; without one, signatures are not looked at.",
    )
    egress_allow: Networks = Field(
        default=(),
        description="Networks in CIDR notation, separated by commas, that webhooks and downloads may reach although"
        " they are not public. None by default.",
    )
    webhook_schedule: Spans = Field(
        default=tuple(map(parse_span, (0, 5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400))),
        description="Seconds, 0 or more, before each attempt of a webhook delivery, separated by commas; the last is"
        " followed by giving up.",
    )
    webhook_timeout: PositiveSpan = Field(
        default=timedelta(seconds=15),
        description="Seconds, more than 0, that a webhook's receiver has to answer, and that a host of audio may be"
        " silent.",
    )
    key_rate: OptionalRateSetting = Field(
        default=None,
        description="The tasks that each API key may create in any window, as requests/seconds: 1 to 10000 requests."
        " Without one there is no limit.",
    )
    cors_origins: Origins = Field(
        default=(),
        description="The origins, such as https://app.example.com and separated by commas, whose pages may read signed"
        " links and send GET requests from a browser. None by default.",
    )
    storage_url: str = Field(
        default="file:var/audio",
        description="Where audio is stored: file: and a folder, or s3://bucket/prefix with the usual AWS_* variables.",
    )
    audio_max_mb: Annotated[float, Field(gt=0, le=2000)] = Field(
        default=50,
        description="The largest audio file that is stored, in megabytes of 1000000 bytes: more than 0, at most 2000.",
    )
    link_ttl: PositiveSpan = Field(
        default=DAY,
        description="Seconds, more than 0, for which a signed link to audio works; a day by default. In a webhook it"
        " works so long after the last attempt.",
    )
    s3_redirect: bool = Field(
        default=False,
        description="Whether audio in S3 is served by a redirect to a presigned URL, instead of through this service.",
    )
    retention_days: Annotated[float, Field(ge=0, le=36_500)] = Field(
        default=90,
        description="Days, 0 to 36500, for which ended tasks are kept with their events, callbacks, deliveries and"
        " audio; 0 keeps them for ever. Usage stays, as sums for each day.",
    )
    audit_days: Annotated[float, Field(ge=0, le=36_500)] = Field(
        default=365, description="Days, 0 to 36500, for which the audit log is kept; 0 keeps it for ever."
    )
    worker_port: Annotated[int, Field(ge=1, le=65_535)] | None = Field(
        default=None,
        description="The port, 1 to 65535, on which `soundpost worker` answers /livez, /readyz and /metrics, on every"
        " address. None by default.",
    )
    log_format: Literal["console", "json"] | None = Field(
        default=None, description="How log lines look. Without one it is `console` on a terminal and `json` elsewhere."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe log lines that are written."
    )
    console: bool = Field(
        default=True, description="Whether the web console is served at /console; its visitors sign in with an API key."
    )
    upstream_timeout: PositiveSpan = Field(
        default=timedelta(seconds=30),
        description="Seconds, more than 0, that one request to the upstream may take. A submit without a response"
        " by then may have been accepted: its task becomes `unconfirmed`.",
    )

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
        return init_settings, SecretFiles(settings_cls), env_settings, dotenv_settings

    @field_validator("log_level", "log_format", "callback_trust", "queue", mode="before")
    @classmethod
    def _is_read_in_any_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    # Defined after it, so that it comes first.
    @field_validator("*", mode="before")
    @classmethod
    def _is_cleaned(cls, value: object, info: ValidationInfo) -> object:
        """Nothing but white space counts as not set."""
        if not isinstance(value, str) or info.field_name is None:
            return value
        return cleaned(value) or cls.model_fields[info.field_name].get_default()

    @field_validator("upstream_api_key")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not fits_header(value.get_secret_value()):
            raise ValueError("must be the key alone, in visible ASCII characters: a header cannot carry others")
        return value

    @field_validator("api_keys")
    @classmethod
    def _names_callers(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parse_api_keys(value.get_secret_value())
        return value

    @field_validator("upstream_url", "public_url", "base_url")
    @classmethod
    def _is_a_web_address(cls, value: str | None) -> str | None:
        return value and web_address(value)

    @field_validator("upstream_url", "public_url", "base_url")
    @classmethod
    def _has_no_credentials(cls, value: str | None) -> str | None:
        if value and "@" in urlsplit(value).netloc:
            # Upstream they would replace the key. Ours go to others in links, and errors of libraries repeat them.
            raise ValueError("must not contain a user name or password")
        return value

    @field_validator("database_url")
    @classmethod
    def _names_a_driver_we_ship(cls, value: str) -> str:
        return check_database_url(value)

    @field_validator("storage_url")
    @classmethod
    def _names_a_storage_we_know(cls, value: str) -> str:
        if not re.fullmatch(r"file:.+|s3://[^/@]+(/.*)?", value):
            raise ValueError("must be file: and a folder, such as file:var/audio, or s3://bucket/prefix")
        return value

    @field_validator("webhook_schedule")
    @classmethod
    def _tries_at_least_once(cls, value: tuple[timedelta, ...]) -> tuple[timedelta, ...]:
        if not value:
            raise ValueError("must name the pause before at least one attempt")
        return value
