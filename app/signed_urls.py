"""Links that work without a key: signed, bound to one file, and good for a while."""

from __future__ import annotations

import base64
import hmac
import re
import time
from collections.abc import Callable
from datetime import timedelta

from app.config import Settings
from app.keyring import Keyring, load_or_create_keyring

PURPOSE = "audio link"
A_TIME = re.compile(r"[0-9]{1,12}")


class SignedUrls:
    """Makes and checks the links to audio that callers are given. Times are the machine's own, in Unix seconds."""

    def __init__(
        self, keyring: Keyring, base_url: str, life: timedelta, clock: Callable[[], float] = time.time
    ) -> None:
        self._keyring, self._base_url, self._life, self._clock = keyring, base_url, life, clock

    def audio(self, task_id: str, index: int) -> str:
        """A link to one clip's audio; absolute where the service knows its own address."""
        expires = str(int(self._clock() + self._life.total_seconds()))
        signature = _text(self._keyring.derive(PURPOSE, _subject(task_id, index, expires)))
        path = f"/v1/tasks/{task_id}/clips/{index}/audio"
        return f"{self._base_url}{path}?expires={expires}&signature={signature}"

    def is_valid(self, task_id: str, index: int, expires: str, signature: str) -> bool:
        """Whether we made this link and it has not expired; any text is only compared, in constant time."""
        if not A_TIME.fullmatch(expires):
            return False
        given = signature.encode("utf-8", "replace")
        made = [_text(key).encode() for key in self._keyring.derive_all(PURPOSE, _subject(task_id, index, expires))]
        # Every key is compared, so that the time taken does not tell which one matched.
        is_ours = sum(hmac.compare_digest(given, signature) for signature in made) > 0
        return is_ours and self._clock() < int(expires)


def load_signed_urls(settings: Settings) -> SignedUrls:
    """The links that these settings make. Raises KeyringUnusable."""
    return SignedUrls(load_or_create_keyring(settings), settings.link_base, settings.link_ttl)


def _subject(task_id: str, index: int, expires: str) -> str:
    return f"{task_id}/{index}/{expires}"


def _text(derived: bytes) -> str:
    return base64.urlsafe_b64encode(derived[:24]).decode()
