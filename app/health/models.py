"""Whether the upstream takes the models that are ordered."""

from __future__ import annotations

from app.config import Settings
from app.database.engine import Database
from app.health.results import Check
from app.observability.redaction import printable
from app.upstream.refusals import read_refusals

ADVICE = (
    "their tasks wait, and one is sent now and then to see whether that has changed; where it will not, send another"
    " model for it by SOUNDPOST_MODELS, such as {name}=V6, or cancel them"
)


async def check_models(database: Database, settings: Settings) -> Check:
    """Which models the upstream refuses, in its own words, since when, and what to do about it."""
    async with database.reads() as session:
        now = await database.now(session)
        refused = (await read_refusals(session, settings.hold_recheck)).refused(now)
    if not refused:
        return Check(status="ok", detail="the upstream refuses no model, as far as is known")
    told = "; ".join(
        f"the upstream refuses the model {model.name} since {model.since.isoformat(timespec='seconds')}"
        f' ("{printable(model.message)}")'
        for model in refused
    )
    return Check(status="degraded", detail=f"{told}: {ADVICE.format(name=refused[0].name)}")
