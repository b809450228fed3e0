"""
Tokens, signatures and webhook secrets, all derived from SOUNDPOST_SECRET_KEYS, so that none is stored.

What must be stored, such as the headers of webhook endpoints, is encrypted with keys that derive from them.
"""

from __future__ import annotations

import base64
import hmac
import os
import secrets
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.engine import make_url

from app.config import Settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MIN_KEY_LENGTH = 16
# In bytes (NIST SP 800-38D §8.2.2): random, since each key encrypts few values.
NONCE_LENGTH = 12


class KeyringUnusable(Exception):
    """The secret keys are missing or too short, or their file cannot be created; the message says what to do."""


class SealBroken(Exception):
    """Sealed bytes were changed or moved, or the key that sealed them is not in the list any more."""


class Keyring:
    """
    Derives a value for each purpose and subject: the first key signs, every key of the list verifies.

    A process has one, which everything that signs and verifies shares.
    """

    def __init__(self, *keys: str) -> None:
        if not keys or any(len(key) < MIN_KEY_LENGTH for key in keys):
            raise KeyringUnusable(
                f"SOUNDPOST_SECRET_KEYS needs at least one key, each of {MIN_KEY_LENGTH} characters or more; "
                "make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
        self._keys = [key.encode() for key in keys]
        # Names the keys without giving them away: the beginning of what each derives for this purpose.
        self.fingerprints = tuple(_derive(key, "fingerprint", "")[:4].hex() for key in self._keys)
        self.signer = self.fingerprints[0]

    def become(self, other: Keyring) -> None:
        """Sign and verify with the keys of another one from now on."""
        self._keys, self.fingerprints, self.signer = other._keys, other.fingerprints, other.signer

    def derive(self, purpose: str, subject: str) -> bytes:
        """32 bytes by HMAC-SHA256 with the first key, for one purpose and one subject."""
        return _derive(self._keys[0], purpose, subject)

    def derive_with(self, fingerprint: str | None, purpose: str, subject: str) -> bytes:
        """The same by the key with this fingerprint, or by the first key if the list does not have it."""
        by_fingerprint = dict(zip(self.fingerprints, self._keys, strict=True))
        return _derive(by_fingerprint.get(fingerprint or "", self._keys[0]), purpose, subject)

    def derive_all(self, purpose: str, subject: str) -> list[bytes]:
        """The same by every key of the list, the signing key first."""
        return [_derive(key, purpose, subject) for key in self._keys]

    def seal(self, purpose: str, subject: str, plain: bytes) -> bytes:
        """Encrypt bytes for one purpose and subject alone, by AES-256-GCM with what the first key derives."""
        nonce = os.urandom(NONCE_LENGTH)
        return nonce + _cipher(self.derive(purpose, subject)).encrypt(nonce, plain, None)

    def unseal(self, purpose: str, subject: str, sealed: bytes) -> bytes:
        """What was sealed by any key of the list. Raises SealBroken, for another purpose or subject too."""
        from cryptography.exceptions import InvalidTag

        nonce, ciphertext = sealed[:NONCE_LENGTH], sealed[NONCE_LENGTH:]
        for key in self.derive_all(purpose, subject):
            # Of another length, it is none of ours.
            with suppress(InvalidTag, ValueError):
                return _cipher(key).decrypt(nonce, ciphertext, None)
        raise SealBroken

    def token(self, purpose: str, subject: str) -> str:
        """The first 24 bytes of what the signing key derives, in URL-safe base64: 32 characters."""
        return _text(self.derive(purpose, subject))

    def matches(self, purpose: str, subject: str, token: str) -> bool:
        """Whether any key of the list derives this token. Takes any text, and compares in constant time."""
        given = token.encode("utf-8", "replace")
        made = [_text(derived).encode() for derived in self.derive_all(purpose, subject)]
        # Compares with every key, so that the time does not depend on which one matched.
        return sum(hmac.compare_digest(given, token) for token in made) > 0

    def callback_token(self, task_id: str) -> str:
        """The last segment of the callback URL of this task."""
        return self.token("callback", task_id)

    def is_callback_token(self, task_id: str, token: str) -> bool:
        """Whether this token is that of the task's callback URL."""
        return self.matches("callback", task_id, token)

    def prove_reach(self, challenge: str) -> str:
        """The answer to a challenge that only a service with these keys can give."""
        return self.derive("reach", challenge).hex()


def load_or_create_keyring(settings: Settings, *, may_create: bool = True) -> Keyring:
    """
    Return the keyring of SOUNDPOST_SECRET_KEYS, or of the key in a file beside the SQLite database.

    The file is created where there is none yet, if that may be. Replicas on PostgreSQL must
    be given the setting, or each would create a key of its own. Raises KeyringUnusable.
    """
    if settings.secret_keys:
        return Keyring(*(key.strip() for key in settings.secret_keys.get_secret_value().split(",") if key.strip()))
    if not settings.is_sqlite:
        raise KeyringUnusable("SOUNDPOST_SECRET_KEYS must be set when the database is not SQLite")
    database = Path(str(make_url(settings.database_url).database))
    path = database.with_name(database.name + ".secret")
    try:
        # Where it exists nothing is written, so that a full or read-only disk keeps nobody from reading it.
        if may_create and not path.exists():
            _create_key(path)
    except OSError as error:
        raise KeyringUnusable(
            f"No key file can be created beside the database ({error.strerror}): check SOUNDPOST_DATABASE_URL and who "
            "may write there, or set SOUNDPOST_SECRET_KEYS"
        ) from error
    try:
        return Keyring(path.read_text().strip())
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise KeyringUnusable(
            f"The key file {path.name} beside the database cannot be read ({why}): put it back, or a copy of it"
        ) from error


def _create_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
            file.flush()
            os.fsync(file.fileno())
        # link() fails if the file exists, where rename() would replace it: processes that start at once get one key.
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _derive(key: bytes, purpose: str, subject: str) -> bytes:
    return hmac.new(key, f"soundpost\0{purpose}\0{subject}".encode(), sha256).digest()


def _cipher(key: bytes) -> AESGCM:
    # Imported where it is needed: most processes start without it.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


def _text(derived: bytes) -> str:
    return base64.urlsafe_b64encode(derived[:24]).decode()
