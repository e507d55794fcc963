"""`zfabric request`: call a service and print its reply."""

from __future__ import annotations

from collections.abc import Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import click

from zfabric.cli import _input
from zfabric.cli._exits import Exit, Stop
from zfabric.cli._look import LOOK_S, open_node, settle
from zfabric.cli._options import AMOUNT, Options, TopicParameter, networked
from zfabric.cli._output import Output, count
from zfabric.cli._running import run
from zfabric.cli._values import json_line, plain, safe, safe_text
from zfabric.cli._warnings import Warnings
from zfabric.errors import NoResponders
from zfabric.node.node import Node
from zfabric.node.signature import RESERVED

__all__ = ["command"]

REPLY_S = 10.0
"How long to wait for a reply, unless --timeout says otherwise."


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What the command line asks."""

    service: str
    arguments: list[Any]
    named: dict[str, Any]
    version: int
    idempotent: bool


def _named(_ctx: click.Context, _param: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    for pair in pairs:
        if not pair.partition("=")[0].isidentifier() or "=" not in pair:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)


@click.command()
@click.argument("service", type=TopicParameter())
@click.argument("arguments", nargs=-1)
@click.option("-o", "--option", "named", multiple=True, callback=_named, metavar="NAME=VALUE", help="Repeatable.")
@click.option("--text", is_flag=True, help="Arguments are text, even where they look like JSON.")
@click.option("--version", type=AMOUNT, default=1, metavar="N", help="Version of the service. [1]")
@click.option("--idempotent", is_flag=True, help="Try again while providers are lost or overloaded.")
@click.option("--all", "everybody", is_flag=True, help="Ask every provider, and print replies as they come.")
@click.option("--stream", is_flag=True, help="Print the values of a reply that streams as they come.")
@networked(timeout=f"How long to wait for the reply. [{REPLY_S:g}; none with --stream]")
def command(
    options: Options,
    service: str,
    arguments: tuple[str, ...],
    named: dict[str, str],
    text: bool,
    version: int,
    idempotent: bool,
    everybody: bool,
    stream: bool,
) -> int:
    """Call SERVICE and print its reply. Each of ARGUMENTS is JSON if it is JSON, else text.

    Text is printed as it is, everything else as JSON. Exits 69 when nobody provides the service, 75 when there is no
    reply in time, and 1 when the service fails.
    """
    if everybody and stream:
        raise click.UsageError("--all and --stream exclude each other: --all streams, too")
    if taken := sorted(RESERVED & named.keys()):
        raise click.UsageError(f"-o {taken[0]}: no service has an argument of that name, it is an option of requests")
    form = _input.Form.TEXT if text else _input.Form.AUTO
    ask = _ask_all if everybody else _stream if stream else _ask

    def begin(output: Output) -> Coroutine[Any, Any, int]:
        question = Question(
            service=service,
            arguments=[_input.argument(argument, form) for argument in arguments],
            named={name: _input.argument(value, form) for name, value in named.items()},
            version=version,
            idempotent=idempotent,
        )
        return _open(options, output, question, ask)

    return run(options, begin)


async def _open(options: Options, output: Output, question: Question, ask: Any) -> int:
    async with open_node(options, "request") as node, Warnings(output, node):
        wait_s = min(LOOK_S, options.timeout or LOOK_S)
        try:
            await node.wait_for_service(question.service, wait_s, version=question.version)
        except TimeoutError:
            raise _nobody(node, question) from None
        code: int = await ask(options, output, node, question)
        return code


def _nobody(node: Node, question: Question) -> NoResponders:
    offers = [offer for peer in node.peers for offer in peer.services if offer.service == question.service]
    return NoResponders(question.service, question.version, tuple(sorted({offer.version for offer in offers})))


async def _ask(options: Options, output: Output, node: Node, question: Question) -> int:
    reply = await node.request(
        question.service,
        *question.arguments,
        timeout=options.timeout or REPLY_S,
        idempotent=question.idempotent,
        version=question.version,
        **question.named,
    )
    _show(output, question.service, reply)
    return Exit.OK


async def _stream(options: Options, output: Output, node: Node, question: Question) -> int:
    values = node.stream(
        question.service, *question.arguments, timeout=options.timeout, version=question.version, **question.named
    )
    async with aclosing(values):
        async for value in values:
            _show(output, question.service, value)
    return Exit.OK


async def _ask_all(options: Options, output: Output, node: Node, question: Question) -> int:
    quiet_s = 0.15 if options.interface == "loopback" else 0.6
    await settle(node, quiet_s=quiet_s, least_s=quiet_s, most_s=LOOK_S)
    replies = node.request_all(
        question.service,
        *question.arguments,
        timeout=options.timeout or REPLY_S,
        version=question.version,
        **question.named,
    )
    late = failed = answered = 0
    async for reply in replies:
        if reply.error is None:
            answered += 1
            _show(output, question.service, reply.value, reply.source.name)
            continue
        late += isinstance(reply.error, TimeoutError)
        failed += 1
        if output.json:
            output.record({"service": question.service, "source": reply.source.name, "error": str(reply.error)})
        output.warn(str(reply.error))
    output.note(f"{answered} values, {count(failed, 'failure')}", verbose=1)
    if failed:
        code = Exit.TIMED_OUT if late == failed else Exit.FAILED
        raise Stop(code, f"{count(failed, 'provider')} of {question.service!r} did not answer well")
    return Exit.OK


def _show(output: Output, service: str, value: Any, source: str = "") -> None:
    if output.json:
        output.record({"service": service, **({"source": source} if source else {}), "value": plain(value)})
        return
    shown = value if isinstance(value, str) else json_line(plain(value)).decode().rstrip("\n")
    if output.on_terminal:
        shown, source = safe_text(shown), safe(source)
    output.line(f"{source}: {shown}" if source else shown)
