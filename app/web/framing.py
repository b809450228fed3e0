"""Where requests begin and end, and what RFC 9112 wants taken or refused, where the parser would do otherwise."""

import re
from collections.abc import Sequence
from ipaddress import IPv6Address

from app.errors import HeadersTooLarge, UnknownTransferCoding, UnreadableRequest

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~\w-]+ [^ \r\n]+ HTTP/1\.)([0-9])\r\n", re.ASCII)
_TOKEN_BEGINS = re.compile(rb"[!#$%&'*+.^_`|~\w-]", re.ASCII)
_EMPTY_LINES = re.compile(rb"(\r?\n)+")
# With LF alone too, which the parser refuses.
_END = re.compile(rb"\n\r?\n")
# A chunk's size, with its extensions, and a line of trailers.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?\r\n")
_LINE = re.compile(rb"([^\n]*)\n")
_CODING = re.compile(rb"[!#$%&'*+.^_`|~\w-]+[ \t]*(;.*)?", re.ASCII)
# RFC 9110 §7.2; it may be empty.
_HOST = re.compile(
    rb"(\[(?P<v6>[0-9A-Fa-f:.]+)\]|\[[vV][0-9A-Fa-f]+\.[\w.~!$&'()*+,;=:-]+\]|([\w.~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(:[0-9]*)?",
    re.ASCII,
)
_ABSOLUTE = re.compile(rb"https?://[^/?#@]+(/[^?]*)?(\?.*)?", re.IGNORECASE)
_UPGRADE = re.compile(rb"\r\nUpgrade:", re.IGNORECASE)


class Counted:
    """How far a body has come whose length is known."""

    def __init__(self, size: int) -> None:
        self._left = size

    def length(self, data: bytearray) -> int:
        """How many of these bytes belong to the body."""
        length = min(self._left, len(data))
        self._left -= length
        return length


class Chunks:
    """How far a body in chunks has come. Its trailers may be as long as `limit` bytes, and so may an extension."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # Of a chunk, with the line break behind it.
        self._left = 0
        self._is_last = False
        self._trailer_bytes = 0

    def length(self, data: bytearray) -> int:
        """How many of these bytes belong to the body, without the beginning of a line. Raises AppError."""
        at, end = self._left, len(data)
        while at < end and not self._is_last:
            line = _SIZE_LINE.match(data, at)
            if line is None:
                self._left = 0
                return self._before_half_line(data, at)
            size = int(line[1], 16)
            self._is_last = size == 0
            at = line.end() + (size + 2 if size else 0)
        self._left = max(at - end, 0)
        return self._trailers(data, at) if self._is_last else min(at, end)

    def _trailers(self, data: bytearray, at: int) -> int:
        while line := _LINE.match(data, at):
            at = line.end()
            self._trailer_bytes += len(line[0])
            if self._trailer_bytes > self._limit:
                raise HeadersTooLarge
            if line[1] == b"\r":
                return at
        return self._before_half_line(data, at)

    def _before_half_line(self, data: bytearray, at: int) -> int:
        if data.find(b"\n", at) >= 0:
            raise UnreadableRequest
        if len(data) - at > self._limit:
            raise HeadersTooLarge
        return at


def begin(data: bytearray) -> int:
    """Where the request begins: empty lines may precede it (RFC 9112 §2.2)."""
    empty = _EMPTY_LINES.match(data)
    return empty.end() if empty else 0


def end(data: bytearray) -> int | None:
    """Where the head ends, or None if its end has not come."""
    found = _END.search(data)
    return found.end() if found else None


def check_first_byte(data: bytearray) -> None:
    """Raise UnreadableRequest for another protocol, such as TLS, whose client waits for an answer."""
    if data.strip(b"\r\n") and not _TOKEN_BEGINS.match(data):
        raise UnreadableRequest


def normalized(head: bytes) -> bytes:
    """
    Return a whole head as the parser should read it. Raises UnreadableRequest for a request line that is none.

    The parser would take RTSP and ICE for HTTP/1.0. A later minor version counts as 1.1 (RFC
    9110 §2.5). An offer to upgrade is declined (§7.8), which Java's HttpClient makes with a POST
    and its body: the parser would take the body for the other protocol and drop it.
    """
    line = _REQUEST_LINE.match(head)
    if line is None:
        raise UnreadableRequest
    version = b"0" if line[2] == b"0" else b"1"
    return line[1] + version + _UPGRADE.sub(b"\r\nX-Declined-Upgrade:", head[line.end(2) :])


def check(version: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raise UnreadableRequest or UnknownTransferCoding for what the RFC wants refused. Names are in lower case."""
    hosts = [value for name, value in headers if name == b"host"]
    has_host = len(hosts) == 1 or (version == "1.0" and not hosts)
    if not has_host or not all(map(_is_host, hosts)):
        raise UnreadableRequest
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    if codings and (version == "1.0" or codings != [b"chunked"]):
        # RFC 9112 §6.1 and §6.3: of other codings none may end the body, and chunks are made once.
        *inner, last = [coding.strip() for coding in b",".join(codings).split(b",")]
        is_framed = version == "1.1" and last == b"chunked" and inner and b"chunked" not in inner
        raise UnknownTransferCoding if is_framed and all(map(_CODING.fullmatch, inner)) else UnreadableRequest


def _is_host(value: bytes) -> bool:
    found = _HOST.fullmatch(value)
    if found is None or found["v6"] is None:
        return found is not None
    try:
        return bool(IPv6Address(found["v6"].decode()))
    except ValueError:
        return False


def origin_form(method: bytes, target: bytes) -> bytes:
    """
    Return the path and query of a request target (RFC 9112 §3.2).

    Every server must accept the absolute form, whose authority counts before that of
    Host; we serve all names alike. Raises UnreadableRequest for what is no target.
    """
    if b"#" in target or method == b"CONNECT":
        raise UnreadableRequest
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise UnreadableRequest
    return (absolute[1] or b"/") + (absolute[2] or b"")
