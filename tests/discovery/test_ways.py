"""Which ways of discovery a node gets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint

import pytest

from zfabric import discovery
from zfabric.config import Config
from zfabric.discovery import Discovery, MdnsDiscovery, RegistryDiscovery, Scope, ways

LOOPBACK = Scope("loopback", ("127.0.0.1",), True)


class Plugin(RegistryDiscovery):
    """A way that somebody else wrote."""

    def __init__(self, scope: Scope, config: Config) -> None:
        super().__init__(config)
        self.scope = scope


def broken(scope: Scope, config: Config) -> Discovery:
    """A way that does not work here."""
    raise RuntimeError("no etcd here")


def install(monkeypatch: pytest.MonkeyPatch, *plugins: tuple[str, str]) -> None:
    """Pretend that distributions with these entry points are installed."""
    points = [EntryPoint(name, value, discovery.ENTRY_POINTS) for name, value in plugins]
    monkeypatch.setattr(discovery, "entry_points", lambda group: [p for p in points if p.group == group])
    discovery._plugins.cache_clear()


@pytest.fixture(autouse=True)
def forget_plugins() -> Iterator[None]:
    """Other tests see what is really installed."""
    yield
    discovery._plugins.cache_clear()


def test_all_ways_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry first, because it answers at once."""
    install(monkeypatch)

    assert [way.name for way in ways(LOOPBACK, Config())] == ["registry", "mdns"]


def test_ways_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each on its own."""
    install(monkeypatch)

    assert [type(way) for way in ways(LOOPBACK, Config(registry=False))] == [MdnsDiscovery]
    assert [type(way) for way in ways(LOOPBACK, Config(mdns=False))] == [RegistryDiscovery]


def test_plugins_come_last_and_broken_ones_are_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A plugin that cannot be imported, or fails, does not keep a node from opening."""
    here = __name__
    install(monkeypatch, ("gone", "no.such.module:way"), ("broken", f"{here}:broken"), ("good", f"{here}:Plugin"))

    found = ways(LOOPBACK, Config(mdns=False))

    assert [type(way) for way in found] == [RegistryDiscovery, Plugin]
    assert "'gone'" in caplog.text
    assert "no etcd here" in caplog.text


def test_importing_discovery_does_not_import_zeroconf() -> None:
    """Programs that only print help, or turn mDNS off, do not pay for it."""
    code = "import sys, zfabric.discovery; sys.exit('zeroconf' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0
