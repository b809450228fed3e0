"""Archiving: downloading audio, covers and lyrics before the upstream's links expire."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import structlog
from sqlalchemy import bindparam, select

from app.clips.download import COVER, DownloadedFile, DownloadFailed, audio_of, fetch
from app.clips.repository import due_lanes, has_due_lane
from app.database.backoff import jittered
from app.database.claims import Claim, ClaimLost, Claims, extend_lease
from app.database.engine import on_commit
from app.database.failures import TRANSIENT
from app.database.wakeups import ARCHIVES, notify_on_commit
from app.egress.rules import authority_of
from app.errors import StorageUnavailable
from app.models import QUESTIONS, Clip, Task
from app.observability.redaction import hide_in_log
from app.observability.tracing import TraceContext
from app.services import Services
from app.tasks.clips import is_too_late, needs_audio, needs_cover, needs_lyrics
from app.tasks.repository import find_task
from app.upstream.pacing import questions_share
from app.workers.attempts import INTERRUPTED, Attempt, attempt
from app.workers.clip_commits import Change, ClipCommits, FileColumn, LockedClip
from app.workers.clip_lanes import links_to_try, next_lane, retry_delay, share_places
from app.workers.runner import Claimed, Loop

log = structlog.get_logger()

CONCURRENCY = 32
_OF_TASK = [
    select(column).where(Task.id == Clip.task_id).correlate(Clip).scalar_subquery()
    for column in (Task.upstream_task_id, Task.trace_context)
]
_IN_LANE = Claims(Clip, Clip.lane == bindparam("claimed_lane"), order=(Clip.attempts,), beside=_OF_TASK)
# Short, and extended during the work, so that what a crash leaves is taken over soon.
LEASE = timedelta(seconds=30)
EXTEND_EVERY = 10.0
# What came of a question for which the upstream's pace had no slot.
NO_SLOT = "no_slot"


@dataclass(frozen=True, slots=True)
class ClaimedClip:
    """A claimed clip, and the upstream's id and the trace context of its task."""

    clip: Clip
    upstream_task_id: str | None
    trace_context: TraceContext | None


def archive_loop(services: Services) -> Loop[ClaimedClip]:
    """The loop that archives clips."""
    worker = _ArchiveWorker(services)
    return Loop("archive", services.wakeups.event(ARCHIVES), CONCURRENCY, worker.claim, worker.work, has_due_lane())


class _ArchiveWorker:
    def __init__(self, services: Services) -> None:
        self._services, self._metrics = services, services.metrics
        self._commits = ClipCommits(services.database, services.metrics)
        self._audio = audio_of(services.settings.audio_limit)
        self._in_flight: Counter[str] = Counter()
        # Whether a lane may have more due clips than were claimed.
        self._is_crowded = False

    async def claim(self, limit: int) -> Claimed[ClaimedClip]:
        """Claim clips that still miss something, a share of each lane, those first that were tried least."""
        services = self._services
        async with services.database.transaction() as (session, now):
            lanes = list(await due_lanes(session, now))
            services.rng.shuffle(lanes)
            claimed, self._is_crowded = list[ClaimedClip](), False
            shares = share_places(lanes, self._in_flight, limit)
            for lane in lanes:
                claim = Claim(now, LEASE, shares[lane])
                rows = await _IN_LANE.claim_beside(session, claim, claimed_lane=lane) if claim.limit else ()
                self._is_crowded |= len(rows) == claim.limit
                claimed += [ClaimedClip(clip, *of_task) for clip, *of_task in rows]
        self._in_flight.update(each.clip.lane for each in claimed)
        return Claimed(claimed)

    async def work(self, claimed: ClaimedClip) -> None:
        """Archive what one clip misses; what cannot be had now is retried later."""
        try:
            await self._archive(claimed)
        finally:
            self._in_flight -= Counter([claimed.clip.lane])
            if self._is_crowded:
                self._services.wakeups.notify(ARCHIVES)

    async def _archive(self, claimed: ClaimedClip) -> None:
        clip = claimed.clip
        problem, had_slot, changes = clip.archive_error, True, list[Change]()
        with self._counted_loss():
            with _attempt(claimed) as made:
                async with self._extended_lease(clip):
                    if clip.lane == QUESTIONS:
                        had_slot = await self._ask(clip, made.line)
                    else:
                        has_cover = needs_cover(clip) and authority_of(clip.image_url or "") == clip.lane
                        if needs_audio(clip):
                            problem, changes = await self._archive_audio(clip, made.line)
                        if has_cover:
                            # The audio need not wait for the cover.
                            await self._change(clip, changes)
                            changes = await self._archive_cover(clip, made.line)
                made.is_alarming = made.line.get("problem") is not None
                made.failure = "failed" if made.is_alarming else None
                made.line["outcome"] = made.failure or "ok"
            release = partial(self._release, clip, problem, counts=had_slot)
            await self._change(clip, [*changes, release])

    @contextmanager
    def _counted_loss(self) -> Iterator[None]:
        try:
            yield
        except ClaimLost:
            self._metrics.leases_lost["archive"].inc()

    async def _change(self, clip: Clip, changes: Sequence[Change]) -> None:
        def change(held: LockedClip) -> None:
            for each in changes:
                each(held)

        if changes:
            await self._commits.change(clip, change)

    async def _ask(self, clip: Clip, line: dict[str, Any]) -> bool:
        """Ask the upstream for what no host has, in no place of a download; return whether its pace had a slot."""
        async with self._services.database.reads() as session:
            task = await find_task(session, clip.task_id)
        if task is None:
            raise ClaimLost
        hide_in_log(task.prompt)
        had_slot = True
        if needs_audio(clip):
            had_slot = await self._refresh_links(task, clip, line)
        if had_slot and needs_lyrics(clip, task):
            had_slot = await self._archive_lyrics(task, clip, line)
        return had_slot

    async def _archive_audio(self, clip: Clip, line: dict[str, Any]) -> tuple[str | None, list[Change]]:
        """Return why it failed, or None, and what to store of the file."""
        fetched, problem, began = None, None, time.monotonic()
        try:
            fetched = await self._fetch_first(links_to_try(clip))
            with fetched.file:
                await self._store(clip, fetched, "storage_key")
        except (DownloadFailed, StorageUnavailable) as error:
            problem = str(error)
            self._metrics.archived["audio", "failed"].inc()
        line["problem"] = problem
        if fetched is not None:
            line |= {"content_type": fetched.media_type, "size": fetched.size, "sha256": fetched.sha256}
        if fetched is None or problem:
            return problem, []
        return None, [partial(self._settle_audio, fetched=fetched, began=began)]

    async def _refresh_links(self, task: Task, clip: Clip, line: dict[str, Any]) -> bool:
        upstream_task_id = task.upstream_task_id
        if upstream_task_id is None:
            return True
        call = self._services.gateway.call
        result = await call(lambda upstream: upstream.record_info(upstream_task_id), questions_share)
        line["links"] = result.outcome.value if result else NO_SLOT
        if result is not None and (report := result.value) is not None:
            refresh = self._services.lifecycle.clips.refresh_links
            await self._commits.change(clip, lambda held: refresh(held.session, held.task, report, held.now))
        return result is not None

    async def _fetch_first(self, links: Sequence[str]) -> DownloadedFile:
        problems = [] if links else ["the upstream gives no link"]
        for link in links:
            try:
                return await fetch(self._services.egress_http, link, self._audio, self._services.storage)
            except DownloadFailed as error:
                problems.append(str(error))
        raise DownloadFailed("; ".join(dict.fromkeys(problems)))

    async def _store(self, clip: Clip, fetched: DownloadedFile, column: FileColumn) -> None:
        if not await self._commits.reserve(clip, column, fetched.key):
            raise DownloadFailed("the same file is being removed at this moment")
        await self._services.storage.write(fetched.key, fetched.file, fetched.size, fetched.media_type)

    def _settle_audio(self, held: LockedClip, fetched: DownloadedFile, began: float) -> None:
        """`began` is when the download did, on the monotonic clock in seconds."""
        held.clip.archive_started_at = held.now - timedelta(seconds=time.monotonic() - began)
        held.clip.content_type, held.clip.size = fetched.media_type, fetched.size
        held.clip.sha256, held.clip.duration = fetched.sha256, held.clip.duration or fetched.duration
        self._count_stored(held, "audio", fetched.size)
        self._services.lifecycle.clips.archived(held.session, held.task, held.clip, held.now)

    def _count_stored(self, held: LockedClip, file: str, size: int) -> None:
        on_commit(held.session, self._metrics.archived[file, "stored"].inc)
        on_commit(held.session, partial(self._metrics.archived_bytes[file].inc, size))

    async def _archive_cover(self, clip: Clip, line: dict[str, Any]) -> list[Change]:
        """Return what to store of the file, nothing if there is none."""
        try:
            fetched = await fetch(self._services.egress_http, clip.image_url or "", COVER, self._services.storage)
            with fetched.file:
                await self._store(clip, fetched, "image_key")
        except (DownloadFailed, StorageUnavailable) as error:
            self._metrics.archived["cover", "failed"].inc()
            line["cover"] = str(error)
            return []
        line["cover"] = "archived"

        def settle(held: LockedClip) -> None:
            held.clip.image_type, held.clip.image_size = fetched.media_type, fetched.size
            held.clip.image_sha256, held.clip.image_archived_at = fetched.sha256, held.now
            self._count_stored(held, "cover", fetched.size)

        return [settle]

    async def _archive_lyrics(self, task: Task, clip: Clip, line: dict[str, Any]) -> bool:
        upstream_ids = task.upstream_task_id or "", clip.upstream_clip_id or ""
        result = await self._services.gateway.call(lambda upstream: upstream.lyrics(*upstream_ids), questions_share)
        line["lyrics"] = result.outcome.value if result else NO_SLOT
        if result is not None and result.value is not None:
            words = [asdict(word) for word in result.value]
            store = self._services.lifecycle.clips.store_lyrics
            await self._commits.change(clip, lambda held: store(held.session, held.task, held.clip, words, held.now))
        return result is not None

    def _release(self, claimed: Clip, problem: str | None, held: LockedClip, *, counts: bool) -> None:
        """Release the claim, with the next attempt if something is missing; `counts`: covers and lyrics have a few."""
        row, held.clip.fence = held.clip, None
        row.archive_error, row.attempts = problem, row.attempts - (not counts)
        if needs_audio(row) and is_too_late(row, held.now):
            self._services.lifecycle.clips.give_up(held.session, held.task, row, held.now)
            on_commit(held.session, self._metrics.archived["audio", "given_up"].inc)
            ids = {"task_id": row.task_id, "upstream_task_id": held.task.upstream_task_id, "clip": row.index}
            on_commit(held.session, partial(log.warning, "archive_given_up", **ids, problem=problem))
        is_archived = needs_audio(claimed) and not needs_audio(row)
        lane = next_lane(row, held.task, is_asked=claimed.lane == QUESTIONS)
        if lane is None:
            row.due_at = None
            return
        row.lane, row.due_at = lane, held.now + jittered(retry_delay(row.attempts), self._services.rng)
        if lane != claimed.lane and (is_archived or (needs_audio(row) and claimed.lane == QUESTIONS)):
            # The step of this lane is done: the next one is the first attempt, or the one that asked for a link.
            row.due_at, row.attempts = held.now, 0 if is_archived else claimed.attempts - 1
            notify_on_commit(held.session, ARCHIVES)

    @asynccontextmanager
    async def _extended_lease(self, clip: Clip) -> AsyncIterator[None]:
        extending = asyncio.create_task(self._extend(clip))
        try:
            yield
        finally:
            extending.cancel()
            await asyncio.gather(extending, return_exceptions=True)

    async def _extend(self, clip: Clip) -> None:
        services = self._services
        while True:
            await asyncio.sleep(EXTEND_EVERY)
            with suppress(*TRANSIENT):
                async with services.database.writes.begin() as session:
                    until = await services.database.now(session) + LEASE
                    await extend_lease(session, Clip, clip.id, clip.fence, until)


def _attempt(claimed: ClaimedClip) -> AbstractContextManager[Attempt]:
    """One line of the log and one span about what is done for a clip."""
    clip = claimed.clip
    ids = {"task_id": clip.task_id, "upstream_task_id": claimed.upstream_task_id, "clip": clip.index}
    name = "question" if clip.lane == QUESTIONS else "archive"
    return attempt(name, claimed.trace_context, {**ids, "attempt": clip.attempts, "outcome": INTERRUPTED})
