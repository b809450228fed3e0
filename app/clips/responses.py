"""A stored file as an HTTP response: whole, a byte range, or 304 (RFC 9110 §13 and §14)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import AsyncIterator, Mapping
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from app.clips.media_types import SUFFIXES
from app.clips.service import StoredFile
from app.errors import RangeNotSatisfiable
from app.storage.store import CHUNK, Storage
from app.web.negotiation import matches

# The bytes behind a URL never change, but only its caller may see them.
CACHE_CONTROL = "private, max-age=31536000, immutable"
MAX_NAME_LENGTH = 80
ONE_RANGE = re.compile(r"bytes=[ \t]*(\d{0,18})-(\d{0,18})[ \t]*", re.IGNORECASE | re.ASCII)
# What RFC 8187 §3.2.1 lets stand unescaped, besides letters and digits.
ATTR_CHAR = "!#$&+-.^_`|~"
UNSAFE = re.compile(r'[\\/:*?"<>|]')


async def serve_file(request: Request, storage: Storage, file: StoredFile) -> Response:
    """Respond to a GET or HEAD of a file. Raises RangeNotSatisfiable, StorageUnavailable."""
    headers = {"ETag": file.etag, "Cache-Control": CACHE_CONTROL, "Accept-Ranges": "bytes"}
    if matches(request.headers.get("if-none-match"), file.etag):
        return Response(status_code=304, headers=headers)
    headers |= {"Content-Type": file.media_type, "Content-Disposition": _disposition(file)}
    if request.method == "HEAD":
        return Response(headers={**headers, "Content-Length": str(file.size)})
    part = requested_range(request.headers, file)
    start, end = part or (0, file.size)
    headers["Content-Length"] = str(end - start)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
    # Read the first bytes before the status is sent: an unreachable storage gives 503, not a 200 that breaks off.
    first_end = min(start + CHUNK, end)
    first = await storage.read(file.key, start, first_end)
    rest = storage.stream(file.key, first_end, end)
    return StreamingResponse(_prepend(first, rest), 200 if part is None else 206, headers)


def requested_range(headers: Mapping[str, str], file: StoredFile) -> tuple[int, int] | None:
    """
    The requested byte range as start and exclusive end, or None for the whole file. Raises RangeNotSatisfiable.

    Several ranges, an invalid `Range`, and an `If-Range` that names another version
    give the whole file (RFC 9110 §14.2 and §13.1.5).
    """
    match = ONE_RANGE.fullmatch(headers.get("range", ""))
    if match is None or match.group(1, 2) == ("", "") or headers.get("if-range", file.etag) != file.etag:
        return None
    first, last = match.groups()
    if first == "":
        start, end = max(file.size - int(last), 0), file.size
    else:
        start, end = int(first), min(int(last) + 1, file.size) if last else file.size
        if last and int(last) < start:
            return None
    if start >= file.size or start >= end:
        raise RangeNotSatisfiable(headers={"Content-Range": f"bytes */{file.size}"})
    return start, end


def file_name(title: str | None, media_type: str) -> str:
    """Return a name made from the title that is safe in file systems, shells and headers."""
    printable = "".join(c if unicodedata.category(c)[0] not in "CZ" else " " for c in title or "")
    name = " ".join(UNSAFE.sub(" ", printable).split()).strip(". ")[:MAX_NAME_LENGTH].strip(". ")
    return (name or "sound") + SUFFIXES.get(media_type, "")


def _disposition(file: StoredFile) -> str:
    """The header of RFC 6266 §4, with the name in ASCII and in the encoding of RFC 8187."""
    name = file_name(file.title, file.media_type)
    # NFKD can turn a character into a quote or a slash, so the result is made safe again.
    ascii_title = unicodedata.normalize("NFKD", file.title or "").encode("ascii", "ignore").decode()
    ascii_name = file_name(ascii_title, file.media_type)
    return f"inline; filename=\"{ascii_name}\"; filename*=UTF-8''{quote(name, safe=ATTR_CHAR)}"


async def _prepend(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk
