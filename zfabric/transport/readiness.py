"""Tells when a file descriptor can be read: by the event loop, or by a thread where the loop cannot."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Protocol

import zmq

__all__ = ["LoopReadiness", "Readiness", "ThreadReadiness", "readiness"]


class Readiness(Protocol):
    """Calls back in the event loop whenever a descriptor becomes readable."""

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Start to watch."""

    def forget(self, fd: int) -> None:
        """Stop to watch."""

    def close(self) -> None:
        """Stop everything."""


class LoopReadiness:
    """The event loop's own selector."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Start to watch."""
        self._loop.add_reader(fd, callback)

    def forget(self, fd: int) -> None:
        """Stop to watch."""
        self._loop.remove_reader(fd)

    def close(self) -> None:
        """Nothing is left to stop."""


class ThreadReadiness:
    """A thread around `zmq.Poller`, for loops without `add_reader` (Windows' Proactor).

    The thread looks at raw descriptors only, never at ZeroMQ sockets, which belong to the loop's thread. After it
    reported one it waits until the loop has dealt with it, since a descriptor stays readable until then.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._waker, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._handled = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="zfabric-waker", daemon=True)
        self._thread.start()

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Start to watch."""
        with self._lock:
            self._callbacks[fd] = callback
        self._waker.send(b"\0")

    def forget(self, fd: int) -> None:
        """Stop to watch."""
        with self._lock:
            self._callbacks.pop(fd, None)
        self._waker.send(b"\0")

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._handled.set()
        self._waker.send(b"\0")
        self._thread.join()
        self._waker.close()
        self._woken.close()

    def _run(self) -> None:
        while not self._closed:
            with self._lock:
                fds = list(self._callbacks)
            poller = zmq.Poller()
            poller.register(self._woken.fileno(), zmq.POLLIN)
            for fd in fds:
                poller.register(fd, zmq.POLLIN)
            ready = [fd for fd, _ in poller.poll()]
            if self._woken.fileno() in ready:
                ready.remove(self._woken.fileno())
                self._woken.recv(4096)
            if ready and not self._closed:
                self._handled.clear()
                try:
                    self._loop.call_soon_threadsafe(self._report, ready)
                except RuntimeError:
                    return  # the loop was closed without closing the node
                self._handled.wait()

    def _report(self, fds: list[int]) -> None:
        try:
            for fd in fds:
                with self._lock:
                    callback = self._callbacks.get(fd)
                if callback is not None:
                    callback()
        finally:
            self._handled.set()


def readiness(loop: asyncio.AbstractEventLoop, *, force_thread: bool) -> Readiness:
    """The loop's selector where it has one, else a thread."""
    if not force_thread:
        probe, other = socket.socketpair()
        try:
            loop.add_reader(probe.fileno(), lambda: None)
            loop.remove_reader(probe.fileno())
        except NotImplementedError:
            return ThreadReadiness(loop)
        else:
            return LoopReadiness(loop)
        finally:
            probe.close()
            other.close()
    return ThreadReadiness(loop)
