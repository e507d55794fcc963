"""The `zfabric` program: a group of verbs that loads none of them before it is called."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from zfabric.cli._exits import EXITS, Exit

__all__ = ["PROGRAM_NAME", "SECTIONS", "main", "program"]

PROGRAM_NAME = "zfabric"

SECTIONS = {
    "See what is there": {
        "nodes": "Who is there.",
        "topics": "What is published, by whom and for whom.",
        "services": "What is provided, and by whom.",
        "queues": "Which queues there are, and how they do.",
        "graph": "A picture of who talks to whom.",
        "hz": "How often messages come, topic by topic.",
        "bw": "How many bytes a second, topic by topic.",
        "top": "All of it on one live screen.",
    },
    "Send and receive": {
        "pub": "Publish on a topic.",
        "sub": "Show what is published.",
        "push": "Push jobs, and wait until they are done.",
        "pull": "Take jobs, to show them or to run a command for each.",
        "dead": "Show, repeat or drop dead letters.",
        "schedule": "Push jobs again and again.",
        "request": "Call a service.",
        "serve": "Provide a service by a command.",
    },
    "Keep and repeat": {
        "record": "Record what is published into a file.",
        "play": "Publish a recorded file again.",
        "inspect": "What a recorded file holds.",
    },
    "Keep what is published": {
        "store": "Keep durable topics on disk.",
    },
    "This machine": {
        "keys": "Make the key of a fabric, and take it to other machines.",
        "doctor": "Check that a node works here, and say what to do where it does not.",
        "bench": "How fast it is here.",
        "demo": "Watch this machine's telemetry fan out between processes.",
        "completion": "Make the Tab key complete verbs, options and topics.",
    },
}
"The verbs, each a module of its name in this package with a click command `command`."

HELP = """A messaging fabric without a broker: nodes find each other and talk directly.

Data goes to stdout, everything else to stderr. With --json every verb prints one JSON object a line.
"""


class Program(click.Group):
    """Shows the verbs without loading them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every verb, as the help lists them."""
        return [name for verbs in SECTIONS.values() for name in verbs]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one verb."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command = import_module(f"zfabric.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb; a misspelt one gets a suggestion."""
        known = self.list_commands(ctx)
        name = args[0]
        if name not in known and not name.startswith("-") and not ctx.resilient_parsing:
            close = difflib.get_close_matches(name, known, 1)
            suggestion = f"did you mean `{close[0]}`?" if close else f"there are: {', '.join(known)}"
            ctx.fail(f"no verb {name!r}; {suggestion}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs in their sections."""
        width = max(map(len, self.list_commands(ctx)))
        for title, verbs in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in verbs.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The exit codes."""
        with formatter.section("Exit codes"):
            formatter.write_dl([(f"{code:>3}", text) for code, text in EXITS.items()])


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"{PROGRAM_NAME} {version('zfabric')}")
        except PackageNotFoundError:
            click.echo(f"{PROGRAM_NAME} (a checkout that is not installed)")
        ctx.exit()


@click.group(cls=Program, help=HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
def program() -> None:
    """See HELP."""


def _open_streams() -> None:
    """Whoever starts this may have closed them: then nothing comes, and what is written goes nowhere."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - for as long as the process lives


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    _open_streams()
    try:
        outcome: Any = program.main(
            args=list(sys.argv[1:] if arguments is None else arguments), prog_name=PROGRAM_NAME, standalone_mode=False
        )
    except click.Abort:
        return Exit.INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        from zfabric.cli._output import abandon_stdout

        abandon_stdout()
        return Exit.OK
    return int(outcome or Exit.OK)
