"""Downloads a file from the upstream's link and checks that it is whole and of the expected policy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import IO

import httpx

from app.clips.media_types import HEAD, SUFFIXES, measure_open, sniff, sniff_image
from app.egress import (
    Download,
    EgressRefused,
    ExchangeTooSlow,
    ResponseGarbled,
    ResponseTooLarge,
    codings_of,
    stream_following,
)
from app.storage.store import Storage, raise_as_unavailable


class DownloadFailed(Exception):
    """The link gave no usable file. The message says why and contains no URL."""


@dataclass(frozen=True, slots=True)
class MediaPolicy:
    """Which files are accepted from a link: `limit` in bytes, `within` for the whole download."""

    name: str
    sniff: Callable[[bytes], str | None]
    limit: int
    within: timedelta
    is_measured: bool = False


@dataclass(frozen=True, slots=True)
class DownloadedFile:
    """
    A checked file: `size` in bytes, `sha256` in hexadecimal, `duration` in seconds, or None for images.

    The bytes are in a temporary file without a name, so that a crash leaves nothing behind.
    """

    file: IO[bytes]
    size: int
    sha256: str
    media_type: str
    duration: float | None

    @property
    def key(self) -> str:
        """The storage key: files with equal bytes share one."""
        return f"sha256/{self.sha256[:2]}/{self.sha256[2:]}{SUFFIXES[self.media_type]}"


def audio_of(limit: int) -> MediaPolicy:
    """The policy for audio of at most `limit` bytes."""
    return MediaPolicy("audio", sniff, limit, timedelta(seconds=60), is_measured=True)


COVER = MediaPolicy("cover image", sniff_image, 10_000_000, timedelta(seconds=20))


async def fetch(client: httpx.AsyncClient, url: str, policy: MediaPolicy, storage: Storage) -> DownloadedFile:
    """Download and check one file, which the caller must close. Raises DownloadFailed, StorageUnavailable."""
    file = await storage.spool()
    try:
        digest, size = await _download(client, url, policy, file)
        media_type, duration = await asyncio.to_thread(_check, file, policy)
    except BaseException:
        file.close()
        raise
    return DownloadedFile(file, size, digest, media_type, duration)


async def _download(client: httpx.AsyncClient, url: str, policy: MediaPolicy, file: IO[bytes]) -> tuple[str, int]:
    digest, size = sha256(), 0
    try:
        async with stream_following(client, url, limit=policy.limit, within=policy.within) as download:
            announced = _announced_size(download, policy)
            async for chunk in download.chunks:
                digest.update(chunk)
                # A full disk is a failure of the storage, and none of the host.
                with raise_as_unavailable():
                    size += file.write(chunk)
        with raise_as_unavailable():
            file.flush()
    except httpx.TransportError as error:
        raise DownloadFailed(_describe(error, policy)) from error
    if size == 0:
        raise DownloadFailed("the file is empty")
    if announced is not None and size != announced:
        raise DownloadFailed(f"{size} of {announced} announced bytes arrived")
    return digest.hexdigest(), size


def _announced_size(download: Download, policy: MediaPolicy) -> int | None:
    """
    The size of the file by Content-Length, or None where it is not that of the file itself.

    Raises DownloadFailed if status or headers rule the file out.
    """
    if download.status != 200:
        raise DownloadFailed(f"the host answered {download.status}")
    length = download.headers.get("content-length", "")
    if not length.isdecimal():
        return None
    if int(length) > policy.limit:
        raise DownloadFailed(f"the file is larger than {policy.limit} bytes")
    return None if codings_of(download.headers.get("content-encoding", "")) else int(length)


def _check(file: IO[bytes], policy: MediaPolicy) -> tuple[str, float | None]:
    file.seek(0)
    media_type = policy.sniff(file.read(HEAD))
    if media_type is None:
        raise DownloadFailed(f"the file is not a known type of {policy.name}")
    duration = measure_open(file) if policy.is_measured else None
    if policy.is_measured and duration is None:
        raise DownloadFailed(f"the file is not playable as {media_type}, or it is truncated")
    return media_type, duration


def _describe(error: httpx.TransportError, policy: MediaPolicy) -> str:
    if isinstance(error, ResponseTooLarge):
        return f"the file is larger than {policy.limit} bytes"
    if isinstance(error, ResponseGarbled | EgressRefused | ExchangeTooSlow):
        return str(error)
    # Messages of the libraries may contain the URL.
    return f"the connection broke ({type(error).__name__})"
