"""Plays a recording: publishes it again, in its own time or another one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from zfabric.capture.format import CapturedBatch
from zfabric.capture.reader import CaptureReader
from zfabric.errors import CaptureError, DecodeFailed, LocalProtocolError
from zfabric.model import Delivery
from zfabric.node.node import Node
from zfabric.node.publisher import Publisher
from zfabric.wire.topics import Pattern, check_pattern, check_topic

__all__ = ["Player"]

_TREE = ".#"


class Player:
    """Publishes what a capture holds, with the recorded keys and headers, `rate` times as fast as it came.

    `rate=float("inf")` is as fast as subscribers take it. `remap` gives topics other names: `{"a": "b"}` for one,
    `{"plant.#": "test.plant.#"}` for all below a name. `patterns` choose by recorded name. `start` and `until` are
    seconds of the recording. Numbers, times and sources are those of this node: what is played is published anew, and
    with `sign` signed by this node.

    Times are kept by the event loop's clock; who was late, because a window was full, catches up. The file is read
    in the event loop, one chunk at a time.
    """

    def __init__(
        self,
        node: Node,
        capture: CaptureReader,
        *,
        rate: float = 1.0,
        loop: bool = False,
        remap: Mapping[str, str] | None = None,
        patterns: Sequence[str] | None = None,
        delivery: str = Delivery.AT_LEAST_ONCE,
        sign: bool = False,
        start: float = 0.0,
        until: float | None = None,
        messages_max: int | None = None,
        paused: bool = False,
    ) -> None:
        if not rate > 0:
            raise ValueError(f"rate must be above 0, not {rate!r}")
        self._node = node
        self._capture = capture
        self._rate = rate
        self._again = loop
        self._remap = dict(remap or {})
        for names in self._remap.items():
            _check_remap(*names)
        self._patterns = None if patterns is None else [Pattern(text) for text in patterns]
        self._delivery = delivery
        self._sign = sign
        self._start, self._until = start, until
        self._left = messages_max
        self._publishers: dict[str, Publisher | None] = {}
        self._running = asyncio.Event()
        self._stopped = asyncio.Event()
        (self._stopped if paused else self._running).set()
        self._reached = start
        self._anchor_s: float | None = None
        self.played: Counter[str] = Counter()
        "Messages published so far, by the topic that they went to."
        self.rounds = 0
        "How often the end was reached."

    def __repr__(self) -> str:
        state = "paused" if self.paused else f"at {self.position:.1f} s"
        return f"<Player {self._capture.paths[0]} [{state}, {self.played.total()} messages]>"

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for publisher in self.publishers:
            await publisher.close()

    async def open(self) -> None:
        """Open all publishers, so that subscribers can be there before the first message.

        Raises TopicError for recorded names that cannot be published, such as the fabric's own: remap those.
        """
        summary = await asyncio.to_thread(self._capture.summary)
        for topic in sorted({stream.topic for stream in summary.streams}):
            self._publisher(topic)

    @property
    def publishers(self) -> tuple[Publisher, ...]:
        """One for each topic that is played."""
        return tuple(publisher for publisher in self._publishers.values() if publisher is not None)

    # -- time ------------------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """Whether it stands still."""
        return self._stopped.is_set()

    @property
    def position(self) -> float:
        """The second of the recording that is played now."""
        if self._anchor_s is None or self._rate == float("inf"):
            return self._reached
        return self._reached + (asyncio.get_running_loop().time() - self._anchor_s) * self._rate

    def pause(self) -> None:
        """Stand still; what is published already goes out."""
        self._reached, self._anchor_s = self.position, None
        self._running.clear()
        self._stopped.set()

    def resume(self) -> None:
        """Go on where it stood."""
        self._stopped.clear()
        self._running.set()

    async def _due(self, moment: float) -> None:
        """Return when it is the turn of that second of the recording."""
        loop = asyncio.get_running_loop()
        while True:
            await self._running.wait()
            if self._anchor_s is None:
                self._anchor_s = loop.time()
            delay_s = self._anchor_s + (moment - self._reached) / self._rate - loop.time()
            if delay_s <= 0:
                if self._rate == float("inf"):
                    self._reached = moment
                return
            try:
                async with asyncio.timeout(delay_s):
                    await self._stopped.wait()
            except TimeoutError:
                pass

    # -- playing ---------------------------------------------------------------------------------

    async def play(self) -> int:
        """Play to the end, or for ever with `loop`; returns the number of messages published, all confirmed.

        Raises CaptureError for values that do not decode, and what `publisher.publish` raises.
        """
        while not self._is_enough:
            before = self.played.total()
            self._reached, self._anchor_s = self._start, None
            await self._play_once()
            self.rounds += 1
            if not self._again or self.played.total() == before:
                break
        for publisher in self.publishers:
            await publisher.flush()
        return self.played.total()

    async def _play_once(self) -> None:
        origin = self._capture.origin
        for batches in self._capture.chunks(self._start, self._until):
            assert origin is not None
            for batch in batches:
                publisher = self._publisher(batch.topic)
                if publisher is None:
                    continue
                await self._due(batch.received - origin)
                await self._publish(publisher, batch)
                if self._is_enough:
                    return

    @property
    def _is_enough(self) -> bool:
        return self._left is not None and self._left <= 0

    async def _publish(self, publisher: Publisher, batch: CapturedBatch) -> None:
        try:
            messages = batch.messages()[: self._left]
        except DecodeFailed as error:
            raise CaptureError(str(self._capture.paths[0]), f"{batch.topic}#{batch.base}: {error.reason}") from error
        if any(message.key is not None or message.headers is not None for message in messages):
            for message in messages:
                await publisher.publish(message.value, key=message.key, headers=message.headers)
        else:
            await publisher.publish_many(message.value for message in messages)
        self.played[publisher.topic] += len(messages)
        if self._left is not None:
            self._left -= len(messages)

    def _publisher(self, topic: str) -> Publisher | None:
        """Where a recorded topic goes to; None if it was not chosen."""
        if topic not in self._publishers:
            chosen = self._patterns is None or any(pattern.matches(topic) for pattern in self._patterns)
            self._publishers[topic] = (
                self._node.publisher(self._renamed(topic), delivery=self._delivery, sign=self._sign) if chosen else None
            )
        return self._publishers[topic]

    def _renamed(self, topic: str) -> str:
        if topic in self._remap:
            return self._remap[topic]
        for old, new in self._remap.items():
            below = old.removesuffix("#")
            if below != old and topic.startswith(below):
                return new.removesuffix("#") + topic.removeprefix(below)
        return topic


def _check_remap(old: str, new: str) -> None:
    if old.endswith(_TREE) != new.endswith(_TREE):
        raise LocalProtocolError(f"cannot map {old!r} to {new!r}: both or neither must end in {_TREE!r}")
    check_pattern(old)
    check_topic(new.removesuffix(_TREE))
    if not Pattern(old.removesuffix(_TREE)).literal:
        raise LocalProtocolError(f"cannot map {old!r}: it is a pattern; name a topic, or all below one as in 'a.b.#'")
