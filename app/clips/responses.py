"""One kept file as an answer: whole or a part of it, known already or new (RFC 9110)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from app.clips.media_types import SUFFIXES
from app.errors import RangeNotSatisfiable
from app.storage.store import CHUNK, Storage
from app.web.negotiation import matches

# What is behind one of these addresses never changes, but who may see it is the caller's alone.
CACHING = "private, max-age=31536000, immutable"
MAX_NAME_LENGTH = 80
ONE_RANGE = re.compile(r"bytes=[ \t]*(\d{0,18})-(\d{0,18})[ \t]*", re.IGNORECASE | re.ASCII)
UNSAFE = re.compile(r'[\\/:*?"<>|]')


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in the storage and what is known of it."""

    key: str
    size: int
    sha256: str
    media_type: str
    title: str | None

    @property
    def etag(self) -> str:
        """Strong: the bytes' own hash."""
        return f'"{self.sha256}"'


async def answer_with(request: Request, storage: Storage, kept: StoredFile) -> Response:
    """Answer a GET or HEAD. Raises RangeNotSatisfiable, StorageUnavailable."""
    headers = {"ETag": kept.etag, "Cache-Control": CACHING, "Accept-Ranges": "bytes"}
    if matches(request.headers.get("if-none-match"), kept.etag):
        return Response(status_code=304, headers=headers)
    headers |= {"Content-Type": kept.media_type, "Content-Disposition": _disposition(kept)}
    if request.method == "HEAD":
        return Response(headers={**headers, "Content-Length": str(kept.size)})
    part = wanted_part(request.headers, kept)
    start, end = part or (0, kept.size)
    headers["Content-Length"] = str(end - start)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{kept.size}"
    # The first bytes are read before the status is sent, so that a storage that is away is not a broken 200.
    first_end = min(start + CHUNK, end)
    first = await storage.read(kept.key, start, first_end)
    rest = storage.stream(kept.key, first_end, end)
    return StreamingResponse(_joined(first, rest), 200 if part is None else 206, headers)


def wanted_part(headers: Mapping[str, str], kept: StoredFile) -> tuple[int, int] | None:
    """
    The single range that is asked for, as start and exclusive end; None for the whole file. Raises RangeNotSatisfiable.

    Several ranges, and what is no range of bytes, are answered with the whole file,
    as is a range of another version than this one.
    """
    match = ONE_RANGE.fullmatch(headers.get("range", ""))
    if match is None or match.group(1, 2) == ("", "") or headers.get("if-range", kept.etag) != kept.etag:
        return None
    first, last = match.groups()
    if first == "":
        start, end = max(kept.size - int(last), 0), kept.size
    else:
        start, end = int(first), min(int(last) + 1, kept.size) if last else kept.size
        if last and int(last) < start:
            return None
    if start >= kept.size or start >= end:
        raise RangeNotSatisfiable(headers={"Content-Range": f"bytes */{kept.size}"})
    return start, end


def file_name(title: str | None, media_type: str) -> str:
    """A name from the title that no file system, shell or header stumbles over."""
    printable = "".join(c if unicodedata.category(c)[0] not in "CZ" else " " for c in title or "")
    name = " ".join(UNSAFE.sub(" ", printable).split()).strip(". ")[:MAX_NAME_LENGTH].strip(". ")
    return (name or "sound") + SUFFIXES.get(media_type, "")


def _disposition(kept: StoredFile) -> str:
    """RFC 6266, with the name in RFC 8187's coding beside one in plain ASCII."""
    name = file_name(kept.title, kept.media_type)
    # Decomposing may bring quotes and slashes back, so the result is made safe again.
    plain = unicodedata.normalize("NFKD", kept.title or "").encode("ascii", "ignore").decode()
    return (
        f"inline; filename=\"{file_name(plain, kept.media_type)}\"; filename*=UTF-8''{quote(name, safe='!#$&+-.^_`|~')}"
    )


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk
