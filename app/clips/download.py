"""Fetching a file that a link leads to, and believing only what was checked."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import IO

import httpx

from app.clips.media_types import HEAD, SUFFIXES, measure_open, sniff, sniff_image
from app.egress import AnswerTooLarge, Download, EgressRefused, ExchangeTooSlow, stream_following


class DownloadFailed(Exception):
    """The link led to nothing that we keep; the message says why and names no address."""


@dataclass(frozen=True, slots=True)
class MediaPolicy:
    """What a link should lead to. `limit` is in bytes, `within` for the whole download."""

    name: str
    sniff: Callable[[bytes], str | None]
    limit: int
    within: timedelta
    is_measured: bool = False


@dataclass(frozen=True, slots=True)
class DownloadedFile:
    """A checked file; its bytes are in a temporary one without a name, so that no crash leaves it behind."""

    file: IO[bytes]
    size: int
    sha256: str
    media_type: str
    duration: float | None

    @property
    def key(self) -> str:
        """Where it is kept: equal bytes have one place."""
        return f"sha256/{self.sha256[:2]}/{self.sha256[2:]}{SUFFIXES[self.media_type]}"


def audio_of(limit: int) -> MediaPolicy:
    """A sound of at most so many bytes."""
    return MediaPolicy("audio", sniff, limit, timedelta(seconds=60), is_measured=True)


COVER = MediaPolicy("cover", sniff_image, 10_000_000, timedelta(seconds=20))


async def fetch(client: httpx.AsyncClient, url: str, kind: MediaPolicy) -> DownloadedFile:
    """Download and check one file, which the caller closes. Raises DownloadFailed."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - it outlives this call
    try:
        digest, size = await _download(client, url, kind, file)
        media_type, duration = await asyncio.to_thread(_judge, file, kind)
    except BaseException:
        file.close()
        raise
    return DownloadedFile(file, size, digest, media_type, duration)


async def _download(client: httpx.AsyncClient, url: str, kind: MediaPolicy, file: IO[bytes]) -> tuple[str, int]:
    digest, size = sha256(), 0
    try:
        async with stream_following(client, url, limit=kind.limit, within=kind.within) as download:
            promised = _promised(download, kind)
            async for chunk in download.chunks:
                digest.update(chunk)
                size += file.write(chunk)
    except httpx.TransportError as error:
        raise DownloadFailed(_retold(error, kind)) from error
    except OSError as error:
        raise DownloadFailed(f"this machine cannot hold the file: {error.strerror}") from error
    if size == 0:
        raise DownloadFailed("the file is empty")
    if promised is not None and size != promised:
        raise DownloadFailed(f"{size} of {promised} promised bytes came")
    return digest.hexdigest(), size


def _promised(download: Download, kind: MediaPolicy) -> int | None:
    """The announced size. Raises DownloadFailed where the answer's head tells that this is not the file."""
    if download.status != 200:
        raise DownloadFailed(f"the host answered {download.status}")
    if download.headers.get("content-encoding", "identity") != "identity":
        raise DownloadFailed("the file came compressed, though we asked for it as it is")
    length = download.headers.get("content-length", "")
    if not length.isdecimal():
        return None
    if int(length) > kind.limit:
        raise DownloadFailed(f"the file is larger than {kind.limit} bytes")
    return int(length)


def _judge(file: IO[bytes], kind: MediaPolicy) -> tuple[str, float | None]:
    file.seek(0)
    media_type = kind.sniff(file.read(HEAD))
    if media_type is None:
        raise DownloadFailed(f"the file is no {kind.name} that we know")
    duration = measure_open(file) if kind.is_measured else None
    if kind.is_measured and duration is None:
        raise DownloadFailed(f"the file cannot be played as {media_type}, or ends too early")
    return media_type, duration


def _retold(error: httpx.TransportError, kind: MediaPolicy) -> str:
    if isinstance(error, AnswerTooLarge):
        return f"the file is larger than {kind.limit} bytes"
    if isinstance(error, EgressRefused | ExchangeTooSlow):
        return str(error)
    # Other messages are the libraries', and may repeat the address.
    return f"the connection broke ({type(error).__name__})"
