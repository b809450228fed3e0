"""Callers' keys: made by an operator, kept as a hash, refused from the moment they are revoked."""

import json
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select
from typer.testing import CliRunner, Result

from app.auth.api_keys import create_key, insert_configured_keys, parse_configured_keys, revoke_key
from app.cli.main import main
from app.models import ApiKey
from tests.support.rows import add_key, add_task
from tests.support.service import Service, serve
from tests.support.settings import KEY, SECRET_KEY


@pytest.fixture
def database_of_the_command(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The database that commands without further settings use."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOUNDPOST_DATABASE_URL", database_url)
    monkeypatch.setenv("SOUNDPOST_SECRET_KEYS", SECRET_KEY)
    return database_url


def test_key_alone_is_printed_when_it_is_made(database_of_the_command: str) -> None:
    made = _keys("create", "my backend")

    assert made.exit_code == 0
    assert made.stdout.startswith("sp_")
    assert made.stdout.split() == [made.stdout.strip()]
    assert made.stderr == ""


def test_keys_are_listed_without_the_keys(database_of_the_command: str) -> None:
    key = _keys("create", "first").stdout.strip()
    _keys("create", "second", "--admin")

    as_text, as_json = _keys("list").stdout, json.loads(_keys("list", "--json").stdout)

    assert [(each["name"], each["admin"], each["revoked_at"]) for each in as_json] == [
        ("first", False, None),
        ("second", True, None),
    ]
    assert [line.split("  ")[1:] for line in as_text.splitlines()] == [
        ["first", "active"],
        ["second (admin)", "active"],
    ]
    assert key not in as_text + json.dumps(as_json)


def test_only_an_active_key_can_be_revoked(database_of_the_command: str) -> None:
    _keys("create", "one")
    [key] = json.loads(_keys("list", "--json").stdout)

    first, again, unknown = _keys("revoke", key["id"]), _keys("revoke", key["id"]), _keys("revoke", "nonsense")

    assert (first.exit_code, first.stdout) == (0, "Revoked.\n")
    assert [(each.exit_code, each.stdout) for each in (again, unknown)] == [(1, "")] * 2
    assert "No active key has this id" in again.stderr
    assert json.loads(_keys("list", "--json").stdout)[0]["revoked_at"] is not None


@pytest.mark.parametrize("name", ["", "x" * 101])
def test_name_of_a_key_is_bounded(database_of_the_command: str, name: str) -> None:
    refused = _keys("create", name)

    assert (refused.exit_code, refused.stderr) == (1, "NAME must be 1 to 100 characters.\n")


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_database_that_does_not_answer_is_reported_in_a_sentence(
    database_of_the_command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUNDPOST_DATABASE_URL", "postgresql+asyncpg://user:canary@127.0.0.1:9/none")

    refused = _keys("list")

    assert refused.exit_code == 1
    assert refused.stderr.startswith("The database does not answer (")
    assert "canary" not in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


async def test_made_key_opens_the_service_until_it_is_revoked(service: Service) -> None:

    async with service.database.writes.begin() as session:
        key = await create_key(session, "new", await service.database.now(session), is_admin=False)
    opened = await _ask(service, key)
    async with service.database.writes.begin() as session:
        key_id = (await session.scalars(select(ApiKey.id).where(ApiKey.name == "new"))).one()
        await revoke_key(session, key_id, await service.database.now(session))
    closed = await _ask(service, key)

    assert (opened.status_code, closed.status_code) == (200, 401)


async def test_only_the_hash_of_a_key_is_stored(service: Service) -> None:
    async with service.database.reads() as session:
        [row] = (await session.scalars(select(ApiKey))).all()

    assert KEY not in str(vars(row))
    assert len(row.key_hash) == 64


async def test_without_a_valid_key_everything_is_refused(service: Service) -> None:
    strange = ["Bearer", f"Basic {KEY}", "Bearer wrong", f"Bearer {KEY} x", f"Bearer {KEY}x", KEY]
    given = [value.encode("latin-1") for value in [*strange, "Bearer \xff", "Bearer \xe9"]]

    async with httpx.AsyncClient(base_url=service.client.base_url, trust_env=False) as stranger:
        answers = [await stranger.get("/v1/tasks", headers={b"Authorization": value}) for value in given]
        answers.append(await stranger.get("/v1/tasks"))

    assert {answer.status_code for answer in answers} == {401}
    assert {answer.headers["www-authenticate"] for answer in answers} == {"Bearer"}
    assert len({answer.content for answer in answers}) == 1


async def test_scheme_may_be_written_in_any_case(service: Service) -> None:
    assert (await service.client.get("/v1/tasks", headers={"Authorization": f"bEARER {KEY}"})).status_code == 200


async def test_admin_sees_every_callers_tasks(service: Service) -> None:

    task = await add_task(service.database, await add_key(service.database, "another"))
    async with service.database.writes.begin() as session:
        admin = await create_key(session, "admin", await service.database.now(session), is_admin=True)

    seen = await _ask(service, admin, f"/v1/tasks/{task.id}")
    listed = await _ask(service, admin)

    assert seen.status_code == 200
    assert [each["id"] for each in listed.json()["items"]] == [task.id]


async def test_configured_keys_are_known_after_a_start_and_stay_revoked(database_url: str) -> None:
    async with serve(database_url) as service, service.database.writes.begin() as session:
        key = (await session.scalars(select(ApiKey))).one()
        key.revoked_at = key.created_at

    async with serve(database_url, api_keys=f"tests:{KEY},another:other-key") as service:
        assert (await service.client.get("/v1/tasks")).status_code == 401
        assert (await _ask(service, "other-key")).status_code == 200


async def test_keeping_configured_keys_again_changes_nothing(service: Service) -> None:
    for _ in range(2):
        await insert_configured_keys(service.database, "one:key-1, two:key-2")

    async with service.database.reads() as session:
        names = (await session.scalars(select(ApiKey.name).order_by(ApiKey.id))).all()
    assert sorted(names) == ["one", "tests", "two"]


@pytest.mark.parametrize("text", ["name", "name:", ":key", "a:1,b"])
def test_configured_keys_that_cannot_be_read_are_refused_without_repeating_them(text: str) -> None:
    with pytest.raises(ValueError, match=r"^SOUNDPOST_API_KEYS must be name:key pairs, separated by commas$"):
        parse_configured_keys(text)


def test_configured_key_may_hold_colons_and_spaces_around() -> None:
    assert parse_configured_keys(" a : k:1 ,, b:2 ") == [("a", "k:1"), ("b", "2")]


async def _ask(service: Service, key: str, path: str = "/v1/tasks") -> httpx.Response:
    return await service.client.get(path, headers={"Authorization": f"Bearer {key}"})


def _keys(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["keys", *arguments])
