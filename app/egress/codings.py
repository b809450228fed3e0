"""Content codings of bodies (RFC 9110 §8.4): gzip and deflate are undone, names that code nothing are ignored."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from encodings import normalize_encoding
from encodings.aliases import aliases

PIECE = 64 * 1024
GZIP = b"\x1f\x8b"
KNOWN = frozenset({"gzip", "x-gzip", "deflate"})
# Names that senders use although they change nothing, and those of charsets. No name is looked up by Python itself,
# which keeps every name that it was ever asked for.
PLAIN = frozenset({"", "identity", "none", "7bit", "8bit", "binary"})
_NO_CHARSETS = frozenset({"base64_codec", "bz2_codec", "hex_codec", "quopri_codec", "rot_13", "uu_codec", "zlib_codec"})
# Python has no aliases for these.
_MORE_CHARSETS = frozenset({"koi8_u", "ucs_2", "unicode", "utf8mb4", "utf_8_sig", "windows_874"})
_CHARSETS = _MORE_CHARSETS | {
    name for alias, charset in aliases.items() if charset not in _NO_CHARSETS for name in (alias, charset)
}
MAX_CODINGS = 2


class CodingBroken(ValueError):
    """The bytes are not what the coding makes, or they end too early."""


class InflatedTooLarge(ValueError):
    """The body is larger than the limit once its coding is undone."""


def codings_of(field: str) -> Sequence[str] | None:
    """Return the codings of a Content-Encoding field in the order to undo them, or None if one is unknown."""
    names = [name.strip().strip('"').lower() for name in field.split(",")]
    found = [name for name in names if name not in PLAIN and not _is_charset(name)]
    return found[::-1] if KNOWN.issuperset(found) and len(found) <= MAX_CODINGS else None


def inflated(body: bytes, codings: Sequence[str], limit: int) -> bytes:
    """Undo the codings of a whole body. Raises CodingBroken, and InflatedTooLarge beyond `limit` bytes."""
    for coding in codings:
        stage, pieces, size = Inflater(coding), [], 0
        for piece in stage.feed(body):
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise InflatedTooLarge
        pieces.append(stage.finish())
        body = b"".join(pieces)
    return body


class Inflater:
    """Undoes one coding, chunk by chunk. A body that does not begin like it was never coded, and passes as it is."""

    def __init__(self, coding: str) -> None:
        self._is_gzip = coding != "deflate"
        self._head = b""
        self._is_plain = False
        self._has_given = False
        # What came behind the end of a gzip member, while that is too little to tell what it is.
        self._behind = b""
        self._zlib: zlib._Decompress | None = None

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield what these bytes add, in pieces of at most PIECE bytes. Raises CodingBroken."""
        if self._zlib is None and not self._is_plain:
            chunk, self._head = self._head + chunk, b""
            if len(chunk) < len(GZIP):
                self._head = chunk
                return
            self._begin(chunk)
        if self._zlib is None:
            yield chunk
            return
        try:
            # Piece by piece, since zlib copies all that is behind the end of each of many small members.
            for start in range(0, len(chunk), PIECE):
                yield from self._inflate(chunk[start : start + PIECE])
        except zlib.error as error:
            if self._is_gzip or self._has_given:
                raise CodingBroken("the body is not what its content coding makes") from error
            # Deflate without a header cannot be told from other bytes before it fails.
            self._zlib, self._is_plain = None, True
            yield chunk

    def finish(self) -> bytes:
        """Return the bytes that were too few to tell. Raises CodingBroken if the body ended too early."""
        if self._zlib is not None and not self._zlib.eof:
            raise CodingBroken("the body ends before its content coding does")
        return self._head

    def _begin(self, chunk: bytes) -> None:
        if not self._is_gzip:
            # What most call deflate has the header of zlib, as the RFC wants; some send it without.
            has_header = chunk[0] & 0x0F == zlib.DEFLATED and int.from_bytes(chunk[:2], "big") % 31 == 0
            self._zlib = zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
        elif chunk.startswith(GZIP):
            self._zlib = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._is_plain = self._zlib is None

    def _inflate(self, chunk: bytes) -> Iterator[bytes]:
        stream, piece = self._zlib, b""
        while stream is not None and (chunk or len(piece) == PIECE):
            if stream.eof:
                chunk, self._behind = self._behind + chunk, b""
                if not self._is_gzip or not chunk.startswith(GZIP[: len(chunk)]):
                    # Bytes that do not belong to the body.
                    return
                if len(chunk) < len(GZIP):
                    self._behind = chunk
                    return
                # A further member (RFC 1952 §2.2).
                stream = self._zlib = zlib.decompressobj(16 + zlib.MAX_WBITS)
            piece = stream.decompress(chunk, PIECE)
            chunk = stream.unused_data if stream.eof else stream.unconsumed_tail
            if piece:
                self._has_given = True
                yield piece


def _is_charset(name: str) -> bool:
    return normalize_encoding(name.removeprefix("charset=").strip('"')) in _CHARSETS
