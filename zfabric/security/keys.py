"""The key of a fabric: one secret that all of its members share.

As text, e.g. `zfk1:plant:6n2...`: version, name of the fabric, and in base64url the secret with a checksum, so that
a slip of the hand is told from a wrong key. The CURVE key pair of every member is derived from it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from urllib.parse import quote, unquote

import zmq
from zmq.utils import z85

from zfabric.errors import InvalidKey
from zfabric.security.signing import key_id
from zfabric.wire.batch import Batch, Sign
from zfabric.wire.signatures import KEY_ID_BYTES, BadSignature, digest

__all__ = ["KEY_CHARS_MAX", "MEMBER", "FabricKey", "fingerprint", "new_key"]

MEMBER = "member"
"Who all holders of a fabric's key are; and with identities, the role that one has if nothing else is said."
KEY_CHARS_MAX = 2048
_VERSION = "zfk1"
_SECRET_BYTES = 32
_CHECKSUM_BYTES = 4
_FINGERPRINT_BYTES = 8


def new_key(fabric: str = "default") -> str:
    """A fresh key for a fabric, as text: what `zfabric keys init` writes. Keep it secret."""
    return FabricKey(fabric, secrets.token_bytes(_SECRET_BYTES)).text


def fingerprint(public: bytes) -> str:
    """16 hexadecimal digits that tell public keys (in Z85) apart. They prove nothing."""
    return hashlib.blake2b(public, digest_size=_FINGERPRINT_BYTES, person=b"zfabric-print").hexdigest()


class FabricKey:
    """The secret that the members of a fabric share, and the CURVE key pair that follows from it.

    Implements `transport.base.Credentials`: every member has the same pair, and lets in who has it, too.
    """

    def __init__(self, fabric: str, secret: bytes) -> None:
        self.fabric = fabric
        self._secret = secret
        curve = hashlib.blake2b(fabric.encode(), key=secret, digest_size=32, person=b"zfabric-curve-1").digest()
        self.secret = z85.encode(curve)
        self.public: bytes = zmq.curve_public(self.secret)
        self.fingerprint = fingerprint(self.public)
        self._signing = hashlib.blake2b(fabric.encode(), key=secret, person=b"zfabric-sign-1").digest()
        self._key_id = key_id(self.public)

    @classmethod
    def parse(cls, text: str | bytes) -> FabricKey:
        """A key from its text. Raises InvalidKey."""
        try:
            fabric, encoded = _split(text.decode("ascii") if isinstance(text, bytes) else text)
        except ValueError:
            raise InvalidKey("it is no key of a fabric, which begins with `zfk1:`; a file is given as a Path") from None
        try:
            raw = base64.b64decode(encoded, altchars=b"-_", validate=True)
        except ValueError:
            raise InvalidKey("it is damaged: characters are missing, or wrong") from None
        secret, checksum = raw[:_SECRET_BYTES], raw[_SECRET_BYTES:]
        if len(secret) != _SECRET_BYTES or not hmac.compare_digest(checksum, _checksum(fabric, secret)):
            raise InvalidKey("it is damaged: its checksum is wrong")
        return cls(fabric, secret)

    def __repr__(self) -> str:
        return f"<FabricKey of {self.fabric!r} {self.fingerprint}>"

    @property
    def text(self) -> str:
        """The key as text. Secret."""
        encoded = base64.urlsafe_b64encode(self._secret + _checksum(self.fabric, self._secret)).decode()
        return f"{_VERSION}:{quote(self.fabric, safe='')}:{encoded}"

    distinguishes = False
    name = MEMBER

    def server_key(self, peer: str) -> bytes | None:
        """The public key that a node must prove to have: everybody's."""
        return self.public if peer in ("", self.fingerprint) else None

    def filters(self, user: str, prefix: bytes) -> tuple[bytes, ...]:
        """Members may subscribe to anything."""
        return (prefix,)

    def admit(self, public: bytes) -> str | None:
        """Who has this public key (in Z85)? All members are one and the same."""
        return MEMBER if hmac.compare_digest(public, self.public) else None

    def signs(self) -> Sign:
        """What signs batches: a keyed hash, which any member can make."""
        return lambda frames: self._key_id + digest(frames, self._signing)

    def signer_of(self, batch: Batch) -> str:
        """Some member, if anybody. Raises BadSignature."""
        if batch.signature[:KEY_ID_BYTES] != self._key_id:
            raise BadSignature("it was made with another key than this fabric's")
        if not hmac.compare_digest(batch.signature[KEY_ID_BYTES:], batch.digest(self._signing)):
            raise BadSignature("it is forged, or the batch was changed")
        return MEMBER


def _split(text: str) -> tuple[str, str]:
    if len(text) > KEY_CHARS_MAX:
        raise ValueError(text[:10])
    version, fabric, encoded = text.strip().split(":")
    if version != _VERSION:
        raise ValueError(version)
    return unquote(fabric, errors="strict"), encoded


def _checksum(fabric: str, secret: bytes) -> bytes:
    return hashlib.blake2b(
        fabric.encode() + b"\0" + secret, digest_size=_CHECKSUM_BYTES, person=b"zfabric-key-1"
    ).digest()
