"""No statement about budgets reads a growing table from end to end."""

from sqlalchemy import select

from app.budgets.ledger import LET_IN
from app.enums import Window
from app.models import PeriodicJob
from app.workers.let_in import let_in_held
from tests.budgets.accounts import give, key_of
from tests.database.test_plans import _plans, _scans
from tests.support.filling import add_owner, fill_finished, fill_held, fill_ledgers, fill_queued, settle_statistics
from tests.support.rows import add_key
from tests.support.service import Service
from tests.support.statements import recorded


async def test_no_statement_about_budgets_scans_a_growing_table(service: Service) -> None:
    database, key_id = service.database, await key_of(service)
    keys = [key_id, *[await add_key(database, f"caller {number}") for number in range(7)]]
    owners = [await add_owner(database, each) for each in keys]
    await fill_finished(database, owners, 8000)
    await fill_queued(database, owners, 2000)
    await fill_held(database, owners, 2000)
    await fill_ledgers(database, owners, 8000)
    await settle_statistics(database)
    async with database.reads() as session:
        now = await database.now(session)
    with recorded(database) as statements:
        for limit, window in ((5, Window.day), (5, Window.month), (None, None), (10, Window.month)):
            await give(database, key_id, limit, window, now)
        placed = [await service.create_task(hold=True) for _ in range(5)]
        for task_id in (placed[0], placed[4]):
            (await service.client.post(f"/v1/tasks/{task_id}/cancel")).raise_for_status()
        async with database.reads() as session:
            job = (await session.scalars(select(PeriodicJob).where(PeriodicJob.name == LET_IN))).one()
        await let_in_held(service.services, job)

    plans = await _plans(service, {statement.sql: statement for statement in statements}.values())
    scans = {sql: plan for sql, plan in plans.items() if _scans(sql, plan)}
    assert not scans, "\n\n".join(f"{sql}\n{plan}" for sql, plan in scans.items())
    held = [plan for sql, plan in plans.items() if "tasks.due_at IS NULL" in sql]
    assert len(held) >= 3
    assert all("ix_tasks_held" in plan for plan in held), held
