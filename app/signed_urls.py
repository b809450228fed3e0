"""Links that work without an API key: signed, bound to one path, and valid for a limited time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from app.enums import LinkScope
from app.keyring import Keyring

PURPOSE, BROWSER_PURPOSE = "audio link", "browser link"
UNIX_TIME = re.compile(r"[0-9]{1,12}")
_TASK = re.compile(r"/v1/tasks/([0-9a-f]{32})(?:/(events)|/clips/([0-9]{1,4})/(audio|image))?", re.ASCII)
_QUERY = re.compile(r"expires=([0-9]{1,12})(?:&scope=([a-z.]{1,40}))?&signature=([\w-]{32})", re.ASCII)
# What a reader of events may add to a link, which is no part of what is signed.
_POSITIONS = frozenset({"last_event_id", "limit", "cursor"})


@dataclass(frozen=True, slots=True)
class Link:
    """What a signed link opens: its scope, empty for a link to one file alone, until `expires` in Unix seconds."""

    scope: Sequence[LinkScope]
    expires: int


class SignedUrls:
    """Creates and checks signed links. `clock` is in Unix seconds."""

    def __init__(self, keyring: Keyring, base_url: str, ttl: timedelta, clock: Callable[[], float] = time.time) -> None:
        self._keyring, self._base_url, self.ttl, self._clock = keyring, base_url, ttl, clock

    @property
    def signer(self) -> str:
        """The fingerprint of the secret key that signs."""
        return self._keyring.signer

    def lasting(self, ttl: timedelta) -> SignedUrls:
        """The same with another time for which links are valid."""
        return SignedUrls(self._keyring, self._base_url, ttl, self._clock)

    def seconds_left(self, link: Link) -> float:
        """How long a link still works."""
        return link.expires - self._clock()

    def audio(self, task_id: str, index: int) -> str:
        """The link to one clip's audio; path-absolute where the base URL is empty."""
        expires = str(int(self._clock() + self.ttl.total_seconds()))
        signature = self._keyring.token(PURPOSE, _subject(task_id, index, expires))
        return f"{self._base_url}{_path(task_id, index, 'audio')}?expires={expires}&signature={signature}"

    def is_valid(self, task_id: str, index: int | str, expires: str, signature: str) -> bool:
        """Whether this service made the link and it has not expired; any text is compared in constant time."""
        if not UNIX_TIME.fullmatch(expires):
            return False
        is_ours = self._keyring.matches(PURPOSE, _subject(task_id, index, expires), signature)
        return is_ours and self._clock() < int(expires)

    def browser(self, scope: Sequence[LinkScope], ttl: int) -> Link:
        """What links that are made now give access to, for `ttl` seconds."""
        return Link(tuple(each for each in LinkScope if each in scope), int(self._clock() + ttl))

    def task(self, link: Link, task_id: str) -> str | None:
        """The link to a task; None if that is not in the scope."""
        return self._sign(link, LinkScope.task, _path(task_id))

    def events(self, link: Link, task_id: str) -> str | None:
        """The link to a task's events; None if they are not in the scope."""
        return self._sign(link, LinkScope.events, f"{_path(task_id)}/events")

    def file(self, link: Link, task_id: str, index: int, name: str) -> str | None:
        """The link to a file of a clip, which is `audio` or `image`; None if audio is not in the scope."""
        return self._sign(link, LinkScope.audio, _path(task_id, index, name))

    def opened_by(self, path: str, query: bytes) -> Link | None:
        """
        What a request of this path and query may read, None where it is no link of this service that still works.

        A link is taken letter by letter: nothing in it may be written in another way.
        """
        found, (extra, own) = _TASK.fullmatch(path), _split(query.decode("latin-1"))
        signed = _QUERY.fullmatch(own)
        if found is None or signed is None or (extra and not found[2]):
            return None
        expires, scope, signature = signed.groups()
        if scope is None:
            is_audio = found[4] == "audio" and self.is_valid(found[1], found[3], expires, signature)
            return Link((), int(expires)) if is_audio else None
        is_ours = self._keyring.matches(BROWSER_PURPOSE, f"{path}/{scope}/{expires}", signature)
        if not is_ours or self._clock() >= int(expires):
            return None
        return Link(tuple(map(LinkScope, scope.split("."))), int(expires))

    def _sign(self, link: Link, needed: LinkScope, path: str) -> str | None:
        if needed not in link.scope:
            return None
        scope = ".".join(link.scope)
        signature = self._keyring.token(BROWSER_PURPOSE, f"{path}/{scope}/{link.expires}")
        return f"{self._base_url}{path}?expires={link.expires}&scope={scope}&signature={signature}"


def _subject(task_id: str, index: int | str, expires: str) -> str:
    return f"{task_id}/{index}/{expires}"


def _path(task_id: str, index: int | None = None, name: str = "") -> str:
    return f"/v1/tasks/{task_id}" if index is None else f"/v1/tasks/{task_id}/clips/{index}/{name}"


def _split(query: str) -> tuple[bool, str]:
    """Whether a query names a position among events, and what is left without it."""
    pairs = query.split("&")
    own = [pair for pair in pairs if pair.partition("=")[0] not in _POSITIONS]
    return len(own) < len(pairs), "&".join(own)
