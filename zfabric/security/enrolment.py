"""Invitations that work once: the newcomer makes its own keys and shows the public ones to whoever invited it.

The line that is typed on the other machine holds addresses, the inviter's public key, and a token. The exchange runs
over CURVE with that key, so the newcomer knows whom it talks to; the token tells the inviter who the newcomer is. No
secret of an identity leaves the machine where it was made.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections import Counter
from collections.abc import Callable
from typing import Annotated, TypeAlias
from urllib.parse import quote, unquote

import msgspec

from zfabric.errors import InvalidKey
from zfabric.security.identities import check_name

__all__ = ["MESSAGE_BYTES_MAX", "Done", "Enrol", "Enrolled", "Enrolment", "Invitation", "Refused", "decode", "encode"]

MESSAGE_BYTES_MAX = 8 * 1024 * 1024
"Answers hold the directory of who is trusted."
_VERSION = "zfo1"
_TOKEN_BYTES = 16
_CHECKSUM_BYTES = 4
_LINE_CHARS_MAX = 16_384

Z85 = Annotated[str, msgspec.Meta(min_length=40, max_length=40)]


class _Content(msgspec.Struct, array_like=True, frozen=True):
    key: Z85
    token: Annotated[bytes, msgspec.Meta(min_length=_TOKEN_BYTES, max_length=_TOKEN_BYTES)]
    expires: Annotated[int, msgspec.Meta(ge=0, le=2**62)]
    endpoints: Annotated[list[Annotated[str, msgspec.Meta(max_length=255)]], msgspec.Meta(min_length=1, max_length=64)]


class Invitation(msgspec.Struct, frozen=True):
    """What the line says."""

    fabric: str
    name: str
    key: str
    "The inviter's public key, in Z85."
    token: bytes
    expires: int
    "Seconds since 1970."
    endpoints: list[str]

    @classmethod
    def new(cls, fabric: str, name: str, key: str, expires: float, endpoints: list[str]) -> Invitation:
        """One that nobody has seen yet. Raises InvalidKey for a name that no identity can have."""
        return cls(fabric, check_name(name), key, secrets.token_bytes(_TOKEN_BYTES), int(expires), endpoints)

    @classmethod
    def parse(cls, text: str) -> Invitation:
        """An invitation from its line. Raises InvalidKey."""
        try:
            if len(text) > _LINE_CHARS_MAX:
                raise ValueError(text[:10])
            version, fabric, name, encoded = text.strip().split(":")
            raw = base64.b64decode(encoded, altchars=b"-_", validate=True)
            content, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
            fabric = unquote(fabric, errors="strict")
            if version != _VERSION or not hmac.compare_digest(checksum, _checksum(fabric, name, content)):
                raise ValueError(version)
            found = msgspec.msgpack.decode(content, type=_Content)
        except (ValueError, UnicodeError, binascii.Error, msgspec.MsgspecError, RecursionError):
            raise InvalidKey("the invitation is damaged: copy the whole line") from None
        return cls(fabric, check_name(name), found.key, found.token, found.expires, found.endpoints)

    @property
    def text(self) -> str:
        """The line."""
        content = msgspec.msgpack.encode(_Content(self.key, self.token, self.expires, self.endpoints))
        encoded = base64.urlsafe_b64encode(content + _checksum(self.fabric, self.name, content)).decode()
        return f"{_VERSION}:{quote(self.fabric, safe='')}:{self.name}:{encoded}"


def _checksum(fabric: str, name: str, content: bytes) -> bytes:
    whole = b"\0".join((fabric.encode(), name.encode(), content))
    return hashlib.blake2b(whole, digest_size=_CHECKSUM_BYTES, person=b"zfabric-invite-1").digest()


# -- what the two say --------------------------------------------------------------------------


class Enrol(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """The newcomer's public keys."""

    token: bytes
    public: Z85
    signing: Z85


class Enrolled(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """The newcomer is trusted; the inviter's `trusted/` and roles.toml."""

    files: dict[str, str]


class Refused(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """It is not, and why."""

    reason: str


class Done(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """The newcomer has written everything down."""

    token: bytes


Word: TypeAlias = Enrol | Enrolled | Refused | Done
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Word)


def encode(word: Word) -> bytes:
    """As it travels."""
    return _encoder.encode(word)


def decode(data: bytes) -> Word | None:
    """What came; None if it is no word of this exchange."""
    try:
        word: Word = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return word


class Enrolment:
    """The inviter's side of one invitation."""

    def __init__(self, invitation: Invitation, trust: Callable[[str, str], dict[str, str]]) -> None:
        """`trust(public, signing)` writes down whom to trust, and returns the files to send."""
        self.invitation = invitation
        self._trust = trust
        self._newcomer: Enrol | None = None
        self._files: dict[str, str] = {}
        self.done = False
        "The newcomer has all that it needs."
        self.refused: Counter[str] = Counter()
        "Why others were turned away, and how often."

    @property
    def public(self) -> str:
        """The newcomer's public key; empty until it came."""
        return "" if self._newcomer is None else self._newcomer.public

    def answer(self, data: bytes, now: float) -> bytes | None:
        """What to answer to a frame; None for nothing."""
        word = decode(data)
        if isinstance(word, Done) and hmac.compare_digest(word.token, self.invitation.token):
            self.done = self._newcomer is not None
            return None
        if not isinstance(word, Enrol) or not hmac.compare_digest(word.token, self.invitation.token):
            return self._refuse("it has no invitation")
        if self._newcomer is None:
            if now >= self.invitation.expires:
                return self._refuse("the invitation has expired")
            try:
                self._files = self._trust(word.public, word.signing)
            except InvalidKey as error:
                return self._refuse(error.reason)
            self._newcomer = word
        elif self._newcomer != word:  # the same one again has not heard the answer
            return self._refuse("the invitation was used already")
        return encode(Enrolled(self._files))

    def _refuse(self, reason: str) -> bytes:
        self.refused[reason] += 1
        return encode(Refused(reason))
