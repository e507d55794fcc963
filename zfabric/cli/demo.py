"""`zfabric demo`: the telemetry example, installed with the package."""

from __future__ import annotations

import click

from zfabric.cli._exits import Exit, Stop
from zfabric.cli._options import Options
from zfabric.cli._output import Output
from zfabric.cli._running import guard

__all__ = ["command"]


@click.command(
    add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> int:
    """Watch this machine's telemetry fan out between processes that find each other.

    It takes the options of `python -m zfabric.examples.telemetry`: `zfabric demo --help` shows them.
    """
    options = Options()
    return guard(options, Output(options), lambda: _demo(arguments))


def _demo(arguments: tuple[str, ...]) -> int:
    try:
        from zfabric.examples.telemetry import main
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("zfabric.examples"):
            raise
        raise Stop(Exit.FAILED, "the examples are not installed: pip install 'zfabric[demo]', or -e . here") from None
    return main(list(arguments))
