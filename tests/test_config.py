"""Settings: where they are read from, and what is refused because it cannot work."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from app.cli.main import main
from app.config import PREFIX, SECRETS, Rate, Settings, unknown_settings
from app.database.failures import reason

SPAN = "must be a number of seconds, such as 30 or 0.5"
POSITIVE = "must be more than 0 seconds"
RATE = "must be requests/seconds, such as 20/10"
ADDRESS = "must be an address such as https://sounds.example.com"
CHOICE = "Input should be"
PRICE = "must be credits such as 2.5, or by model"
ORIGINS = "must be origins such as https://app.example.com"
KEY_ALONE = "must be the key alone, in visible ASCII characters"
INVISIBLE = "must not contain control or invisible characters"
# What surrounds a value that was copied, read from a file or given by `docker --env-file`.
WRAPPINGS = ["{}\n", "{}\r\n", " {}\t", "\ufeff{}", "\u200b{}\u00a0", '"{}"', "'{}'", '" {} "\n']
# A good value of each setting, other than its default.
GOOD = {
    "DATABASE_URL": "sqlite+aiosqlite:///elsewhere.db",
    "DATABASE_POOL_SIZE": "1",
    "DATABASE_MAX_OVERFLOW": "1",
    "DATABASE_STATEMENT_TIMEOUT": "1",
    "DATABASE_LOCK_TIMEOUT": "1",
    "UPSTREAM_URL": "https://mirror.example",
    "UPSTREAM_API_KEY": "planted-key",
    "PUBLIC_URL": "https://sounds.example",
    "BASE_URL": "https://sounds.internal",
    "SECRET_KEYS": "a-secret-key-of-the-tests-alone",
    "API_KEYS": "shop:planted-key",
    "MODELS": "V6",
    "CREDIT_PRICE": "V6=4,2",
    "QUEUE": "fifo",
    "CORS_ORIGINS": "https://app.example",
    "AUDIT_DAYS": "1",
    "UPSTREAM_RATE": "5/1",
    "POLL_AFTER": "1",
    "POLL_EVERY": "1",
    "SUBMIT_DEADLINE": "1",
    "TASK_DEADLINE": "1",
    "HOLD_RECHECK": "1",
    "GRACE": "1",
    "DRAIN_DELAY": "1",
    "CALLBACK_TRUST": "pull",
    "CALLBACK_HMAC_KEY": "planted-key",
    "EGRESS_ALLOW": "10.0.0.0/8",
    "WEBHOOK_SCHEDULE": "1,2",
    "WEBHOOK_TIMEOUT": "1",
    "KEY_RATE": "60/60",
    "STORAGE_URL": "file:elsewhere",
    "AUDIO_MAX_MB": "1",
    "LINK_TTL": "1",
    "S3_REDIRECT": "true",
    "RETENTION_DAYS": "1",
    "WORKER_PORT": "9100",
    "LOG_FORMAT": "json",
    "LOG_LEVEL": "debug",
    "UPSTREAM_TIMEOUT": "1",
    "CONSOLE": "false",
}
# Each setting with what it cannot be, and how the sentence goes on that says so.
NONSENSE: list[tuple[str, str, str]] = [
    ("DATABASE_URL", "nonsense", "must be a database URL"),
    ("DATABASE_URL", "mysql://root@localhost/x", "must begin with one of"),
    ("DATABASE_URL", "postgresql://u:canary@localhost:54x/x", "must be a database URL"),
    ("DATABASE_URL", "postgresql+psycopg://u:canary@localhost:99999/x", "must be a database URL"),
    ("DATABASE_URL", "postgresql://u:canary@ss@localhost/x", "must be a database URL"),
    ("DATABASE_URL", "postgresql://u:can/ary@localhost/x", "must be a database URL"),
    ("DATABASE_URL", "postgresql://u:12/canary@localhost/x", "must be a database URL"),
    ("DATABASE_URL", "postgresql://u:12?canary@localhost/x", "must be a database URL"),
    ("DATABASE_URL", "postgresql://u:canary@[::1/x", "must be a database URL"),
    ("DATABASE_URL", "postgresql://u:canary@h/x?sslmode=canary", "has a `sslmode` that is none of disable,"),
    ("DATABASE_URL", "postgresql://u:canary@h/x?connect_timeout=canary", "has a `connect_timeout` that is not a whole"),
    ("DATABASE_URL", "postgresql://u:canary@a,b,c/x?port=1,2", "must have one port, or one for each host"),
    ("DATABASE_URL", "sqlite+aiosqlite://u:canary@h:x/", "must be sqlite+aiosqlite:///"),
    ("DATABASE_URL", "sqlite+aiosqlite://", "must name a file"),
    ("DATABASE_URL", "sqlite+aiosqlite:///:memory:", "must name a file"),
    ("DATABASE_POOL_SIZE", "0", CHOICE),
    ("DATABASE_MAX_OVERFLOW", "-1", CHOICE),
    ("DATABASE_STATEMENT_TIMEOUT", "0", POSITIVE),
    ("DATABASE_LOCK_TIMEOUT", "0", POSITIVE),
    ("UPSTREAM_URL", "api.sunoapi.org", ADDRESS),
    ("UPSTREAM_URL", "https://", ADDRESS),
    ("UPSTREAM_URL", "https://exa mple", ADDRESS),
    ("UPSTREAM_URL", "https://[::1", ADDRESS),
    ("UPSTREAM_URL", "https://u:canary@h:x", ADDRESS),
    ("UPSTREAM_URL", "https://u:canary@h", "must not contain a user name or password"),
    ("PUBLIC_URL", "http://u:canary@h", "must not contain a user name or password"),
    ("BASE_URL", "https://canary@h", "must not contain a user name or password"),
    ("PUBLIC_URL", "https://u:canary@h@h:99999", ADDRESS),
    ("PUBLIC_URL", "ftp://sounds.example", ADDRESS),
    ("PUBLIC_URL", "https://sounds.example?x=1", ADDRESS),
    ("PUBLIC_URL", "https://sounds.example:99999", ADDRESS),
    ("BASE_URL", "//sounds.example", ADDRESS),
    ("BASE_URL", "https://sounds.example#top", ADDRESS),
    ("API_KEYS", "no-colon", "must be name:key pairs, separated by commas"),
    ("API_KEYS", "name:", "must be name:key pairs, separated by commas"),
    ("API_KEYS", "name:clé", "must hold keys of visible ASCII characters"),
    ("API_KEYS", "name:a key", "must hold keys of visible ASCII characters"),
    ("UPSTREAM_API_KEY", "Bearer abc", KEY_ALONE),
    ("UPSTREAM_API_KEY", "clé", KEY_ALONE),
    ("UPSTREAM_API_KEY", "a\nb", INVISIBLE),
    ("CALLBACK_HMAC_KEY", "a\u200bb", INVISIBLE),
    ("SECRET_KEYS", "a-secret-key-with\x7f-inside", INVISIBLE),
    ("DATABASE_URL", "sqlite+aiosqlite:///var/sound\npost.db", INVISIBLE),
    ("UPSTREAM_URL", "https://exa\nmple", INVISIBLE),
    ("UPSTREAM_URL", "https://exä..mple", ADDRESS),
    ("MODELS", ",", "must name at least one model"),
    ("MODELS", "V6,V5=", "must be models such as V6, and aliases"),
    ("MODELS", "V6,V5=V6=V4", "must be models such as V6, and aliases"),
    ("MODELS", "V6,V6", "must name each model once"),
    ("CREDIT_PRICE", "much", PRICE),
    ("CREDIT_PRICE", "-1", PRICE),
    ("CREDIT_PRICE", "2.5555", PRICE),
    ("CREDIT_PRICE", "V6=", PRICE),
    ("CREDIT_PRICE", "=4", PRICE),
    ("CREDIT_PRICE", "V6=4,V6=5", PRICE),
    ("CREDIT_PRICE", "4,5", "must have one price for all models"),
    ("QUEUE", "lifo", CHOICE),
    ("CORS_ORIGINS", "*", ORIGINS),
    ("CORS_ORIGINS", "https://*.example", ORIGINS),
    ("CORS_ORIGINS", "app.example", ORIGINS),
    ("CORS_ORIGINS", "https://app.example/page", ORIGINS),
    ("CORS_ORIGINS", "https://u:canary@app.example", ORIGINS),
    ("AUDIT_DAYS", "-1", CHOICE),
    ("UPSTREAM_RATE", "20", RATE),
    ("UPSTREAM_RATE", "0/10", RATE),
    ("UPSTREAM_RATE", "²/10", RATE),
    ("UPSTREAM_RATE", "20/0", POSITIVE),
    ("UPSTREAM_RATE", "20/x", SPAN),
    ("POLL_AFTER", "-1", SPAN),
    ("POLL_EVERY", "nan", SPAN),
    ("SUBMIT_DEADLINE", "soon", SPAN),
    ("SUBMIT_DEADLINE", "0", POSITIVE),
    ("TASK_DEADLINE", "inf", SPAN),
    ("TASK_DEADLINE", "0", POSITIVE),
    ("HOLD_RECHECK", "1e999", SPAN),
    ("HOLD_RECHECK", "0", POSITIVE),
    ("GRACE", "10s", SPAN),
    ("DRAIN_DELAY", "-1", SPAN),
    ("CALLBACK_TRUST", "blind", CHOICE),
    ("EGRESS_ALLOW", "10.0.0.0/8,localhost", "must be networks such as 10.0.0.0/8"),
    ("WEBHOOK_SCHEDULE", "0,never", SPAN),
    ("WEBHOOK_SCHEDULE", ",", "must name the pause before at least one attempt"),
    ("WEBHOOK_TIMEOUT", "0", POSITIVE),
    ("KEY_RATE", "60", RATE),
    ("STORAGE_URL", "/var/audio", "must be file: and a folder"),
    ("STORAGE_URL", "s3://key:canary@bucket", "must be file: and a folder"),
    ("STORAGE_URL", "s3:///prefix", "must be file: and a folder"),
    ("AUDIO_MAX_MB", "0", CHOICE),
    ("AUDIO_MAX_MB", "nan", CHOICE),
    ("LINK_TTL", "0", POSITIVE),
    ("S3_REDIRECT", "perhaps", CHOICE),
    ("CONSOLE", "perhaps", CHOICE),
    ("RETENTION_DAYS", "-1", CHOICE),
    ("RETENTION_DAYS", "for ever", CHOICE),
    ("WORKER_PORT", "0", CHOICE),
    ("LOG_FORMAT", "xml", CHOICE),
    ("LOG_LEVEL", "verbose", CHOICE),
    ("UPSTREAM_TIMEOUT", "0", POSITIVE),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands run: a folder without .env."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("name", "value", "sentence"), NONSENSE)
def test_setting_that_cannot_work_is_refused_with_a_sentence(
    name: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{PREFIX}{name}", value)

    ended = CliRunner().invoke(main, ["keys", "list"])

    [line] = ended.stderr.splitlines()
    assert ended.exit_code == 1
    assert line.startswith(f"{PREFIX}{name} {sentence}")
    assert "canary" not in line


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_what_surrounds_a_value_is_no_part_of_it(wrapping: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(GOOD) == {name.upper() for name in Settings.model_fields}
    for name, value in GOOD.items():
        monkeypatch.setenv(f"{PREFIX}{name}", value)
    plain = Settings()
    for name, value in GOOD.items():
        monkeypatch.setenv(f"{PREFIX}{name}", wrapping.format(value))

    wrapped = Settings()

    assert wrapped == plain
    assert {name for name in GOOD if getattr(plain, name.lower()) == getattr(_defaults(), name.lower())} == set()


@pytest.mark.parametrize("nothing", ["", " ", "\n", '""', "\ufeff"])
def test_value_of_nothing_but_white_space_is_not_set(nothing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in GOOD:
        monkeypatch.setenv(f"{PREFIX}{name}", nothing)

    assert Settings() == _defaults()


@pytest.mark.parametrize("value", ["INFO", "Debug", "warning"])
def test_log_level_is_read_in_any_case(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}LOG_LEVEL", value)

    assert Settings().log_level == value.lower()


def test_address_in_other_letters_is_kept_as_headers_and_requests_can_carry_it() -> None:
    settings = Settings(public_url="https://töne.example/grün/")

    assert settings.public_url == "https://xn--tne-sna.example/gr%C3%BCn"


def test_origin_is_kept_as_browsers_send_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given = "HTTPS://App.example:443, http://app.example:80,https://app.example:8443,http://[::1]:3000"
    monkeypatch.setenv(f"{PREFIX}CORS_ORIGINS", given)

    assert Settings().cors_origins == (
        *("https://app.example", "http://app.example", "https://app.example:8443", "http://[::1]:3000"),
    )


def test_every_setting_has_nonsense_that_it_refuses() -> None:
    tried = {name for name, _, _ in NONSENSE}

    assert {name.upper() for name in Settings.model_fields} - tried == set()


def test_every_setting_is_described_with_its_unit() -> None:
    for name, field in Settings.model_fields.items():
        description = field.description or ""
        assert len(description.split()) >= 5, name
        assert description.endswith("."), name
        if isinstance(field.default, timedelta):
            assert re.match(r"Seconds(,| from) .*(0 or more|more than 0)|Seconds.*0 or more", description), name


def test_every_wrong_setting_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}GRACE", "x")
    monkeypatch.setenv(f"{PREFIX}MODELS", ",")

    ended = CliRunner().invoke(main, ["keys", "list"])

    assert [line.split()[0] for line in ended.stderr.splitlines()] == [f"{PREFIX}MODELS", f"{PREFIX}GRACE"]


@pytest.mark.parametrize("name", SECRETS)
def test_refusal_repeats_no_secret(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}{name}", "canary")

    ended = CliRunner().invoke(main, ["keys", "create", "x"])

    assert "canary" not in ended.output


@pytest.mark.parametrize("secret", ["canary", "can/ary", "can%2Fary", "can@ary", "can:ary", "can?ary", "can#ary", "%"])
def test_password_of_the_database_is_in_no_reason(secret: str) -> None:
    url = f"postgresql://someone:{secret}@host/name"
    quotes = [f'could not translate host name "{secret}@host"', f"invalid port: '{secret}'", f"cannot open {url}"]

    said = " ".join(reason(ValueError(quote), url) for quote in quotes)

    assert secret == "%" or secret not in said
    assert "canary" not in said


def test_values_are_read_as_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "UPSTREAM_RATE": " 5 / 2.5 ",
        "MODELS": "V6, V5",
        "POLL_AFTER": "0.5",
        "EGRESS_ALLOW": "10.0.0.0/8, ::1",
        "PUBLIC_URL": "https://sounds.example/below/",
        "BASE_URL": "",
    }.items():
        monkeypatch.setenv(f"{PREFIX}{name}", value)

    settings = Settings()

    assert settings.upstream_rate == Rate(5, timedelta(seconds=2.5))
    assert list(settings.models) == ["V6", "V5"]
    assert settings.poll_after == timedelta(seconds=0.5)
    assert [str(network) for network in settings.egress_allow] == ["10.0.0.0/8", "::1/128"]
    assert settings.link_base == settings.callback_base == "https://sounds.example/below"


def test_defaults_are_those_of_the_contract() -> None:
    settings = Settings()

    spans = settings.poll_after, settings.poll_every, settings.submit_deadline, settings.task_deadline
    assert [span.total_seconds() for span in spans] == [45, 30, 900, 1800]
    assert settings.upstream_rate == Rate(20, timedelta(seconds=10))
    assert (settings.hold_recheck, settings.grace) == (timedelta(seconds=30), timedelta(seconds=10))
    assert (list(settings.models), settings.callback_trust, settings.log_level) == (["V5", "V5_5"], "token", "info")
    assert settings.upstream_url == "https://api.sunoapi.org"
    assert settings.callback_base == "https://soundpost.invalid"


@pytest.mark.parametrize("name", SECRETS)
def test_secret_may_be_in_a_file(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sqlite+aiosqlite:///from-a-file.db"
    (folder / "secret").write_text(f"{secret}\n")
    monkeypatch.setenv(f"{PREFIX}{name}_FILE", str(folder / "secret"))
    monkeypatch.setenv(f"{PREFIX}{name}", "sqlite+aiosqlite:///from-the-environment.db")

    value = getattr(Settings(), name.lower())

    assert (value if isinstance(value, str) else value.get_secret_value()) == secret


def test_variable_that_is_no_setting_is_named_with_the_nearest_that_is_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{PREFIX}POL_EVERY", "3")
    monkeypatch.setenv(f"{PREFIX}GRACE_FILE", "x")
    monkeypatch.setenv(f"{PREFIX}GRACE", "3")
    monkeypatch.setenv(f"{PREFIX}SECRET_KEYS_FILE", "x")
    # What Kubernetes sets beside a Service called soundpost.
    monkeypatch.setenv(f"{PREFIX}SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv(f"{PREFIX}PORT_8000_TCP_ADDR", "10.0.0.1")
    (folder / ".env").write_text(f"\ufeff{PREFIX}UPSTREAM_KEY=x\n{PREFIX}XYZZY=x\n{PREFIX}MODELS=V6\nOTHER=x\n")

    assert unknown_settings(Settings) == {
        f"{PREFIX}GRACE_FILE": f"{PREFIX}GRACE",
        f"{PREFIX}POL_EVERY": f"{PREFIX}POLL_EVERY",
        f"{PREFIX}UPSTREAM_KEY": f"{PREFIX}UPSTREAM_API_KEY",
        f"{PREFIX}XYZZY": None,
    }


def test_secret_file_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}SECRET_KEYS_FILE", str(folder / "absent"))

    ended = CliRunner().invoke(main, ["keys", "list"])

    assert ended.stderr == f"{PREFIX}SECRET_KEYS_FILE names a file that cannot be read: {folder / 'absent'}\n"


def test_file_in_the_current_folder_that_is_no_utf8_is_named(folder: Path) -> None:
    (folder / ".env").write_bytes(f"{PREFIX}MODELS=V5\xe9".encode("latin-1"))

    ended = CliRunner().invoke(main, ["keys", "list"])

    assert (ended.exit_code, ended.stderr) == (1, ".env cannot be read: it is not UTF-8\n")


def test_environment_wins_over_the_file_in_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".env").write_text(f"{PREFIX}GRACE=3\n{PREFIX}MODELS=V6\nSOMETHING_ELSE=x\n")
    monkeypatch.setenv(f"{PREFIX}GRACE", "4")

    settings = Settings()

    assert (settings.grace, list(settings.models)) == (timedelta(seconds=4), ["V6"])


def test_lease_outlives_the_request_it_is_taken_for() -> None:
    settings = Settings(upstream_timeout=timedelta(seconds=120), webhook_timeout=timedelta(seconds=60))

    assert settings.submit_lease > settings.upstream_timeout
    assert settings.webhook_lease > settings.webhook_timeout


def _defaults() -> Settings:
    with pytest.MonkeyPatch.context() as patch:
        for name in GOOD:
            patch.delenv(f"{PREFIX}{name}", raising=False)
        return Settings()


def test_value_given_in_code_is_checked_too() -> None:
    with pytest.raises(ValidationError, match="must name at least one model"):
        Settings(models={})
