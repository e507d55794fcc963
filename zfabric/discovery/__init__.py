"""How nodes find each other: mDNS, a same-host registry, and whatever plugins add. All of them run at once."""

from __future__ import annotations

import logging
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from zfabric.config import Config
from zfabric.discovery.base import Announcement, Discovery, Found
from zfabric.discovery.interfaces import AddressWatch, Scope, resolve
from zfabric.discovery.mdns import MdnsDiscovery
from zfabric.discovery.registry import RegistryDiscovery, announcements, is_alive, runtime_dir

__all__ = [
    "AddressWatch",
    "Announcement",
    "Discovery",
    "Found",
    "MdnsDiscovery",
    "RegistryDiscovery",
    "Scope",
    "announcements",
    "is_alive",
    "resolve",
    "runtime_dir",
    "ways",
]

logger = logging.getLogger("zfabric.discovery")

ENTRY_POINTS = "zfabric.discovery"
"Group of entry points that name a `(scope, config) -> Discovery`."


def ways(scope: Scope, config: Config) -> list[Discovery]:
    """The ways of finding peers that are enabled, the fastest first. A plugin that fails is left out and logged."""
    found: list[Discovery] = []
    if config.registry:
        found.append(RegistryDiscovery(config))
    if config.mdns:
        found.append(MdnsDiscovery(scope, config))
    for plugin in _plugins():
        try:
            found.append(plugin.load()(scope, config))
        except Exception:
            logger.exception("discovery plugin %r failed and is left out", plugin.name)
    return found


@cache
def _plugins() -> tuple[EntryPoint, ...]:
    """Looked up once: it reads a file of every installed distribution, which takes milliseconds."""
    return tuple(entry_points(group=ENTRY_POINTS))
