"""`zfabric doctor`: green where all is well, red with a cure where it is not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.cli.processes import Commands
from zfabric.cli import doctor
from zfabric.cli._checks_fabric import cure
from zfabric.cli._checks_live import live
from zfabric.cli.checks import Check, Situation, Status, ok
from zfabric.node.rights import mismatch

SITUATION = Situation("default", "loopback", insecure=False, mdns=False, timeout_s=1.0)


@pytest.mark.slow
async def test_green_and_red(cli: Commands, tmp_path: Path, runtime_dir: Path) -> None:
    """Here everything works, down to messages through mDNS; a directory open to all is refused and the cure told."""
    everybody = tmp_path / "shared"
    everybody.mkdir()
    everybody.chmod(0o777)
    well, ill = await asyncio.gather(
        cli.run("doctor", "--json", "--mdns", "--timeout", "20"),
        cli.run("doctor", "--no-mdns", ZFABRIC_RUNTIME_DIR=str(everybody)),
    )

    assert well.code == 0, well.out
    checks = {record["check"]: record for record in well.records}
    assert {"python", "zeromq", "curve", "ipc", "runtime directory", "registry", "clock", "tcp"} <= checks.keys()
    for name in ("live: registry", "live: mDNS"):
        assert checks[name]["status"] == "ok"
        assert "there and back in" in checks[name]["detail"]
    assert {record["status"] for record in well.records} <= {"ok", "warning"}
    assert all(record["cure"] for record in well.records if record["status"] != "ok")
    assert list(runtime_dir.glob("nodes/*/*")) == []  # noqa: ASYNC240 - a few names, in a test

    assert ill.code == 1
    lines = ill.out.splitlines()
    (index,) = [number for number, line in enumerate(lines) if line.startswith("FAIL  runtime directory")]
    assert "others may write to the runtime directory" in lines[index]
    assert lines[index + 1].strip().startswith("cure: set ZFABRIC_RUNTIME_DIR to ")
    assert "\x1b" not in ill.out
    assert "2 failed" in ill.err


def checks_with(monkeypatch: pytest.MonkeyPatch, plugin: object) -> list[Check]:
    """What the doctor finds, before its live checks, with one plugin installed."""
    point = SimpleNamespace(name="disk", load=lambda: plugin)
    monkeypatch.setattr(doctor, "entry_points", lambda group: [point] if group == "zfabric.doctor_checks" else [])
    return list(doctor.local_checks(SITUATION))


def test_plugins_add_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function under the entry point group is asked about the same situation."""

    def plugin(situation: Situation) -> Iterable[Check]:
        return [ok("disk", f"fine for {situation.interface}")]

    assert checks_with(monkeypatch, plugin)[-1] == Check("disk", Status.OK, "fine for loopback")


def test_a_broken_plugin_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that raises does not keep the doctor from its work."""

    def plugin(situation: Situation) -> Iterable[Check]:
        raise RuntimeError("no disk")

    last = checks_with(monkeypatch, plugin)[-1]

    assert (last.name, last.status) == ("disk", Status.FAILED)
    assert "RuntimeError: no disk" in last.detail


async def test_a_machine_that_is_too_slow_is_told_from_a_network_that_lets_nothing_through(runtime_dir: Path) -> None:
    """The second process takes time to start, too."""
    (check,) = (found for found in await live(replace(SITUATION, timeout_s=1e-6), registry=True) if found.cure)

    assert (check.status, "was not ready" in check.detail, "--timeout" in check.cure) == (Status.FAILED, True, True)


def test_an_unknown_interface_is_a_finding() -> None:
    """The doctor names the interfaces that there are."""
    situation = Situation("default", "nope0", insecure=False, mdns=False, timeout_s=1.0)

    found = {check.name: check for check in doctor.local_checks(situation)}

    assert found["interface"].status is Status.FAILED
    assert "loopback" in found["interface"].detail
    assert found["tcp"].status is Status.SKIPPED


@pytest.mark.parametrize(
    ("theirs", "distinguishes", "told"),
    [
        ("ab12", None, "here: `zfabric keys join`"),
        ("", False, "there: `zfabric keys join`"),
        ("ab12", False, "both need the same key"),
        ("", True, "there: `zfabric keys join`"),
        ("ab12", True, "compare `zfabric keys list`"),
    ],
)
def test_each_mismatch_of_keys_has_its_cure(theirs: str, distinguishes: bool | None, told: str) -> None:
    """Whoever has no key, another one, or one that is not trusted, is told what to type, and where."""
    ours = None if distinguishes is None else SimpleNamespace(distinguishes=distinguishes, fingerprint="cd34")

    assert told in cure(f"node 17: {mismatch(theirs, cast(Any, ours))}")


def test_other_refusals_have_a_cure_too() -> None:
    """Often only the other side knows."""
    assert "zfabric doctor" in cure("node 17: this node belongs to another fabric")
