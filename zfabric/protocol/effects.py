"""What the state machines want done: they decide here, the driver acts."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from zfabric.events import Event
from zfabric.wire.records import Record, encode_envelope

__all__ = [
    "Action",
    "AddFilter",
    "ConnectFeed",
    "ConnectPush",
    "Dial",
    "DisconnectFeed",
    "DisconnectPush",
    "Effects",
    "Emit",
    "HangUp",
    "RemoveFilter",
    "Route",
    "Send",
    "SendJobs",
]

Route: TypeAlias = int | bytes
"""A way to one peer: an int for a connection that we dialled, bytes for one that it dialled."""

RECORDS_PER_FRAME = 1000
"What one frame carries, far below what its receiver accepts (Config.control_records_max, frame_bytes_max)."
FRAME_BYTES = 4 * 1024 * 1024
"So many bytes of long records, unless one alone is longer."


class Dial(msgspec.Struct, frozen=True):
    """Open a connection; `route` names it from now on."""

    route: int
    endpoint: str


class HangUp(msgspec.Struct, frozen=True):
    """Close a connection that we dialled."""

    route: int


class Send(msgspec.Struct, frozen=True):
    """Send one control frame."""

    route: Route
    frame: bytes


class ConnectFeed(msgspec.Struct, frozen=True):
    """Connect the feed to a publisher's outlet."""

    endpoint: str


class DisconnectFeed(msgspec.Struct, frozen=True):
    """Disconnect the feed from a publisher's outlet."""

    endpoint: str


class AddFilter(msgspec.Struct, frozen=True):
    """Subscribe the feed to a prefix."""

    prefix: bytes


class RemoveFilter(msgspec.Struct, frozen=True):
    """Unsubscribe the feed from a prefix."""

    prefix: bytes


class ConnectPush(msgspec.Struct, frozen=True):
    """Connect a queue's PUSH socket to a puller."""

    queue: str
    endpoint: str


class DisconnectPush(msgspec.Struct, frozen=True):
    """Disconnect a queue's PUSH socket from a puller."""

    queue: str
    endpoint: str


class SendJobs(msgspec.Struct, frozen=True):
    """Push what an at-most-once queue has, as long as a puller has room."""

    queue: str


class Emit(msgspec.Struct, frozen=True):
    """Tell the user."""

    event: Event


Action: TypeAlias = (
    Dial
    | HangUp
    | Send
    | ConnectFeed
    | DisconnectFeed
    | AddFilter
    | RemoveFilter
    | ConnectPush
    | DisconnectPush
    | SendJobs
    | Emit
)


class Effects:
    """Collects actions in order, and the records for each route so that they leave as one frame."""

    def __init__(self, me: bytes) -> None:
        self._me = me
        self._actions: list[Action] = []
        self._records: dict[Route, list[Record]] = {}
        self._bulk: dict[Route, int] = {}

    def do(self, action: Action) -> None:
        """Ask the driver for one action."""
        self._actions.append(action)

    def emit(self, event: Event) -> None:
        """Ask the driver to tell the user."""
        self._actions.append(Emit(event))

    def tell(self, route: Route, *records: Record) -> None:
        """Queue records for a route; they leave in this turn's frame."""
        self._records.setdefault(route, []).extend(records)

    def tell_bulk(self, route: Route, record: Record, nbytes: int) -> None:
        """Queue a record of that length; what is queued leaves as a frame before it grows too long."""
        waiting = self._bulk.get(route, 0) + nbytes
        if waiting > FRAME_BYTES and route in self._records:
            self._send(route, self._records.pop(route))
            waiting = nbytes
        self._bulk[route] = waiting
        self._records.setdefault(route, []).append(record)

    def tell_once(self, route: Route, record: Record) -> None:
        """Queue a record unless one of its kind waits for that route."""
        if not any(type(other) is type(record) for other in self._records.get(route, ())):
            self.tell(route, record)

    def hang_up(self, route: int) -> None:
        """Close a dialled connection, after what is still queued for it."""
        self._send(route, self._records.pop(route, []))
        self._actions.append(HangUp(route))

    def _send(self, route: Route, records: list[Record]) -> None:
        while len(records) > RECORDS_PER_FRAME:
            self._actions.append(Send(route, encode_envelope(self._me, records[:RECORDS_PER_FRAME])))
            records = records[RECORDS_PER_FRAME:]
        if records:
            self._actions.append(Send(route, encode_envelope(self._me, records)))

    @property
    def waiting(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._records or self._actions)

    def take(self) -> list[Action]:
        """Everything to do now, in order."""
        if self._records:
            queued, self._records = self._records, {}
            self._bulk.clear()
            for route, records in queued.items():
                self._send(route, records)
        actions, self._actions = self._actions, []
        return actions
