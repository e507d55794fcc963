"""Where a node lives: the real machine here, memory in `zfabric.testing`."""

from __future__ import annotations

import logging
import os
import secrets
import time
from pathlib import Path
from typing import Protocol

from zfabric.config import Config
from zfabric.discovery import ways
from zfabric.discovery.base import Discovery
from zfabric.discovery.interfaces import Scope, resolve
from zfabric.discovery.registry import runtime_dir
from zfabric.protocol.lending import Memory
from zfabric.transport.base import Credentials, Transport
from zfabric.transport.sharedmemory import ROUND_BYTES, MemoryFiles, SharedMemory
from zfabric.transport.sockets import ZmqTransport

__all__ = ["Environment", "Machine"]

log = logging.getLogger("zfabric")


class Environment(Protocol):
    """Everything outside the node that it needs."""

    def scope(self, interface: str) -> Scope:
        """The addresses behind `interface=`."""

    def random_bytes(self, count: int) -> bytes:
        """Fresh randomness."""

    def utc(self) -> float:
        """Seconds since 1970."""

    def transport(self, node_id: bytes, scope: Scope, config: Config, credentials: Credentials | None) -> Transport:
        """Sockets, not open yet."""

    def memory(self, node_id: bytes, config: Config) -> Memory | None:
        """Memory that can be lent to peers on the same host, if there is such."""

    def ways(self, scope: Scope, config: Config) -> list[Discovery]:
        """Ways to find peers, not started yet."""


class Machine:
    """This computer."""

    def scope(self, interface: str) -> Scope:
        """Look at the machine's interfaces."""
        return resolve(interface)

    def random_bytes(self, count: int) -> bytes:
        """From the operating system."""
        return secrets.token_bytes(count)

    def utc(self) -> float:
        """The machine's clock."""
        return time.time()

    def transport(self, node_id: bytes, scope: Scope, config: Config, credentials: Credentials | None) -> Transport:
        """ZeroMQ."""
        stem: Path | None = None
        if config.ipc:
            try:
                stem = runtime_dir() / node_id.hex()[:16]
            except OSError as error:
                log.warning("no ipc, because the runtime directory cannot be used: %s", error)
        with_crc = not scope.loopback and credentials is None  # CURVE authenticates every frame
        return ZmqTransport(config, scope.addresses, stem, credentials=credentials, with_crc=with_crc)

    def memory(self, node_id: bytes, config: Config) -> Memory | None:
        """Sealed files, on Linux."""
        if not config.shared_memory_bytes or not hasattr(os, "memfd_create"):
            return None
        try:
            return SharedMemory(node_id, self.random_bytes, config, MemoryFiles(config.frame_bytes_max + ROUND_BYTES))
        except OSError as error:
            log.warning("no shared memory: %s", error)
            return None

    def ways(self, scope: Scope, config: Config) -> list[Discovery]:
        """mDNS, the same-host registry and plugins."""
        return ways(scope, config)
