"""Signatures of batches: Ed25519 with a key pair that follows from an identity's secret.

Keys are made here with what Python has, so that every identity has one; to sign and to verify needs PyNaCl, which is
fast: `pip install 'zfabric[sign]'`.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b, sha512
from typing import TypeAlias

from zfabric.errors import LocalProtocolError
from zfabric.wire.batch import Buffer, Sign
from zfabric.wire.signatures import KEY_ID_BYTES, BadSignature, digest

__all__ = ["available", "key_id", "public_key", "signer", "signing_seed", "verify"]

_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P
_BASE_Y = 4 * pow(5, -1, _P) % _P
_BASE_X = 15112221349535400772501151409588531511454012693041857206046113283949847762202
_Point: TypeAlias = tuple[int, int, int, int]
"""Extended coordinates: x = X/Z, y = Y/Z, x*y = T/Z."""


def signing_seed(secret: bytes) -> bytes:
    """The seed of an identity's Ed25519 key."""
    return blake2b(key=secret, digest_size=32, person=b"zfabric-sign-1").digest()


def public_key(seed: bytes) -> bytes:
    """The public key of a seed (RFC 8032). In plain Python, and so slow: a few milliseconds."""
    scalar = int.from_bytes(sha512(seed).digest()[:32], "little")
    scalar = scalar & ~7 & ~(1 << 255) | 1 << 254
    point: _Point = (_BASE_X, _BASE_Y, 1, _BASE_X * _BASE_Y % _P)
    total: _Point = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            total = _add(total, point)
        point = _add(point, point)
        scalar >>= 1
    x, y, z, _ = total
    inverse = pow(z, -1, _P)
    return ((y * inverse % _P) | (x * inverse % _P & 1) << 255).to_bytes(32, "little")


def _add(p: _Point, q: _Point) -> _Point:
    a = (p[1] - p[0]) * (q[1] - q[0]) % _P
    b = (p[1] + p[0]) * (q[1] + q[0]) % _P
    c = 2 * p[3] * q[3] * _D % _P
    d = 2 * p[2] * q[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def key_id(public: bytes) -> bytes:
    """What tells a signature's reader which key to try."""
    return blake2b(public, digest_size=KEY_ID_BYTES, person=b"zfabric-print").digest()


def available() -> bool:
    """Whether signatures can be made and verified here."""
    try:
        import nacl.bindings  # noqa: F401 - takes a while, and not everybody signs
    except ImportError:
        return False
    return True


def signer(seed: bytes) -> Sign:
    """What signs batches. Raises LocalProtocolError without PyNaCl."""
    if not available():
        raise LocalProtocolError("signatures need PyNaCl: pip install 'zfabric[sign]'")
    from nacl.bindings import crypto_sign, crypto_sign_BYTES, crypto_sign_seed_keypair

    public, secret = crypto_sign_seed_keypair(seed)
    prefix = key_id(public)

    def sign(frames: Sequence[Buffer]) -> bytes:
        return prefix + bytes(crypto_sign(digest(frames), secret)[:crypto_sign_BYTES])

    return sign


def verify(public: bytes, content: bytes, signature: bytes) -> None:
    """Raises BadSignature unless whoever has `public` signed this. Call it where signatures are `available`."""
    from nacl.bindings import crypto_sign_open
    from nacl.exceptions import BadSignatureError

    try:
        crypto_sign_open(signature + content, public)
    except BadSignatureError:
        raise BadSignature("it is forged, or the batch was changed") from None
