"""`zfabric keys`: make the key of a fabric, or identities for its nodes, and take them to other machines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zfabric.cli._exits import Exit, Stop
from zfabric.cli._options import Number, Options, output_options
from zfabric.cli._output import Output
from zfabric.cli._running import guard

if TYPE_CHECKING:
    from zfabric.security.keys import FabricKey

__all__ = ["command"]


@click.group()
def command() -> None:
    """Make the key of a fabric, or identities for its nodes, and take them to other machines.

    `init` makes one key for all: who has it gets in. `new` begins a fabric in which each node has a key of its own and
    rights of its own; `invite` lets others join.
    """


@command.command()
@click.argument("fabric", envvar="ZFABRIC_FABRIC")
@output_options
def init(options: Options) -> int:
    """Make a key for FABRIC, keep it in this user's configuration, and show how others join."""
    output = Output(options)
    return guard(options, output, lambda: _init(output, options.fabric))


def _init(output: Output, fabric: str) -> int:
    from zfabric.security.keyfiles import key_path, write_key
    from zfabric.security.keys import FabricKey, new_key

    path, key = key_path(fabric), FabricKey.parse(new_key(fabric))
    _without_identities(fabric)
    try:
        write_key(path, key)
    except FileExistsError:
        raise Stop(Exit.FAILED, f"{path} exists: `zfabric keys show` prints it; remove it to begin anew") from None
    output.note(f"made the key of fabric {fabric!r}: {path}")
    _tell(output, key, path)
    return 0


def _without_identities(fabric: str) -> None:
    """One key for all would change nothing where this user's nodes have identities."""
    from zfabric.security.keyfiles import identities_path

    if (directory := identities_path(fabric)).exists():
        raise Stop(Exit.FAILED, f"fabric {fabric!r} has identities, which come first: remove {directory} to use a key")


@command.command()
@click.argument("fabric", envvar="ZFABRIC_FABRIC")
@output_options
def show(options: Options) -> int:
    """Show again how others join FABRIC."""
    output = Output(options)
    return guard(options, output, lambda: _show(output, options.fabric))


def _show(output: Output, fabric: str) -> int:
    from zfabric.security.keyfiles import key_path, read_key

    path = key_path(fabric)
    try:
        key = read_key(path)
    except FileNotFoundError:
        raise Stop(Exit.FAILED, f"this user has no key of fabric {fabric!r}: `zfabric keys init` makes one") from None
    _tell(output, key, path)
    return 0


def _tell(output: Output, key: FabricKey, path: Path) -> None:
    if output.json:
        output.record({"fabric": key.fabric, "fingerprint": key.fingerprint, "path": str(path), "token": key.text})
        return
    output.note("on every other machine, once (whoever sees this line can join):")
    output.line(f"zfabric keys join {key.text}")


@command.command()
@click.argument("token", required=False, metavar="[TOKEN|FILE|-]")
@output_options
def join(options: Options, token: str | None) -> int:
    """Take over a key that was made elsewhere: the token that `init` printed, or a key file.

    Without TOKEN, or with -, it is read from stdin, so that it appears neither in your shell's history nor among the
    processes.
    """
    output = Output(options)
    return guard(options, output, lambda: _join(output, token))


def _join(output: Output, token: str | None) -> int:
    from zfabric.security.keyfiles import key_path, read_key, write_key
    from zfabric.security.keys import FabricKey

    if token in (None, "-"):
        token = click.prompt("token", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
    token = (token or "").strip()
    if not token:
        raise Stop(Exit.FAILED, "no token came: give the line that `zfabric keys init` or `invite` printed")
    if token.startswith("zfi1:"):
        return _join_as_identity(output, token)
    if token.startswith("zfo1:"):
        return _enrol(output, token)
    key = FabricKey.parse(token) if token.startswith("zfk1:") else read_key(Path(token))
    path = key_path(key.fabric)
    _without_identities(key.fabric)
    try:
        write_key(path, key)
    except FileExistsError:
        if read_key(path).text != key.text:
            raise Stop(Exit.FAILED, f"{path} holds another key; remove it to use this one") from None
    output.note(f"this user's nodes of fabric {key.fabric!r} use the key {key.fingerprint}: {path}")
    if output.json:
        output.record({"fabric": key.fabric, "fingerprint": key.fingerprint, "path": str(path)})
    return 0


def _join_as_identity(output: Output, token: str) -> int:
    from zfabric.security.identities import accept, unpack
    from zfabric.security.keyfiles import identities_path

    fabric, name, files, secret = accept(token)
    directory = _free(identities_path(fabric), name)
    unpack(directory, files, secret)
    return _joined(output, fabric, name, directory)


def _enrol(output: Output, line: str) -> int:
    """Join by an invitation that works once."""
    from zfabric.cli._enrolling import enrol
    from zfabric.security.enrolment import Invitation
    from zfabric.security.identities import check_files, new_secret, unpack
    from zfabric.security.keyfiles import identities_path
    from zfabric.security.keys import fingerprint

    invitation = Invitation.parse(line)
    fabric, name = invitation.fabric, invitation.name
    directory = _free(identities_path(fabric), name)
    secret, public, signing = new_secret(fabric, name)
    enrol(invitation, public, signing, lambda files: unpack(directory, check_files(files), secret))
    output.note(f"the inviter should see the key {fingerprint(public.encode())}")
    return _joined(output, fabric, name, directory)


def _free(directory: Path, name: str) -> Path:
    """The directory, if there is no identity in it."""
    if (directory / "self.key").exists():
        raise Stop(Exit.FAILED, f"{directory} has an identity already; remove it to join as {name!r}")
    return directory


def _joined(output: Output, fabric: str, name: str, directory: Path) -> int:
    output.note(f"this user's nodes of fabric {fabric!r} are {name!r} and trust {directory / 'trusted'}")
    if output.json:
        output.record({"fabric": fabric, "identity": name, "path": str(directory)})
    return 0


_role = click.option("--role", "roles", multiple=True, default=("member",), help="Of roles.toml; repeat it. [member]")


@command.command()
@click.argument("fabric", envvar="ZFABRIC_FABRIC")
@click.argument("name")
@_role
@output_options
def new(options: Options, roles: tuple[str, ...]) -> int:
    """Begin FABRIC with identities: this user's nodes are NAME."""
    output = Output(options)
    return guard(options, output, lambda: _new(output, options.fabric, options.name or "", roles))


def _new(output: Output, fabric: str, name: str, roles: tuple[str, ...]) -> int:
    from zfabric.security.identities import create
    from zfabric.security.keyfiles import identities_path, key_path

    directory = identities_path(fabric)
    if key_path(fabric).exists():
        raise Stop(Exit.FAILED, f"fabric {fabric!r} has one key for all: remove {key_path(fabric)} first")
    try:
        create(directory, fabric, name, roles)
    except FileExistsError:
        raise Stop(Exit.FAILED, f"{directory} has an identity already") from None
    output.note(f"made identity {name!r} of fabric {fabric!r}: {directory}")
    output.note("let others join with `zfabric keys invite`")
    if output.json:
        output.record({"fabric": fabric, "identity": name, "path": str(directory)})
    return 0


@command.command()
@click.argument("fabric", envvar="ZFABRIC_FABRIC")
@click.argument("name")
@_role
@click.option("--interface", default="lan", metavar="NAME", help="Where to wait: `lan`, a name or an address. [lan]")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="TCP port to wait at; 0 is any. [0]")
@click.option("--expires", type=Number(1), default=900.0, metavar="S", help="How long to wait. [900]")
@click.option("--offline", is_flag=True, help="Do not wait: the line holds a secret, and can be used again.")
@output_options
def invite(options: Options, roles: tuple[str, ...], port: int, expires: float, offline: bool) -> int:
    """Let another machine join as NAME: print the line to type there, and wait until that was done.

    The line works once. The other machine makes its own keys, and its public ones are trusted here from then on. Other
    machines trust it when trusted/NAME.toml is copied to them. Where the other machine cannot reach this one, use
    --offline.
    """
    output = Output(options)
    fabric, name = options.fabric, options.name or ""
    if offline:
        return guard(options, output, lambda: _invite_offline(output, fabric, name, roles))
    return guard(options, output, lambda: _invite(output, fabric, name, roles, options.interface, port, expires))


def _with_identity(fabric: str) -> Path:
    """Where this user's identity in the fabric is."""
    from zfabric.security.keyfiles import identities_path

    directory = identities_path(fabric)
    if not (directory / "self.key").exists():
        raise Stop(Exit.FAILED, f"fabric {fabric!r} has no identities here: `zfabric keys new` makes the first")
    return directory


def _invite(
    output: Output, fabric: str, name: str, roles: tuple[str, ...], interface: str, port: int, expires_s: float
) -> int:
    import time

    from zfabric.cli._enrolling import Listener
    from zfabric.discovery.interfaces import resolve
    from zfabric.security.enrolment import Enrolment, Invitation
    from zfabric.security.identities import Identities, admit, check_newcomer
    from zfabric.security.keys import fingerprint

    directory = _with_identity(fabric)
    mine = Identities(directory, fabric)
    check_newcomer(directory, name, roles)
    with Listener(resolve(interface).addresses, port, mine.public, mine.secret) as listener:
        expires = time.time() + expires_s
        invitation = Invitation.new(fabric, name, mine.public.decode(), expires, listener.endpoints)
        if output.json:
            output.record({"fabric": fabric, "identity": name, "roles": list(roles), "token": invitation.text})
        else:
            output.note(f"on the machine of {name!r}, within {expires_s:g} s (it works once):")
            output.line(f"zfabric keys join {invitation.text}")
        enrolment = Enrolment(invitation, lambda public, signing: admit(directory, name, public, signing, roles))
        if not listener.serve(enrolment, expires_s, lambda reason: output.warn(f"turned somebody away: {reason}")):
            raise Stop(Exit.TIMED_OUT, f"nobody came: the invitation of {name!r} has expired, and is worth nothing")
    key = fingerprint(enrolment.public.encode())
    output.note(f"{name!r} has joined with the key {key}; if its machine shows another one, revoke it")
    if output.json:
        output.record({"identity": name, "fingerprint": key})
    return 0


def _invite_offline(output: Output, fabric: str, name: str, roles: tuple[str, ...]) -> int:
    from zfabric.security import identities

    directory = _with_identity(fabric)
    token = identities.invite(directory, fabric, name, roles)
    if output.json:
        output.record({"fabric": fabric, "identity": name, "roles": list(roles), "token": token})
        return 0
    output.note(f"on the machine of {name!r}, once (whoever sees this line can take its place):")
    output.line(f"zfabric keys join {token}")
    return 0


@command.command()
@click.argument("fabric", envvar="ZFABRIC_FABRIC")
@click.argument("name")
@output_options
def revoke(options: Options) -> int:
    """Trust NAME no longer on this machine: its links end within a second. Repeat it on the others."""
    output = Output(options)
    return guard(options, output, lambda: _revoke(output, options.fabric, options.name or ""))


def _revoke(output: Output, fabric: str, name: str) -> int:
    from zfabric.security import identities
    from zfabric.security.keyfiles import identities_path

    try:
        identities.revoke(identities_path(fabric), name)
    except FileNotFoundError:
        raise Stop(Exit.FAILED, f"there is no identity {name!r} in fabric {fabric!r}: `zfabric keys list`") from None
    output.note(f"{name!r} is not trusted here any more; do the same on the other machines")
    return 0


@command.command()
@click.argument("fabric", envvar="ZFABRIC_FABRIC")
@click.option("--finish", is_flag=True, help="Trust the old key no longer.")
@output_options
def rotate(options: Options, finish: bool) -> int:
    """Give this user's identity in FABRIC a new key; nodes that start from now on use it.

    Until `--finish` the old one is trusted, too. Each time copy trusted/NAME.toml to the other machines.
    """
    output = Output(options)
    return guard(options, output, lambda: _rotate(output, options.fabric, finish=finish))


def _rotate(output: Output, fabric: str, *, finish: bool) -> int:
    from zfabric.security import identities

    directory = _with_identity(fabric)
    identities.rotate(directory, fabric, finish=finish)
    output.note(f"copy {directory / 'trusted'} to the other machines{'' if finish else '; then `--finish`'}")
    return 0


@command.command("list")
@click.argument("fabric", required=False, default="")
@output_options
def list_(options: Options) -> int:
    """Show which fabrics this user has a key of, or the identities of FABRIC. Exits 69 if there is none."""
    output = Output(options)
    return guard(options, output, lambda: _identities(output, options.fabric) if options.fabric else _list(output))


def _identities(output: Output, fabric: str) -> int:
    from zfabric.security.identities import Identities
    from zfabric.security.keyfiles import identities_path
    from zfabric.security.keys import fingerprint

    try:
        known = Identities(identities_path(fabric), fabric)
    except FileNotFoundError:
        raise Stop(
            Exit.NOBODY, f"fabric {fabric!r} has no identities here: `zfabric keys new` makes the first"
        ) from None
    rows = [
        (name, ", ".join(each.roles), fingerprint(each.public[0]) if each.public else "-")
        for name, each in sorted(known.trusted.items())
    ]
    if output.json:
        for name, roles, key in rows:
            output.record({"identity": name, "roles": roles.split(", "), "fingerprint": key, "own": name == known.name})
    else:
        output.table(("IDENTITY", "ROLES", "FINGERPRINT"), rows)
    return Exit.OK


def _list(output: Output) -> int:
    from zfabric.errors import InvalidKey
    from zfabric.security.identities import Identities
    from zfabric.security.keyfiles import key_files, read_key

    rows = []
    for path in key_files():
        try:
            key = read_key(path) if path.is_file() else Identities(path)
            rows.append((key.fabric, key.fingerprint, str(path)))
        except (InvalidKey, OSError) as error:
            output.warn(str(error))
    if output.json:
        for fabric, fingerprint, path_ in rows:
            output.record({"fabric": fabric, "fingerprint": fingerprint, "path": path_})
    elif rows:
        output.table(("FABRIC", "FINGERPRINT", "FILE"), rows)
    return Exit.OK if rows else Exit.NOBODY
