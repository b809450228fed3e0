"""Which of SOUNDPOST_SECRET_KEYS signs, kept in the database by fingerprint: processes must not have other lists."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog
from sqlalchemy import func, select

from app.database.engine import Session, insert_new
from app.keyring import Keyring
from app.models import ApiKey, PeriodicJob, WebhookEndpoint

log = structlog.get_logger()
# The row never falls due.
ROW = "last:signing_keys"
# How long a key that was replaced without being kept for verification is told of.
TOLD_FOR = timedelta(hours=24)


async def note_signing_key(session: Session, keyring: Keyring, now: datetime) -> None:
    """Note at a start which key signs from now on, and warn if this process could not verify what was signed before."""
    await insert_new(session, PeriodicJob, {"name": ROW, "attempts": 0, "detail": {}})
    row = await session.get_one(PeriodicJob, ROW, with_for_update=True, populate_existing=True)
    before = row.detail.get("signer")
    detail = {**row.detail, "signer": keyring.signer}
    if before is not None and before not in keyring.fingerprints:
        log.error("secret_keys_do_not_match", signed_before=before, keys=list(keyring.fingerprints))
        detail |= {"replaced": before, "replaced_at": now.isoformat()}
    if detail != row.detail:
        row.detail = detail
    for problem in await find_mismatches(session, keyring, now):
        log.warning("secret_keys_incomplete", problem=problem)


async def find_mismatches(session: Session, keyring: Keyring, now: datetime) -> Sequence[str]:
    """What this process cannot verify or sign, in sentences that say what to do."""
    row = await session.get(PeriodicJob, ROW)
    detail = row.detail if row else {}
    signer, replaced, at = (str(detail.get(name, "")) for name in ("signer", "replaced", "replaced_at"))
    found = []
    if signer and signer not in keyring.fingerprints:
        found.append(
            f"another process signs with the key {signer}, which is not in SOUNDPOST_SECRET_KEYS here: this process"
            " refuses its links and callback URLs; give every process the same list"
        )
    elif replaced and replaced not in keyring.fingerprints and now < datetime.fromisoformat(at) + TOLD_FOR:
        found.append(
            f"SOUNDPOST_SECRET_KEYS has lost the key {replaced}, which signed until {at[:19]}Z: links and callback URLs"
            " from before are refused; put it back at the end of the list, unless it has leaked"
        )
    lost = 0
    for owner in (ApiKey, WebhookEndpoint):
        is_lost = owner.secret_key.not_in(keyring.fingerprints)
        lost += await session.scalar(select(func.count()).select_from(owner).where(is_lost)) or 0
    if lost:
        found.append(
            f"{lost} webhook secrets were made with a key that SOUNDPOST_SECRET_KEYS has lost, so they have changed:"
            " put it back at the end of the list, or let their owners fetch the new ones"
        )
    is_lost = WebhookEndpoint.headers_key.not_in(keyring.fingerprints)
    unreadable = await session.scalar(select(func.count()).select_from(WebhookEndpoint).where(is_lost)) or 0
    if unreadable:
        found.append(
            f"the headers of {unreadable} webhook endpoints were encrypted with a key that SOUNDPOST_SECRET_KEYS has"
            " lost, so nothing is sent there: put it back at the end of the list, or let their owners set them again"
        )
    return found
