"""`zfabric doctor`: does a node work here, and if not, what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import entry_points

import click

from zfabric.cli import _checks_keys, _checks_machine, _checks_network
from zfabric.cli._checks_fabric import neighbours
from zfabric.cli._checks_live import live
from zfabric.cli._options import Options, networked
from zfabric.cli._output import Output
from zfabric.cli._running import run
from zfabric.cli._values import safe
from zfabric.cli.checks import ENTRY_POINTS, Check, CheckFunction, Situation, Status, failed

__all__ = ["command", "local_checks"]

_SIGNS = {
    Status.OK: ("ok", "green"),
    Status.WARNING: ("warn", "yellow"),
    Status.FAILED: ("FAIL", "red"),
    Status.SKIPPED: ("skip", "blue"),
}
_NAME_WIDTH = 17


@click.command()
@networked(timeout="How long a second process may take to be found. [5]")
def command(options: Options) -> int:
    """Check versions, directories, addresses, discovery, a message to a second process, and who refuses whom.

    Each line that is not well names its cure. Exits 1 if a check failed. Nothing leaves this machine, unless
    --interface says so. The key and the nodes that are looked at are those of --fabric.
    """
    return run(options, lambda output: _examine(options, output))


async def _examine(options: Options, output: Output) -> int:
    situation = Situation(options.fabric, options.interface, options.insecure, options.mdns, options.timeout or 5.0)
    found: list[Check] = []
    for check in local_checks(situation):
        _show(output, check)
        found.append(check)
    registry = not any(check.name in ("runtime directory", "registry") and _is_failed(check) for check in found)
    for check in [*await live(situation, registry=registry), *await neighbours(options)]:
        _show(output, check)
        found.append(check)
    broken = sum(map(_is_failed, found))
    warnings = sum(check.status is Status.WARNING for check in found)
    output.note(f"{len(found)} checks, {broken} failed, {warnings} with a warning")
    return 1 if broken else 0


def _is_failed(check: Check) -> bool:
    return check.status is Status.FAILED


def local_checks(situation: Situation) -> Iterator[Check]:
    """The checks that need no second process, plugins' included."""
    checks: list[CheckFunction] = [*_checks_machine.CHECKS, *_checks_keys.CHECKS, *_checks_network.CHECKS]
    for function in checks:
        yield from function(situation)
    for plugin in entry_points(group=ENTRY_POINTS):
        try:
            yield from list(plugin.load()(situation))
        except Exception as error:  # noqa: BLE001 - a broken plugin is a finding
            yield failed(plugin.name, f"the plugin raised {type(error).__name__}: {error}", "mend or uninstall it")


def _show(output: Output, check: Check) -> None:
    if output.json:
        output.record({"check": check.name, **{k: v for k, v in asdict(check).items() if k != "name"}})
        return
    sign, color = _SIGNS[check.status]
    output.line(f"{output.style(f'{sign:>4}', fg=color, bold=True)}  {check.name:<{_NAME_WIDTH}} {safe(check.detail)}")
    if check.cure:
        output.line(f"{'':>{_NAME_WIDTH + 7}}{output.style('cure: ' + safe(check.cure), fg=color)}")
