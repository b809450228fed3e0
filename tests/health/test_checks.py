"""Each check stands alone: none ends the others, by whatever it raises or however long it takes."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from app.health.checks import Limits, run_checks
from app.health.results import Check, Skipped

LIMITS = Limits(each=timedelta(seconds=0.05), total=timedelta(seconds=10))


async def well() -> Check:
    return Check(status="ok", detail="well")


async def absent() -> Check:
    raise ConnectionError("refused by db.internal")


async def broken() -> Check:
    raise ZeroDivisionError("a secret word")


async def slow() -> Check:
    await asyncio.Event().wait()
    raise AssertionError


async def described(checks: AsyncGenerator[tuple[str, Check | Skipped]]) -> dict[str, tuple[str, str]]:
    return {
        name: ("skipped", str(found)) if isinstance(found, Skipped) else (found.status, found.detail)
        async for name, found in checks
    }


def kind_of(error: Exception) -> str:
    return type(error).__name__


async def test_check_that_fails_or_hangs_leaves_the_others_alone() -> None:
    checks = {"overdue": slow, "storage": broken, "public_url": broken, "secret_keys": well}
    with capture_logs() as lines:
        found = await described(run_checks(checks, kind_of, LIMITS))

    assert {name: status for name, (status, _) in found.items()} == {
        "overdue": "degraded",
        "storage": "down",
        "public_url": "degraded",
        "secret_keys": "ok",
    }
    assert "it cannot be checked (ZeroDivisionError)" in found["storage"][1]
    assert "a secret word" not in str(found)
    assert [line["check"] for line in lines if line["event"] == "check_failed"] == ["storage", "public_url"]


@pytest.mark.parametrize(("name", "status"), [("database", "down"), ("migrations", "down"), ("queue", "degraded")])
async def test_only_what_requests_need_is_down_without_the_database(name: str, status: str) -> None:
    found = await described(run_checks({name: absent}, kind_of, LIMITS))

    assert found[name] == (status, "the database does not answer (ConnectionError): check SOUNDPOST_DATABASE_URL")


async def test_what_needs_a_check_that_is_down_is_skipped_with_the_reason() -> None:
    checks = {"database": absent, "migrations": well, "storage": well, "queue": well}
    found = await described(run_checks(checks, kind_of, LIMITS))

    assert found["migrations"] == ("skipped", "not checked, because of `database`")
    assert found["queue"] == ("skipped", "not checked, because of `migrations`")
    assert found["storage"] == ("ok", "well")
