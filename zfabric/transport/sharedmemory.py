"""Blocks of shared memory, each a sealed anonymous file (memfd) that processes of the same user open by /proc.

Nothing is left behind however a process dies: the kernel frees a block with the last process that maps it. A sealed
file cannot be cut short under a reader's feet, and nobody but its owner can write to it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from zfabric.config import Config
from zfabric.errors import RemoteProtocolError
from zfabric.transport.base import Buffer
from zfabric.wire.loans import Block, MemoryOffer, block_name, proof_of

if sys.platform == "linux":
    import fcntl

__all__ = ["ROUND_BYTES", "Arena", "MemoryFiles", "SharedMemory"]

ROUND_BYTES = 64 * 1024
"Blocks are as long as a multiple of this, so that buffers of about the same size can use the same ones."
SECRET_BYTES = 16
MAPPINGS_PER_BLOCK = 4
"Blocks of others that stay mapped, for each that a node may have itself."
SEAL_FUTURE_WRITE = 0x10
"Not among Python's constants before 3.13."


class Arena(Protocol):
    """Where blocks come from."""

    def create(self, name: str, nbytes: int) -> tuple[int, Any]:
        """A descriptor and a writable buffer. Raises OSError."""

    def destroy(self, descriptor: int) -> None:
        """Let go of a block; the memory stays as long as anybody maps it."""

    def open(self, pid: int, name: str, descriptor: int) -> Any:
        """Somebody else's block, to be read only. Raises OSError; FileNotFoundError if it is not there (any more)."""


class MemoryFiles:
    """Implements `Arena` with sealed memfds."""

    def __init__(self, block_bytes_max: int) -> None:
        self._block_bytes_max = block_bytes_max

    def create(self, name: str, nbytes: int) -> tuple[int, mmap.mmap]:
        """The pages are there from the beginning: memory that runs out later would kill whoever touches it."""
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.fchmod(descriptor, 0o600)
            os.posix_fallocate(descriptor, 0, nbytes)
            buffer = mmap.mmap(descriptor, nbytes)
            with suppress(OSError):  # Linux before 5.1: readers promise not to write, and nothing holds them to it
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEAL_FUTURE_WRITE)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor, buffer

    def destroy(self, descriptor: int) -> None:
        """Close it."""
        os.close(descriptor)

    def open(self, pid: int, name: str, descriptor: int) -> mmap.mmap:
        """Nothing but a sealed memfd of that name and of this user is opened, whatever a peer claims."""
        path, link = f"/proc/{pid}/fd/{descriptor}", f"/memfd:{name} (deleted)"
        if str(Path(path).readlink()) != link:
            raise FileNotFoundError(f"{path} is not {name}")
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(file)
            if str(Path(f"/proc/self/fd/{file}").readlink()) != link:
                raise FileNotFoundError(f"{path} is not {name} any more")
            sealed = fcntl.fcntl(file, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
            if not sealed or status.st_uid != os.geteuid() or not 0 < status.st_size <= self._block_bytes_max:
                raise RemoteProtocolError("lends memory that cannot be trusted")
            # A private mapping shows the same memory; only such a one is both read-only there and writable to ctypes.
            return mmap.mmap(file, status.st_size, access=mmap.ACCESS_COPY)
        finally:
            os.close(file)


class _Own:
    """A block of this node's."""

    __slots__ = ("buffer", "capacity", "descriptor", "given_up", "layout", "lent", "serial", "viewed")

    def __init__(self, serial: int, descriptor: int, buffer: Any, capacity: int) -> None:
        self.serial = serial
        self.descriptor = descriptor
        self.buffer = buffer
        self.capacity = capacity
        self.layout = ctypes.c_char * capacity
        self.viewed = self.given_up = False
        self.lent = 0


class SharedMemory:
    """Implements `protocol.lending.Memory`."""

    def __init__(self, node_id: bytes, random_bytes: Callable[[int], bytes], config: Config, arena: Arena) -> None:
        """Raises OSError where there is no such memory."""
        self._arena = arena
        self._config = config
        self.secret = random_bytes(SECRET_BYTES)
        name = f"zfabric-{random_bytes(8).hex()}"
        descriptor, buffer = arena.create(name, len(self.secret))
        buffer[: len(self.secret)] = self.secret
        self._secret = descriptor
        self.offer = MemoryOffer(name, descriptor, proof_of(self.secret, node_id))
        self._serial = 0
        self._blocks: dict[int, _Own] = {}
        self._free: list[_Own] = []
        "The one used last comes first again: it is still in the processor's cache."
        self._views: dict[int, tuple[_Own, int]] = {}
        "Block and length, by the id of what `take` exported."
        self._unviewed: deque[_Own] = deque()
        self._nbytes = 0
        self._mappings: dict[tuple[str, int], tuple[Any, Any]] = {}

    # -- own blocks ------------------------------------------------------------------------------

    def take(self, nbytes: int) -> memoryview | None:
        """A free block, to write to."""
        while self._unviewed:
            self._settle(self._unviewed.popleft())
        fitting = [block for block in self._free if nbytes <= block.capacity <= 2 * nbytes + ROUND_BYTES]
        if fitting:
            block = fitting[-1]
            self._free.remove(block)
        else:
            made = self._make(-(-nbytes // ROUND_BYTES) * ROUND_BYTES)
            if made is None:
                return None
            block = made
        exporter = block.layout.from_buffer(block.buffer)
        block.viewed = True
        self._views[id(exporter)] = block, nbytes
        weakref.finalize(exporter, self._unview, id(exporter), block).atexit = False
        return memoryview(exporter).cast("B")[:nbytes]

    def _make(self, capacity: int) -> _Own | None:
        config = self._config
        if capacity > config.shared_memory_bytes:
            return None
        while (
            self._nbytes + capacity > config.shared_memory_bytes or len(self._blocks) >= config.shared_memory_blocks_max
        ):
            if not self._free:
                return None
            self._destroy(self._free.pop(0))
        self._serial += 1
        try:
            descriptor, buffer = self._arena.create(block_name(self.offer.name, self._serial), capacity)
        except OSError:
            return None
        block = self._blocks[self._serial] = _Own(self._serial, descriptor, buffer, capacity)
        self._nbytes += capacity
        return block

    def _unview(self, exported: int, block: _Own) -> None:
        """Called in any thread."""
        self._views.pop(exported, None)
        self._unviewed.append(block)

    def _settle(self, block: _Own) -> None:
        block.viewed = False
        if not block.lent:
            self._release(block)

    def _release(self, block: _Own) -> None:
        if not block.given_up:
            self._free.append(block)
        elif block.serial in self._blocks:
            self._destroy(block)

    def block_of(self, buffer: Buffer) -> Block | None:
        """Where a view is that `take` gave."""
        found = self._views.get(id(buffer.obj)) if isinstance(buffer, memoryview) else None
        if found is None or found[0].given_up or found[1] != len(buffer):
            return None
        return Block(found[0].serial, found[0].descriptor, len(buffer))

    def lend(self, serial: int) -> None:
        """It is not free until it is returned as often as it was lent."""
        self._blocks[serial].lent += 1

    def returned(self, serial: int) -> None:
        """It is free as soon as nobody here refers to it."""
        block = self._blocks.get(serial)
        if block is not None:
            block.lent -= 1
            if not block.lent and not block.viewed:
                self._release(block)

    def give_up(self, serial: int) -> None:
        """Let go of it, and of its part of the memory that may be used."""
        block = self._blocks.get(serial)
        if block is not None:
            self._destroy(block)

    def _destroy(self, block: _Own) -> None:
        block.given_up = True
        block.buffer = None  # what refers to it keeps it
        del self._blocks[block.serial]
        self._nbytes -= block.capacity
        self._arena.destroy(block.descriptor)

    def give_up_viewed(self) -> None:
        """Let go of what is referred to."""
        for block, _ in list(self._views.values()):
            block.given_up = True

    # -- others' blocks ----------------------------------------------------------------------------

    def secret_of(self, pid: int, offer: MemoryOffer) -> bytes | None:
        """Read another node's secret."""
        try:
            return bytes(self._arena.open(pid, offer.name, offer.descriptor)[:SECRET_BYTES])
        except (OSError, RemoteProtocolError):
            return None

    def map(self, pid: int, name: str, block: Block, gone: Callable[[], object]) -> memoryview:
        """Another node's block, read-only."""
        key = name, block.serial
        mapping = self._mappings.pop(key, None)
        if mapping is None:
            buffer = self._arena.open(pid, block_name(name, block.serial), block.descriptor)
            mapping = ctypes.c_char * len(buffer), buffer
        self._mappings[key] = mapping
        if len(self._mappings) > MAPPINGS_PER_BLOCK * self._config.shared_memory_blocks_max:
            del self._mappings[next(iter(self._mappings))]
        layout, buffer = mapping
        if block.nbytes > len(buffer):
            raise RemoteProtocolError(f"lends {block.nbytes} bytes of a block of {len(buffer)}")
        exporter = layout.from_buffer(buffer)
        weakref.finalize(exporter, gone).atexit = False
        return memoryview(exporter).cast("B")[: block.nbytes].toreadonly()

    def forget(self, name: str) -> None:
        """Unmap what nobody here refers to."""
        for key in [key for key in self._mappings if key[0] == name]:
            del self._mappings[key]

    def close(self) -> None:
        """Let go of everything; views stay good."""
        for block in list(self._blocks.values()):
            self._destroy(block)
        self._free.clear()
        self._mappings.clear()
        self._arena.destroy(self._secret)
