"""The part of the driver that is about the sockets of queues at-most-once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from zfabric.protocol.core import Core
from zfabric.protocol.effects import ConnectPush, DisconnectPush, SendJobs
from zfabric.transport.base import Buffer, Transport

__all__ = ["JobSockets"]


class JobSockets:
    """Joins the core's queues at-most-once to PUSH and PULL."""

    core: Core
    loop: asyncio.AbstractEventLoop
    batches_sent: int
    batches_received: int
    bytes_sent: int
    bytes_received: int
    _transport: Transport
    _pump_at_end: bool

    def open_push(self, queue: str) -> None:
        """Make a queue's PUSH socket. Raises LimitExceeded."""
        self._transport.open_push(queue)

    def open_pull(self, puller: int) -> tuple[str, ...]:
        """Make a puller's PULL socket; its endpoints. Raises LimitExceeded, or OSError."""
        return self._transport.open_pull(puller)

    def close_pull(self, puller: int) -> None:
        """Close it."""
        self._transport.close_pull(puller)

    def pause_pull(self, puller: int, paused: bool) -> None:
        """Stop or go on reading it."""
        self._transport.pause_pull(puller, paused)

    def on_jobs(self, puller: int, frames: Sequence[Buffer], user: str = "") -> None:
        """A batch arrived on a puller's socket."""
        self._pump_at_end = True
        self.batches_received += 1
        self.bytes_received += sum(map(len, frames))
        self.core.receive_jobs(puller, frames, self.loop.time(), user)

    def on_room(self, queue: str) -> None:
        """A puller of a queue has room again."""
        self._pump_at_end = True
        self.core.queues.plain.queues[queue].blocked = False

    def _act_on_jobs(self, action: ConnectPush | DisconnectPush | SendJobs, now: float) -> None:
        match action:
            case ConnectPush(queue, endpoint):
                self._transport.connect_push(queue, endpoint)
            case DisconnectPush(queue, endpoint):
                self._transport.disconnect_push(queue, endpoint)
            case SendJobs(queue):
                self._send_jobs(queue, now)

    def _send_jobs(self, name: str, now: float) -> None:
        queue = self.core.queues.plain.queues[name]
        while (frames := queue.head()) is not None:
            if not self._transport.push(name, frames):
                queue.blocked = True
                return
            self.batches_sent += 1
            self.bytes_sent += sum(map(len, frames))
            queue.sent(now)
