"""The interface between the driver and whatever moves frames: ZeroMQ, or memory in tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

__all__ = ["Buffer", "Credentials", "Receiver", "Route", "Transport"]

Buffer: TypeAlias = bytes | bytearray | memoryview
Route: TypeAlias = int | bytes
"""An int names a connection that we dialled, bytes one that somebody dialled to us."""


class Credentials(Protocol):
    """A node's CURVE key pair (in Z85), and whom it trusts."""

    public: bytes
    secret: bytes
    fingerprint: str
    "What announcements say of the public key."
    distinguishes: bool
    """Whether peers have identities. Then endpoints end in `#` and the fingerprint of whoever listens there, and
    `Receiver` is told whose frames it gets; else all are alike."""

    def server_key(self, peer: str) -> bytes | None:
        """The public key of the node that announces this fingerprint; None if it is not trusted."""

    def admit(self, public: bytes) -> str | None:
        """Whose public key this is; None if it is not trusted."""

    def filters(self, user: str, prefix: bytes) -> tuple[bytes, ...]:
        """What the outlet may send to an identity whose feed subscribed to `prefix`."""


class Receiver(Protocol):
    """What a transport calls, always in the event loop that opened it."""

    def on_control(self, route: Route, frame: bytes, user: str = "") -> None:
        """A control frame arrived, from the identity `user`."""

    def on_batch(self, frames: Sequence[Buffer], user: str = "") -> None:
        """A batch arrived on the feed, from the identity `user`."""

    def on_filter(self, data: bytes, user: str = "") -> None:
        """A subscription (first byte 1) or its end (0) arrived at the outlet, from the identity `user`."""

    def on_unreachable(self, route: int) -> None:
        """A dialled connection was not made, or ended and was not made again; told at every attempt."""

    def on_interrupted(self, route: int) -> None:
        """A dialled connection ended, and is being made again; what is sent meanwhile waits for that."""

    def on_connection_ended(self) -> None:
        """Somebody's connection to the inbox ended."""

    def on_violation(self, address: str, reason: str) -> None:
        """Somebody broke the rules of a connection, or a limit: it was ended, or all at that socket were."""

    def on_handshake_failed(self, address: str, reason: str) -> None:
        """A connection was not made, because of its keys."""

    def on_jobs(self, puller: int, frames: Sequence[Buffer], user: str = "") -> None:
        """A batch arrived on a PULL socket, from the identity `user`."""

    def on_room(self, queue: str) -> None:
        """`Transport.push` said no; now it may say yes."""

    def on_burst_end(self) -> None:
        """No more for now: answer all of it at once."""


class Transport(Protocol):
    """Four sockets of one node: inbox and dialler for control frames, outlet and feed for batches.

    Beside them a PUSH for each queue at-most-once, and a PULL for each of its pullers.
    """

    inbox_endpoints: tuple[str, ...]
    "Where others can dial; known once open."
    outlet_endpoints: tuple[str, ...]
    "Where others' feeds can connect; known once open."

    def open(self, receiver: Receiver) -> None:
        """Bind and start to receive. Raises OSError if an address cannot be bound."""

    def rebind(self, addresses: tuple[str, ...]) -> dict[int, tuple[str, ...]]:
        """Listen on these addresses from now on (the machine's addresses changed): where each PULL socket does."""

    def drop_links(self) -> None:
        """End every connection that others made to us; those that are still trusted make it again."""

    def usable(self, endpoint: str) -> bool:
        """Whether an endpoint can work from here at all."""

    def dial(self, route: int, endpoint: str) -> bool:
        """Open a connection; frames may be sent at once. False if it cannot even be tried."""

    def hang_up(self, route: int) -> None:
        """Close a dialled connection after what was sent on it."""

    def send(self, route: Route, frame: bytes) -> bool:
        """Send a control frame; False if the route is gone or its queue full."""

    def connect_feed(self, endpoint: str) -> None:
        """Receive batches from an outlet."""

    def disconnect_feed(self, endpoint: str) -> None:
        """Stop to receive batches from an outlet."""

    def add_filter(self, prefix: bytes) -> None:
        """Receive what begins with `prefix`."""

    def remove_filter(self, prefix: bytes) -> None:
        """Undo one `add_filter`."""

    def publish(self, frames: Sequence[Buffer]) -> None:
        """Send a batch to whoever subscribed to its beginning; never blocks."""

    def pause_feed(self, paused: bool) -> None:
        """Stop or go on reading batches; they wait in the sockets and then at their publishers."""

    def open_push(self, queue: str) -> None:
        """Make a queue's PUSH socket, unless it is there. Raises LimitExceeded."""

    def connect_push(self, queue: str, endpoint: str) -> None:
        """Let a puller have jobs of a queue."""

    def disconnect_push(self, queue: str, endpoint: str) -> None:
        """Send no more to a puller; what is on the way is lost."""

    def push(self, queue: str, frames: Sequence[Buffer]) -> bool:
        """Send a batch to one of the queue's pullers; False if none has room: `Receiver.on_room` tells when."""

    def open_pull(self, puller: int) -> tuple[str, ...]:
        """Make a PULL socket; where pushers can connect to it. Raises LimitExceeded, or OSError."""

    def close_pull(self, puller: int) -> None:
        """Close a PULL socket with all that it has."""

    def pause_pull(self, puller: int, paused: bool) -> None:
        """Stop or go on reading a PULL socket; batches wait in the sockets and then at their pushers."""

    async def close(self, timeout: float) -> None:
        """Send what is queued for at most `timeout` seconds, then close. Always returns."""
