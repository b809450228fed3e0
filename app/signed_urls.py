"""Links that work without an API key: signed, bound to one file, and valid for a limited time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import timedelta

from app.keyring import Keyring

PURPOSE = "audio link"
UNIX_TIME = re.compile(r"[0-9]{1,12}")


class SignedUrls:
    """Creates and checks the links to audio. `clock` is in Unix seconds."""

    def __init__(self, keyring: Keyring, base_url: str, ttl: timedelta, clock: Callable[[], float] = time.time) -> None:
        self._keyring, self._base_url, self.ttl, self._clock = keyring, base_url, ttl, clock

    @property
    def signer(self) -> str:
        """The fingerprint of the secret key that signs."""
        return self._keyring.signer

    def lasting(self, ttl: timedelta) -> SignedUrls:
        """The same with another time for which links are valid."""
        return SignedUrls(self._keyring, self._base_url, ttl, self._clock)

    def audio(self, task_id: str, index: int) -> str:
        """The link to one clip's audio; path-absolute where the base URL is empty."""
        expires = str(int(self._clock() + self.ttl.total_seconds()))
        signature = self._keyring.token(PURPOSE, _subject(task_id, index, expires))
        path = f"/v1/tasks/{task_id}/clips/{index}/audio"
        return f"{self._base_url}{path}?expires={expires}&signature={signature}"

    def is_valid(self, task_id: str, index: int, expires: str, signature: str) -> bool:
        """Whether this service made the link and it has not expired; any text is compared in constant time."""
        if not UNIX_TIME.fullmatch(expires):
            return False
        is_ours = self._keyring.matches(PURPOSE, _subject(task_id, index, expires), signature)
        return is_ours and self._clock() < int(expires)


def _subject(task_id: str, index: int, expires: str) -> str:
    return f"{task_id}/{index}/{expires}"
