"""`zfabric keys`: make the key of a fabric, and take it to other machines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zfabric.cli._exits import Exit, Stop
from zfabric.cli._options import Options, output_options
from zfabric.cli._output import Output
from zfabric.cli._running import guard

if TYPE_CHECKING:
    from zfabric.security.keys import FabricKey

__all__ = ["command"]


@click.group()
def command() -> None:
    """Make the key of a fabric, and take it to other machines.

    A fabric whose key this user has is encrypted, and only who has the same key gets in.
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
    try:
        write_key(path, key)
    except FileExistsError:
        raise Stop(Exit.FAILED, f"{path} exists: `zfabric keys show` prints it; remove it to begin anew") from None
    output.note(f"made the key of fabric {fabric!r}: {path}")
    _tell(output, key, path)
    return 0


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
    assert token is not None
    key = FabricKey.parse(token) if token.strip().startswith("zfk1:") else read_key(Path(token))
    path = key_path(key.fabric)
    try:
        write_key(path, key)
    except FileExistsError:
        if read_key(path).text != key.text:
            raise Stop(Exit.FAILED, f"{path} holds another key; remove it to use this one") from None
    output.note(f"this user's nodes of fabric {key.fabric!r} use the key {key.fingerprint}: {path}")
    if output.json:
        output.record({"fabric": key.fabric, "fingerprint": key.fingerprint, "path": str(path)})
    return 0


@command.command("list")
@output_options
def list_(options: Options) -> int:
    """Show which fabrics this user has a key of. Exits 69 if there is none."""
    output = Output(options)
    return guard(options, output, lambda: _list(output))


def _list(output: Output) -> int:
    from zfabric.errors import InvalidKey
    from zfabric.security.keyfiles import key_files, read_key

    rows = []
    for path in key_files():
        try:
            key = read_key(path)
            rows.append((key.fabric, key.fingerprint, str(path)))
        except InvalidKey as error:
            output.warn(str(error))
    if output.json:
        for fabric, fingerprint, path_ in rows:
            output.record({"fabric": fabric, "fingerprint": fingerprint, "path": path_})
    elif rows:
        output.table(("FABRIC", "FINGERPRINT", "FILE"), rows)
    return Exit.OK if rows else Exit.NOBODY
