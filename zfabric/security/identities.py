"""A key pair for each node, and a directory with the public keys of all whom it trusts.

    self.key              this node's name and secret, readable by its owner only
    trusted/<name>.toml   public = ["<Z85>"], signing = ["<Z85>"], roles = ["<role>"], one file for each identity
    roles.toml            [<role>] with publish, subscribe, push, pull, serve, request, store = ["<pattern>"]

The directory is read again while nodes run: who is taken out of it, or loses a role, loses what goes with it at once.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import stat
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import zmq
from zmq.utils import z85

from zfabric.errors import InvalidKey
from zfabric.security.acl import ANYTHING, MEMBERS, Permissions
from zfabric.security.keyfiles import read_private, write_private
from zfabric.security.keys import MEMBER, fingerprint
from zfabric.security.signing import available, key_id, public_key, signer, signing_seed, verify
from zfabric.wire.batch import Batch, Sign
from zfabric.wire.signatures import KEY_ID_BYTES, BadSignature

__all__ = [
    "MEMBER",
    "STORE",
    "Identities",
    "Identity",
    "accept",
    "admit",
    "check_files",
    "check_name",
    "check_newcomer",
    "create",
    "invite",
    "new_secret",
    "revoke",
    "rotate",
    "unpack",
]

STORE = "store"
"The role that, unless roles.toml says otherwise, may also keep durable topics."
_VERSION = "zfi1"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,62}")
_SECRET_BYTES = 32
_CHECKSUM_BYTES = 4
_FILE_BYTES_MAX = 64 * 1024
_TRUSTED_MAX = 4096
_TOKEN_BYTES_MAX = 4 * 1024 * 1024


def check_name(name: str) -> str:
    """A valid name of an identity. Raises InvalidKey."""
    if not _NAME.fullmatch(name) or name == "roles":
        raise InvalidKey(f"{name!r} is no name of an identity: letters, digits, `_`, `-` and `.`, up to 63")
    return name


@dataclass(frozen=True, slots=True)
class Identity:
    """One trusted identity."""

    public: tuple[bytes, ...]
    "None of them: it is no member any more, and what it signed is still believed."
    roles: tuple[str, ...]
    permissions: tuple[Permissions, ...]
    signing: tuple[bytes, ...] = ()
    "Public Ed25519 keys, 32 bytes each, the newest first."


class Identities:
    """What a directory says. Implements `transport.base.Credentials` and `protocol.authority.Authority`."""

    distinguishes = True

    def __init__(self, directory: Path, fabric: str | None = None) -> None:
        """`fabric` is what it must belong to. Raises InvalidKey, or OSError when the directory cannot be read."""
        self.directory = directory
        self.fabric, self.name, secret = _parse_secret(read_private(directory / "self.key"))
        if fabric not in (None, self.fabric):
            raise InvalidKey(f"{directory} belongs to fabric {self.fabric!r}, not to {fabric!r}")
        self.secret, self.public = _pair(secret)
        self.fingerprint = fingerprint(self.public)
        self._seed = signing_seed(secret)
        self._verifies = available()
        self.trusted: dict[str, Identity] = {}
        self._read()

    def _read(self) -> None:
        seen = self._stamps()
        roles = _roles(self.directory)
        self.trusted = {path.stem: _identity(path, roles) for path in _trusted_files(self.directory)}
        self._names = {public: name for name, each in self.trusted.items() for public in each.public}
        self._keys = {fingerprint(public): public for public in self._names}
        self._keys.update((name, each.public[0]) for name, each in self.trusted.items() if each.public)
        self._signing = {key_id(key): (name, key) for name, each in self.trusted.items() for key in each.signing}
        self._answers: dict[tuple[str, str, str], bool] = {}
        self._seen = seen

    def _stamps(self) -> dict[str, tuple[int, int, int]]:
        found = {}
        for path in (self.directory / "roles.toml", *sorted((self.directory / "trusted").glob("*.toml"))):
            try:
                state = path.stat()
            except FileNotFoundError:
                continue
            found[str(path)] = state.st_ino, state.st_mtime_ns, state.st_size
        return found

    def reload(self) -> bool:
        """Read again what has changed; whether anybody lost, or may do, something else than before.

        Raises InvalidKey or OSError, and trusts as before.
        """
        if self._stamps() == self._seen:
            return False
        before = self.trusted
        self._read()
        return any(name not in self.trusted or self.trusted[name] != each for name, each in before.items())

    # -- connections ---------------------------------------------------------------------------

    def server_key(self, peer: str) -> bytes | None:
        """The public key with this fingerprint, or of this name."""
        return self._keys.get(peer)

    def admit(self, public: bytes) -> str | None:
        """Whose public key this is."""
        return self._names.get(public)

    def filters(self, user: str, prefix: bytes) -> tuple[bytes, ...]:
        """What libzmq may filter by where `user` asked for `prefix`."""
        identity = self.trusted.get(user)
        if identity is None:
            return ()
        return next((found for each in identity.permissions if (found := each.filters(prefix))), ())

    # -- whose nodes, whose words ----------------------------------------------------------------

    def node_id(self, random: bytes) -> bytes:
        """An id for a node of this identity, or for something else of it that publishes, from 8 random bytes."""
        return _node_id(self.name, random)

    def owns(self, user: str, node_id: bytes) -> bool:
        """Whether a node id is one of an identity's own."""
        return node_id == _node_id(user, node_id[:8])

    def signs(self) -> Sign:
        """What signs batches for this identity. Raises LocalProtocolError where that is not possible."""
        return signer(self._seed)

    def signer_of(self, batch: Batch) -> str:
        """The name of the identity that signed a batch; empty where nobody can tell. Raises BadSignature."""
        if not self._verifies:
            return ""
        name, key = self._signing.get(batch.signature[:KEY_ID_BYTES], ("", b""))
        if not name:
            raise BadSignature("it was made with a key that nobody is trusted with here")
        if not self.owns(name, batch.producer):
            raise BadSignature(f"{name!r} signed it in the name of another identity's node")
        if not self.may(name, "publish", batch.topic):
            raise BadSignature(f"{name!r} may not publish this")
        verify(key, batch.digest(), batch.signature[KEY_ID_BYTES:])
        return name

    # -- operations ----------------------------------------------------------------------------

    def trusts(self, user: str) -> bool:
        """Whether an identity is still a member."""
        identity = self.trusted.get(user)
        return identity is not None and bool(identity.public)

    def may(self, user: str, action: str, name: str) -> bool:
        """Whether an identity may do this."""
        question = user, action, name
        answer = self._answers.get(question)
        if answer is None:
            identity = self.trusted.get(user)
            answer = identity is not None and any(each.allow(action, name) for each in identity.permissions)
            if len(self._answers) >= 10_000:
                self._answers.clear()
            self._answers[question] = answer
        return answer

    def may_all(self, user: str, action: str, pattern: str) -> bool:
        """Whether an identity may do this to all that a pattern matches."""
        identity = self.trusted.get(user)
        return identity is not None and any(each.allow_all(action, pattern) for each in identity.permissions)


# -- files -------------------------------------------------------------------------------------


def _read_public(path: Path) -> dict[str, Any]:
    state = path.stat()
    if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InvalidKey(f"others may write to {path}: chmod 644 it")
    import tomllib

    if state.st_size > _FILE_BYTES_MAX:
        raise InvalidKey(f"{path} is too long")
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidKey(f"{path}: {error}") from None


def _trusted_files(directory: Path) -> list[Path]:
    found = sorted((directory / "trusted").glob("*.toml"))
    if len(found) > _TRUSTED_MAX:
        raise InvalidKey(f"{directory} trusts more than {_TRUSTED_MAX} identities")
    state = (directory / "trusted").stat()
    if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InvalidKey(f"others may write to {directory / 'trusted'}: chmod 755 it")
    return found


def _roles(directory: Path) -> dict[str, Permissions]:
    path = directory / "roles.toml"
    roles = {MEMBER: MEMBERS, STORE: ANYTHING}
    if path.exists():
        for role, allowed in _read_public(path).items():
            if not isinstance(allowed, Mapping) or not all(map(_is_list_of_texts, allowed.values())):
                raise InvalidKey(f"{path}: role {role!r} is not a table of lists of patterns")
            roles[role] = Permissions(allowed)
    return roles


def _identity(path: Path, roles: Mapping[str, Permissions]) -> Identity:
    check_name(path.stem)
    content = _read_public(path)
    public, signing, names = content.get("public", ()), content.get("signing", []), content.get("roles", [MEMBER])
    if not all(map(_is_list_of_texts, (public, signing, names))) or not (public or signing):
        raise InvalidKey(f"{path} needs `public`, `signing` and `roles`, lists of texts")
    keys, signing_keys = tuple(text.encode() for text in public), tuple(text.encode() for text in signing)
    if not all(map(_is_key, keys + signing_keys)):
        raise InvalidKey(f"{path}: a public key is 40 characters of Z85")
    missing = [name for name in names if name not in roles]
    if missing:
        raise InvalidKey(f"{path}: there is no role {missing[0]!r}")
    signing_keys = tuple(map(z85.decode, signing_keys))
    return Identity(keys, tuple(names), tuple(roles[name] for name in names), signing_keys)


def _node_id(name: str, random: bytes) -> bytes:
    return random + hashlib.blake2b(name.encode(), key=random, digest_size=8, person=b"zfabric-node").digest()


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_key(text: bytes) -> bool:
    try:
        return len(text) == 40 and len(z85.decode(text)) == 32
    except (KeyError, struct.error):
        return False


def _pair(secret: bytes) -> tuple[bytes, bytes]:
    encoded = z85.encode(secret)
    return encoded, zmq.curve_public(encoded)


def _signing_key(secret: bytes) -> str:
    return z85.encode(public_key(signing_seed(secret))).decode()


def _checksum(fabric: str, name: str, secret: bytes) -> bytes:
    content = b"\0".join((fabric.encode(), name.encode(), secret))
    return hashlib.blake2b(content, digest_size=_CHECKSUM_BYTES, person=b"zfabric-self-1").digest()


def _format_secret(fabric: str, name: str, secret: bytes) -> str:
    encoded = base64.urlsafe_b64encode(secret + _checksum(fabric, name, secret)).decode()
    return f"{_VERSION}:{quote(fabric, safe='')}:{name}:{encoded}"


def _parse_secret(text: bytes) -> tuple[str, str, bytes]:
    """(fabric, name, secret). Raises InvalidKey."""
    try:
        version, fabric, name, encoded = text.decode("ascii").strip().split(":")
        raw = base64.b64decode(encoded, altchars=b"-_", validate=True)
        fabric = unquote(fabric, errors="strict")
    except (UnicodeError, binascii.Error, ValueError):
        raise InvalidKey("it is no identity, which begins with `zfi1:`") from None
    secret, checksum = raw[:_SECRET_BYTES], raw[_SECRET_BYTES:]
    whole = version == _VERSION and len(secret) == _SECRET_BYTES
    if not whole or not hmac.compare_digest(checksum, _checksum(fabric, name, secret)):
        raise InvalidKey("it is damaged: its checksum is wrong")
    return fabric, check_name(name), secret


# -- what `zfabric keys` does ------------------------------------------------------------------


def create(directory: Path, fabric: str, name: str, roles: tuple[str, ...] = (MEMBER,)) -> None:
    """Begin a fabric with identities: this one is the first. Raises FileExistsError, InvalidKey or OSError."""
    text, public, signing = new_secret(fabric, name)
    _check_roles(directory, roles)
    write_private(directory / "self.key", (text + "\n").encode())
    (directory / "trusted").mkdir(mode=0o755, exist_ok=True)
    _trust(directory, name, (public,), (signing,), roles)


def _trust(
    directory: Path,
    name: str,
    public: tuple[str, ...],
    signing: tuple[str, ...],
    roles: tuple[str, ...],
    *,
    new: bool = True,
) -> None:
    path = directory / "trusted" / f"{name}.toml"
    if new and path.exists():
        raise FileExistsError(f"{path} exists: there is an identity of that name")
    unnamed = path.with_suffix(".new")
    import json

    lists = {"public": public, "signing": signing, "roles": roles}
    unnamed.write_text("".join(f"{name} = {json.dumps(texts)}\n" for name, texts in lists.items()), "utf-8")
    unnamed.chmod(0o644)
    unnamed.replace(path)


def check_newcomer(directory: Path, name: str, roles: tuple[str, ...]) -> None:
    """Raise InvalidKey, or FileExistsError, where no identity of that name can be trusted with those roles."""
    _check_roles(directory, roles)
    path = directory / "trusted" / f"{check_name(name)}.toml"
    if path.exists():
        raise FileExistsError(f"{path} exists: there is an identity of that name")


def _check_roles(directory: Path, roles: tuple[str, ...]) -> None:
    known = _roles(directory)
    missing = [role for role in roles if role not in known]
    if missing:
        raise InvalidKey(f"there is no role {missing[0]!r} in {directory / 'roles.toml'}")


def admit(directory: Path, name: str, public: str, signing: str, roles: tuple[str, ...]) -> dict[str, str]:
    """Trust another node's identity, and return what it needs to know: the directory's files."""
    check_newcomer(directory, name, roles)
    if not (_is_key(public.encode()) and _is_key(signing.encode())):
        raise InvalidKey("a public key is 40 characters of Z85")
    _trust(directory, name, (public,), (signing,), roles)
    files = {path.name: path.read_text("utf-8") for path in _trusted_files(directory)}
    if (directory / "roles.toml").exists():
        files["roles.toml"] = (directory / "roles.toml").read_text("utf-8")
    return files


def new_secret(fabric: str, name: str) -> tuple[str, str, str]:
    """A new identity: the text of its self.key, its public key, and its public signing key."""
    secret = secrets.token_bytes(_SECRET_BYTES)
    return _format_secret(fabric, check_name(name), secret), _pair(secret)[1].decode(), _signing_key(secret)


def invite(directory: Path, fabric: str, name: str, roles: tuple[str, ...] = (MEMBER,)) -> str:
    """Make an identity for another node, trust it here, and return the token that it joins with.

    The token holds its secret, which is kept nowhere else, and all that is trusted here.
    """
    text, public, signing = new_secret(fabric, name)
    files = admit(directory, name, public, signing, roles)
    import json

    packed = base64.urlsafe_b64encode(zlib.compress(json.dumps(files).encode(), 9)).decode()
    return f"{text}:{packed}"


def accept(token: str) -> tuple[str, str, dict[str, str], str]:
    """What a token holds: fabric, name, the directory's files, the text of self.key. Raises InvalidKey."""
    secret, _, packed = token.strip().rpartition(":")
    fabric, name, _ = _parse_secret(secret.encode("ascii", "replace"))
    import json

    try:
        stream = zlib.decompressobj()
        content = stream.decompress(base64.b64decode(packed, altchars=b"-_", validate=True), _TOKEN_BYTES_MAX)
        files = json.loads(content)
    except (binascii.Error, zlib.error, ValueError, RecursionError):
        raise InvalidKey("the token is damaged") from None
    return fabric, name, check_files(files), secret


def check_files(files: object) -> dict[str, str]:
    """Files of a directory of identities, as another node sent them. Raises InvalidKey."""
    if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
        raise InvalidKey("the token is damaged")
    for file in files:
        if file != "roles.toml" and not (file.endswith(".toml") and check_name(file.removesuffix(".toml"))):
            raise InvalidKey("the token is damaged")
    return files


def unpack(directory: Path, files: Mapping[str, str], secret: str) -> None:
    """Write what `accept` returned into a new directory. Raises FileExistsError, or OSError."""
    write_private(directory / "self.key", (secret + "\n").encode())
    (directory / "trusted").mkdir(mode=0o755, exist_ok=True)
    for file, text in files.items():
        path = directory / file if file == "roles.toml" else directory / "trusted" / file
        path.write_text(text, "utf-8")
        path.chmod(0o644)


def revoke(directory: Path, name: str) -> None:
    """Trust an identity no longer. Raises FileNotFoundError."""
    (directory / "trusted" / f"{check_name(name)}.toml").unlink()


def rotate(directory: Path, fabric: str, *, finish: bool = False) -> None:
    """Give this node a new key pair, trusted beside the old one; with `finish` trust the old one no longer."""
    identities = Identities(directory, fabric)
    mine = identities.trusted.get(identities.name)
    roles, signing = ((MEMBER,), ()) if mine is None else (mine.roles, mine.signing)
    known = tuple(z85.encode(key).decode() for key in signing)  # what they signed stays good
    public = identities.public.decode()
    if finish:
        _trust(directory, identities.name, (public,), known, roles, new=False)
        return
    text, fresh, fresh_signing = new_secret(fabric, identities.name)
    _trust(directory, identities.name, (fresh, public), (fresh_signing, *known), roles, new=False)
    unnamed = directory / "self.key.new"
    unnamed.unlink(missing_ok=True)
    write_private(unnamed, (text + "\n").encode())
    unnamed.replace(directory / "self.key")
