"""The options that every verb with a node has."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from math import isnan
from typing import Any, TypeVar

import click

__all__ = [
    "AMOUNT",
    "QUEUE_DELIVERIES",
    "Number",
    "Options",
    "PatternParameter",
    "QueueParameter",
    "Seconds",
    "TopicParameter",
    "header_pairs",
    "json_option",
    "networked",
    "output_options",
]

AMOUNT = click.IntRange(0, 2**62)
"What records have room for."
QUEUE_DELIVERIES = ("at-least-once", "at-most-once")

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the common options say."""

    fabric: str = "default"
    interface: str = "loopback"
    seeds: tuple[str, ...] = ()
    insecure: bool = False
    name: str | None = None
    timeout: float | None = None
    mdns: bool = True
    json: bool = False
    quiet: bool = False
    verbose: int = 0
    no_color: bool = False


class Seconds(click.ParamType[float]):
    """A time above 0."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Refuse what is no number, 0 and infinity."""
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)
        if not 0 < number < float("inf"):
            self.fail(f"{value} is not above 0", param, ctx)
        return number


class Number(click.FloatRange):
    """A number within bounds; not `nan`, which click lets through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Refuse what is none."""
        number = super().convert(value, param, ctx)
        if isnan(number):
            self.fail(f"{value} is not a number", param, ctx)
        return float(number)


class TopicParameter(click.ParamType[str]):
    """A topic's name; Tab completes what is published now."""

    name = "topic"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse a malformed one, saying what is wrong with it."""
        from zfabric.errors import TopicError

        try:
            return self._check(str(value))
        except TopicError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Topics of the live fabric."""
        from zfabric.cli._completing import topics_that_begin

        return topics_that_begin(incomplete, ctx.params)

    def _check(self, value: str) -> str:
        from zfabric.wire.topics import check_topic

        return check_topic(value)


class QueueParameter(TopicParameter):
    """A queue's name, also that of dead letters."""

    name = "queue"

    def _check(self, value: str) -> str:
        from zfabric.wire.topics import check_topic

        return check_topic(value, reserved=value.startswith("$dead."))


class PatternParameter(TopicParameter):
    """A topic or a pattern."""

    name = "pattern"

    def _check(self, value: str) -> str:
        from zfabric.errors import TopicError
        from zfabric.wire.topics import check_pattern

        try:
            return check_pattern(value)
        except TopicError as error:
            raise TopicError(error.topic, f"{error.reason} (`*` is one word, `#` any number of words)") from None


def header_pairs(_ctx: click.Context, _param: click.Parameter, pairs: tuple[str, ...]) -> dict[str, Any] | None:
    """The callback of an option `NAME=VALUE` that can be repeated."""
    for pair in pairs:
        if not pair.partition("=")[0] or "=" not in pair:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE")
    return dict(pair.split("=", 1) for pair in pairs) or None


def _split_seeds(_ctx: click.Context, _param: click.Parameter, seeds: tuple[str, ...]) -> tuple[str, ...]:
    found = tuple(seed for text in seeds for seed in re.split(r"[,\s]+", text) if seed)
    for seed in found:
        tcp = re.fullmatch(r"tcp://[^/#]+:(\d{1,5})(#.*)?", seed)
        if not (seed.startswith("ipc:///") or (tcp and 0 < int(tcp[1]) < 65_536)):
            raise click.BadParameter(f"{seed!r} is not an address such as tcp://192.168.0.7:7400")
    return found


json_option = click.option("--json", "json", is_flag=True, help="Print one JSON object a line.")

_OUTPUT = (
    json_option,
    click.option("-q", "--quiet", is_flag=True, help="No notes on stderr, only warnings and errors."),
    click.option("-v", "--verbose", count=True, help="More notes; twice for debugging."),
    click.option(
        "--no-color", is_flag=True, default=lambda: bool(os.environ.get("NO_COLOR")), help="No colours. [$NO_COLOR]"
    ),
)


def _network_options(timeout: str) -> tuple[Callable[[Any], Any], ...]:
    return (
        click.option(
            "--fabric", default="default", envvar="ZFABRIC_FABRIC", metavar="NAME", help="The fabric. [$ZFABRIC_FABRIC]"
        ),
        click.option(
            "--interface",
            default="loopback",
            envvar="ZFABRIC_INTERFACE",
            metavar="NAME",
            help="`loopback`, `lan`, an interface or an address. [$ZFABRIC_INTERFACE]",
        ),
        click.option(
            "--seed",
            "seeds",
            multiple=True,
            envvar="ZFABRIC_SEEDS",
            callback=_split_seeds,
            metavar="ADDRESS",
            help="Address of a node to start from; repeat it for more. [$ZFABRIC_SEEDS]",
        ),
        click.option("--insecure", is_flag=True, help="Accept plain traffic on a network that you trust."),
        click.option("--name", metavar="NAME", help="What others see this command as."),
        click.option("--timeout", type=Seconds(), help=timeout),
        click.option(
            "--mdns/--no-mdns", default=True, envvar="ZFABRIC_MDNS", help="Look for nodes by mDNS, too. [$ZFABRIC_MDNS]"
        ),
    )


def networked(*, timeout: str) -> Callable[[F], F]:
    """Decorator: the options of a verb with a node, given to it as `options`; `timeout` is that option's help."""
    return _collected((*_network_options(timeout), *_OUTPUT))


def output_options(function: F) -> F:
    """Decorator: only the options about the output, given as `options`."""
    return _collected(_OUTPUT)(function)


def _collected(decorators: tuple[Callable[[Any], Any], ...]) -> Callable[[F], F]:
    names = [field.name for field in fields(Options)]

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def collect(**parameters: Any) -> Any:
            common = {name: parameters.pop(name) for name in names if name in parameters}
            return function(options=Options(**common), **parameters)

        decorated: Any = collect
        for decorator in reversed(decorators):
            decorated = decorator(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate
