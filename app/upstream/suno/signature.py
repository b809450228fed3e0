"""The signature of callbacks, which only some resellers of the API send."""

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import datetime, timedelta

from app.upstream.suno.parsing import header

TOLERANCE = timedelta(minutes=5)


def callback_signature_matches(
    headers: Mapping[str, str], upstream_task_id: str | None, key: str, now: datetime
) -> bool:
    """
    Whether the upstream signed this callback within the last five minutes.

    It signs `taskId.timestamp` and not the body: this proves who sent the callback, not what it says.
    """
    timestamp = header(headers, "x-webhook-timestamp")
    signature = header(headers, "x-webhook-signature")
    if upstream_task_id is None or timestamp is None or signature is None:
        return False
    message = f"{upstream_task_id}.{timestamp}"
    expected = base64.b64encode(hmac.digest(_octets(key), _octets(message), hashlib.sha256))
    return hmac.compare_digest(expected, _octets(signature)) and _is_recent(timestamp, now)


def _is_recent(timestamp: str, now: datetime) -> bool:
    if not re.fullmatch(r"[0-9]{1,12}", timestamp):
        return False
    return abs(now.timestamp() - int(timestamp)) <= TOLERANCE.total_seconds()


def _octets(text: str) -> bytes:
    # A header may hold any bytes. They reach us as text that strict UTF-8 refuses to encode.
    return text.encode("utf-8", "surrogatepass")
