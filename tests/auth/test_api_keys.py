"""API keys: created by an operator, stored as a hash, refused once they are revoked."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select, update
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from app.auth.api_keys import OVERLAP, create_key, find_active, revoke_key, rotate_key
from app.auth.callers import hash_key
from app.auth.configured_keys import doubts_about, insert_configured_keys
from app.cli.main import main
from app.config import parse_api_keys
from app.lifecycle import running
from app.models import ApiKey, FormerKey
from tests.support.rows import add_key, add_task
from tests.support.service import Service, serve, services_of
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
    revoked_at = json.loads(_keys("list", "--json").stdout)[0]["revoked_at"]
    revived, rotated = _keys("rotate", key["id"]), _keys("rotate", key["id"])

    assert (first.exit_code, first.stdout) == (0, "Revoked.\n")
    assert [(each.exit_code, each.stdout) for each in (again, unknown)] == [(1, "")] * 2
    assert "No active key has this id" in again.stderr
    assert revoked_at is not None
    assert (revived.stdout[:3], rotated.stderr) == ("sp_", "")
    assert "was revoked: with the new one it gets in again" in revived.stderr


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 101])
def test_name_of_a_key_is_bounded(database_of_the_command: str, name: str) -> None:
    refused = _keys("create", name)

    assert (refused.exit_code, refused.stderr) == (
        1,
        "NAME must be 1 to 100 printable characters, without white space around them.\n",
    )


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

    with capture_logs() as lines:
        async with serve(database_url, api_keys=f"tests:{KEY},another:other-key") as service:
            assert (await service.client.get("/v1/tasks")).status_code == 401
            assert (await _ask(service, "other-key")).status_code == 200

    assert [line["name"] for line in lines if line["event"] == "configured_key_is_revoked"] == ["tests"]


async def test_configured_key_that_has_expired_stays_so_and_is_told_of(service: Service) -> None:
    async with service.database.writes.begin() as session:
        key = (await session.scalars(select(ApiKey))).one()
        key.expires_at = key.created_at

    with capture_logs() as lines:
        await insert_configured_keys(service.database, f"tests:{KEY}")

    told = [line["advice"] for line in lines if line["event"] == "configured_key_has_expired"]
    assert told == [
        f"The key of tests has expired; `soundpost keys set {key.id} --no-expiry` lets it work again.",
    ]
    assert (await service.client.get("/v1/tasks")).status_code == 401


async def test_keeping_configured_keys_again_changes_nothing(service: Service) -> None:
    for _ in range(2):
        await insert_configured_keys(service.database, "one:key-1, two:key-2")

    async with service.database.reads() as session:
        names = (await session.scalars(select(ApiKey.name).order_by(ApiKey.id))).all()
    assert sorted(names) == ["one", "tests", "two"]


async def test_key_that_is_no_longer_configured_is_refused_until_it_is_listed_again(database_url: str) -> None:
    both, fewer = f"tests:{KEY},old:the-old-key", f"tests:{KEY}"
    answers = []
    for listed in (both, fewer, both, None, fewer):
        async with serve(database_url, api_keys=listed) as service:
            mine, old = (await _ask(service, KEY)).status_code, (await _ask(service, "the-old-key")).status_code
            answers.append((mine, old))

    assert answers == [(200, 200), (200, 401), (200, 200), (401, 401), (200, 401)]


async def test_start_with_another_list_decides_for_the_replicas_that_run(service: Service) -> None:
    async with serve(service.database.url, api_keys="new:the-new-key"):
        refused, added = await _ask(service, KEY), await _ask(service, "the-new-key")
    # A replica that still has the old list starts in the middle of a rolling restart; the next one ends it.
    async with serve(service.database.url, api_keys=f"tests:{KEY}"):
        pass
    async with serve(service.database.url, api_keys="new:the-new-key"):
        pass

    ended = [(await _ask(service, key)).status_code for key in (KEY, "the-new-key")]
    assert (refused.status_code, added.status_code, ended) == (401, 200, [401, 200])


async def test_worker_without_the_list_revokes_nothing(service: Service) -> None:
    async with (
        services_of(service.database.url, api_keys=None) as worker,
        running(worker, runs_workers=False),
    ):
        pass

    assert (await _ask(service, KEY)).status_code == 200


async def test_key_made_by_an_operator_is_not_touched_by_the_list(service: Service) -> None:
    made = await _made(service, "backend")

    with capture_logs() as lines:
        await insert_configured_keys(service.database, "backend:another-key-of-this-name")

    assert [line["name"] for line in lines if line["event"] == "configured_name_in_use"] == ["backend"]
    assert [(await _ask(service, key)).status_code for key in (made, KEY)] == [200, 401]


async def test_other_key_under_a_configured_name_is_the_same_callers(service: Service) -> None:
    task_id = await service.create_task()

    await insert_configured_keys(service.database, "tests:another-key")

    assert (await _ask(service, "another-key", f"/v1/tasks/{task_id}")).status_code == 200
    assert (await _ask(service, KEY)).status_code == 401


@pytest.mark.parametrize(("overlap", "status"), [(OVERLAP, 200), (timedelta(), 401)])
async def test_rotated_key_is_the_same_callers(service: Service, overlap: timedelta, status: int) -> None:
    task_id = await service.create_task()

    new = await _rotate(service, "tests", overlap)

    assert (await _ask(service, new, f"/v1/tasks/{task_id}")).status_code == 200
    assert (await _ask(service, KEY)).status_code == status
    # It is in SOUNDPOST_API_KEYS as before, which neither makes a second caller nor lets it in again.
    await insert_configured_keys(service.database, f"tests:{KEY}")
    await insert_configured_keys(service.database, "")
    assert (await _ask(service, new)).status_code == 200
    assert (await _ask(service, KEY)).status_code == status
    async with service.database.reads() as session:
        assert len((await session.scalars(select(ApiKey))).all()) == 1


async def test_rotation_of_a_revoked_key_revives_no_earlier_one(service: Service) -> None:
    second = await _rotate(service, "tests", OVERLAP)
    async with service.database.transaction() as (session, now):
        caller = (await session.scalars(select(ApiKey).where(ApiKey.name == "tests"))).one()
        assert await revoke_key(session, caller.id, now)
        third = await rotate_key(session, caller.id, now, OVERLAP)

    answers = [(await _ask(service, key)).status_code for key in (KEY, second, str(third))]
    assert answers == [401, 401, 200]


async def test_rotated_key_works_for_a_day(service: Service) -> None:
    old = await _made(service, "backend")
    new = await _rotate(service, "backend", OVERLAP)
    newest = await _rotate(service, "backend", OVERLAP)
    async with service.database.writes.begin() as session:
        past = update(FormerKey).where(FormerKey.key_hash == hash_key(old))
        await session.execute(past.values(works_until=datetime.now(UTC)))

    assert [(await _ask(service, key)).status_code for key in (old, new, newest)] == [401, 200, 200]

    last = await _rotate(service, "backend", timedelta())

    assert [(await _ask(service, key)).status_code for key in (new, newest, last)] == [401, 401, 200]


async def test_revoked_caller_gets_in_again_only_with_the_new_key(service: Service) -> None:
    old = await _made(service, "backend")
    async with service.database.transaction() as (session, now):
        caller = await find_active(session, "backend")
        assert caller is not None
        await revoke_key(session, caller.id, now)
        new = await rotate_key(session, caller.id, now, OVERLAP)

    assert [(await _ask(service, key)).status_code for key in (old, str(new))] == [401, 200]


def test_name_in_use_is_refused_with_a_hint(database_of_the_command: str) -> None:
    _keys("create", "shop")
    [key] = json.loads(_keys("list", "--json").stdout)

    again = _keys("create", "shop")
    rotated, at_once, unknown = _keys("rotate", key["id"]), _keys("rotate", key["id"], "--now"), _keys("rotate", "x")

    assert (again.exit_code, again.stdout) == (1, "")
    assert f"`soundpost keys rotate {key['id']}`" in again.stderr
    assert [(each.exit_code, each.stdout[:3]) for each in (rotated, at_once)] == [(0, "sp_")] * 2
    assert (unknown.exit_code, unknown.stdout) == (1, "")
    assert "No key has this id" in unknown.stderr
    assert [each["name"] for each in json.loads(_keys("list", "--json").stdout)] == ["shop"]

    _keys("revoke", key["id"])
    another = _keys("create", "shop")

    assert (another.exit_code, another.stdout[:3]) == (0, "sp_")
    assert "another caller than the revoked one of this name" in another.stderr
    assert f"`soundpost keys rotate {key['id']}`" in another.stderr


@pytest.mark.parametrize("text", ["name", "name:", ":key", "a:1,b"])
def test_configured_keys_that_cannot_be_read_are_refused_without_repeating_them(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must be name:key pairs, separated by commas$"):
        parse_api_keys(text)


@pytest.mark.parametrize(
    ("configured", "doubts"),
    [
        ("", []),
        (f"shop:{KEY},other:{KEY[::-1]}", []),
        (f"shop:{KEY}, other:{KEY}", ["shop and other have one key: it is one caller, named as it is last"]),
        (f"shop:{KEY},shop:{KEY[::-1]}", ["shop is there with different keys, which are different callers"]),
        ("tiny:x", ["the key of tiny has fewer than 16 characters, so others may guess it"]),
    ],
)
def test_what_may_be_a_mistake_in_the_configured_keys_is_said(configured: str, doubts: list[str]) -> None:
    assert doubts_about(configured) == doubts


def test_configured_key_may_hold_colons_and_spaces_around() -> None:
    assert parse_api_keys(" a : k:1 ,, b:2 ") == [("a", "k:1"), ("b", "2")]


async def _made(service: Service, name: str) -> str:
    async with service.database.transaction() as (session, now):
        return await create_key(session, name, now, is_admin=False)


async def _rotate(service: Service, name: str, overlap: timedelta) -> str:
    async with service.database.transaction() as (session, now):
        caller = await find_active(session, name)
        assert caller is not None
        return str(await rotate_key(session, caller.id, now, overlap))


async def _ask(service: Service, key: str, path: str = "/v1/tasks") -> httpx.Response:
    return await service.client.get(path, headers={"Authorization": f"Bearer {key}"})


def _keys(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["keys", *arguments])
