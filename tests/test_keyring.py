"""What derives from the secret keys, and where these come from."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.keyring import Keyring, KeyringUnusable, load_or_create_keyring
from tests.support.settings import settings_of

OLD, NEW = "the-old-key-of-the-service", "the-new-key-of-the-service"
TASK = "0" * 32


def test_token_of_a_task_never_changes() -> None:
    assert Keyring(OLD).callback_token(TASK) == "7LnhnzBByGmOEx7FztLN9Fjj_WluQdk5"


def test_every_task_has_its_own_token() -> None:
    keyring = Keyring(OLD)

    assert not keyring.is_callback_token("1" * 32, keyring.callback_token(TASK))


def test_first_key_signs_and_every_key_verifies() -> None:
    before, during, after = Keyring(OLD), Keyring(NEW, OLD), Keyring(NEW)
    old_token = before.callback_token(TASK)

    assert during.callback_token(TASK) == after.callback_token(TASK) != old_token
    assert during.is_callback_token(TASK, old_token)
    assert during.is_callback_token(TASK, after.callback_token(TASK))
    assert not after.is_callback_token(TASK, old_token)


@pytest.mark.parametrize("token", ["", "x", "é\0", "\ud800", "x" * 100_000, "\xff" * 32])
def test_comparing_never_raises(token: str) -> None:
    assert not Keyring(OLD).is_callback_token(TASK, token)


def test_purposes_share_no_secret() -> None:
    keyring = Keyring(OLD)

    assert keyring.derive("callback", TASK) != keyring.derive("link", TASK)


@pytest.mark.parametrize("keys", [(), ("",), ("short",), (OLD, "short")])
def test_what_is_no_secret_is_refused(keys: tuple[str, ...]) -> None:
    with pytest.raises(KeyringUnusable, match="each of 16 characters or more"):
        Keyring(*keys)


def test_key_beside_sqlite_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    settings = settings_of(f"sqlite+aiosqlite:///{tmp_path}/var/soundpost.db", secret_keys=None)

    first, second = load_or_create_keyring(settings), load_or_create_keyring(settings)

    [file] = (tmp_path / "var").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert first.callback_token(TASK) == second.callback_token(TASK)


def test_key_beside_sqlite_is_read_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(f"sqlite+aiosqlite:///{tmp_path}/soundpost.db", secret_keys=None)
    made = load_or_create_keyring(settings)

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "open", refuse)

    assert load_or_create_keyring(settings).signer == made.signer


def test_processes_that_start_at_once_agree_on_one_key(tmp_path: Path) -> None:
    settings = settings_of(f"sqlite+aiosqlite:///{tmp_path}/soundpost.db", secret_keys=None)

    with ThreadPoolExecutor(16) as threads:
        made = list(threads.map(lambda _: load_or_create_keyring(settings).callback_token(TASK), range(64)))

    assert len(set(made)) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_postgresql_requires_configured_keys() -> None:
    settings = settings_of("postgresql+asyncpg://soundpost@127.0.0.1/soundpost", secret_keys=None)

    with pytest.raises(KeyringUnusable, match="SOUNDPOST_SECRET_KEYS must be set"):
        load_or_create_keyring(settings)


def test_list_of_keys_is_read_from_the_setting() -> None:
    settings = settings_of("sqlite+aiosqlite:///unused.db", secret_keys=f" {NEW} , {OLD},")

    assert load_or_create_keyring(settings).is_callback_token(TASK, Keyring(OLD).callback_token(TASK))


def test_secrets_are_shown_nowhere() -> None:
    settings = settings_of("sqlite+aiosqlite:///unused.db", secret_keys=NEW, upstream_api_key="upstream-key")

    shown = f"{settings!r} {settings} {load_or_create_keyring(settings)!r}"

    assert NEW not in shown
    assert "upstream-key" not in shown
