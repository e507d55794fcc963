"""`zfabric completion`: what a shell needs for its Tab key."""

from __future__ import annotations

import os
import sys
from pathlib import PurePath

import click
from click.shell_completion import get_completion_class

from zfabric.cli._options import Options, output_options
from zfabric.cli._output import Output
from zfabric.cli._program import PROGRAM_NAME, program
from zfabric.cli._running import guard

__all__ = ["command"]

SHELLS = ("bash", "zsh", "fish")
INSTALL = {
    "bash": 'eval "$(zfabric completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(zfabric completion zsh)"   # in ~/.zshrc',
    "fish": "zfabric completion fish > ~/.config/fish/completions/zfabric.fish",
}


def _own_shell() -> str:
    name = PurePath(os.environ.get("SHELL", "")).name
    return name if name in SHELLS else "bash"


@click.command()
@click.argument("shell", type=click.Choice(SHELLS), default=_own_shell)
@output_options
def command(options: Options, shell: str) -> int:
    """Print the script that makes SHELL complete verbs, options and live topics. [default: your shell]"""
    output = Output(options)
    return guard(options, output, lambda: _print(output, shell))


def _print(output: Output, shell: str) -> int:
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(program, {}, PROGRAM_NAME, f"_{PROGRAM_NAME.upper()}_COMPLETE").source()
    if output.json:
        output.record({"shell": shell, "script": script})
        return 0
    output.line(script)
    if sys.stdout.isatty():
        output.note(f"to have it always: {INSTALL[shell]}")
    return 0
