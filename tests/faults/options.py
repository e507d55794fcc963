"""What a child process is told to do: one JSON object on its command line."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["Options"]


class Options(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Everything about one node and the one thing that it does."""

    role: str
    "`publish`, `subscribe`, `push`, `work` or `idle`."
    name: str
    incarnation: int = 0
    "Counts the processes of one name: payloads carry it."
    history: str = ""
    "The file that everything is written to."
    fabric: str = "faults"
    interface: str = "loopback"
    seeds: list[str] = []
    config: dict[str, Any] = {}
    outlet_port: int = 0
    "Fixed port of the outlet, as `Config.port` is that of the inbox."
    via: str = ""
    "Connect to this IP address instead of 127.0.0.1, at the same ports: a proxy listens there."
    checksums: bool = False
    "Protect frames by checksums although the interface is loopback, as on every other interface."
    files_max: int = 0
    "RLIMIT_NOFILE."
    handicap: str = ""
    "A mechanism to switch off, to see that the tests notice; see `program.HANDICAPS`."

    topic: str = "t"
    "First word of every topic."
    deliveries: tuple[str, ...] = ("at-most-once", "at-least-once", "exactly-once")
    "One topic for each: `t.at-most-once` ..."
    topics: int = 0
    "So many topics `t.0` ... instead, of the first delivery, each with a subscription of its own."
    count: int = 0
    "Messages to publish on each topic."
    rate: float = 0.0
    "Messages a second; 0 is as fast as possible."
    chunk: int = 100
    "Messages published in one turn of the event loop, at most."
    flush_every: int = 0
    "Messages after which a flush confirms what was published; 0 is at the end only."
    pad: int = 0
    "Bytes added to every payload."
    window_bytes: int = 0
    kept: int = 0
    "Messages of history for late joiners."
    delivery: str = "at-least-once"
    "Of the queue."
    subscribers: int = 1
    "Subscriptions to wait for before the first message."

    start: str | int = "latest"
    ack: str = "auto"
    overflow: str = ""
    buffer_bytes: int = 0
    pause_s: float = 0.0
    "Time that the subscriber takes for each batch, or the worker for each job."

    attempts: int = 5
    "What the pusher allows each job."
    poison: int = -1
    "The number of a job that always fails."
    killer: int = -1
    "The number of a job that kills its worker's process."
    concurrency: int = 4
    handler_timeout_s: float = 60.0

    def streams(self) -> dict[str, str]:
        """Every topic and its delivery."""
        if self.topics:
            return {f"{self.topic}.{number}": self.deliveries[0] for number in range(self.topics)}
        return {f"{self.topic}.{delivery}": delivery for delivery in self.deliveries}

    @property
    def reliable(self) -> list[str]:
        """The topics on which nothing may be lost."""
        return [topic for topic, delivery in self.streams().items() if delivery != "at-most-once"]
