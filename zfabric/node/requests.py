"""This node as a client of services: one reply, a reply that streams, or the replies of all providers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import lru_cache, partial
from math import inf
from typing import Any

import msgspec

from zfabric.config import Config
from zfabric.errors import DecodeFailed, EncodeFailed, NodeClosed
from zfabric.model import ProviderReply, Source
from zfabric.node.driver import Driver
from zfabric.node.options import flag, real, whole
from zfabric.node.services import LONG_BYTES, check_size
from zfabric.node.signature import INLINE
from zfabric.protocol.calls import RECORD_BYTES, Call, Provider
from zfabric.wire.codec import Codec

__all__ = ["Requests"]

CODECS_MAX = 256


class Requests:
    """The requests of one node."""

    def __init__(self, driver: Driver, config: Config) -> None:
        self._driver = driver
        self._config = config
        self._calls = driver.core.calls
        self._calls.deliver = driver.resume
        self._plain = Codec(inline_bytes=INLINE)
        self._codec = lru_cache(CODECS_MAX)(partial(Codec, inline_bytes=INLINE))

    def _decode(self, service: str, expected: Any, body: msgspec.Raw) -> Any:
        codec = self._plain if expected is None else self._codec(expected)
        try:
            return codec.decode(body)
        except DecodeFailed as error:
            raise DecodeFailed(f"the reply of {service!r}: {error.reason}") from error.__cause__

    def _begin(
        self,
        caller: Any,
        service: str,
        version: int,
        arguments: tuple[Any, ...],
        options: dict[str, Any],
        timeout: float | None,
        wait: float,
        idempotent: bool = False,
        hedge_s: float = inf,
        credit: int = 0,
        only: Provider | None = None,
    ) -> Call:
        """Encode a call and begin it. Its caller may be told of its end before this returns."""
        driver = self._driver
        driver.check_open()
        driver.rights.check("request", service)
        encode = self._plain.encode
        try:
            encoded = encode(arguments)
            nbytes = RECORD_BYTES + len(encoded)
            if options:
                bodies = {name: encode(value) for name, value in options.items()}
                nbytes += sum(len(encode(name)) + len(body) for name, body in bodies.items())
                options = {name: msgspec.Raw(body) for name, body in bodies.items()}
        except EncodeFailed as error:
            raise EncodeFailed(service, error.reason) from error.__cause__
        if nbytes > LONG_BYTES:
            check_size(nbytes, self._config)
        version = whole("version", version)
        timeout = self._config.request_timeout_s if timeout is None else real("timeout", timeout)
        now = driver.loop.time()
        # fmt: off
        call = Call(
            caller, service, version, msgspec.Raw(encoded), options, nbytes, timeout, now + timeout, idempotent,
            credit, only, hedge_s,
        )
        # fmt: on
        self._calls.begin(call, now, real("wait", wait))
        if len(self._calls.outstanding) == 1:
            driver.pump()  # nothing else is on its way: so nothing would come to share the frame
        else:
            driver.schedule_pump()
        return call

    def _cancel(self, call: Call) -> None:
        if self._driver.open_state == "open":
            self._calls.cancel(call, self._driver.loop.time())
            self._driver.schedule_pump()

    async def request(
        self,
        service: str,
        arguments: tuple[Any, ...],
        options: dict[str, Any],
        timeout: float | None,
        idempotent: bool,
        hedge: float | None,
        version: int,
        wait: float,
        type: Any,  # noqa: A002 - the public name
    ) -> Any:
        """See Node.request."""
        if hedge is not None and not idempotent:
            raise ValueError("hedge= asks two providers: it needs idempotent=True")
        future: asyncio.Future[msgspec.Raw] = asyncio.Future(loop=self._driver.loop)
        hedge_s = inf if hedge is None else real("hedge", hedge)
        if idempotent is not False:
            idempotent = flag("idempotent", idempotent)
        call = self._begin(future, service, version, arguments, options, timeout, wait, idempotent, hedge_s)
        try:
            body = await future
        except asyncio.CancelledError:
            self._cancel(call)
            raise
        return self._decode(service, type, body)

    async def stream(
        self,
        service: str,
        arguments: tuple[Any, ...],
        options: dict[str, Any],
        *,
        timeout: float | None,
        version: int,
        wait: float,
        type: Any,  # noqa: A002 - the public name
    ) -> AsyncGenerator[Any, None]:
        """See Node.stream."""
        inlet = _Inlet(self._driver.loop)
        timeout = inf if timeout is None else timeout
        lane = self._lane(inlet, service, version, arguments, options, timeout, wait)
        try:
            while (found := await inlet.next()) is not None:
                _, outcome = found
                if isinstance(outcome, Exception):
                    raise outcome
                yield self._decode(service, type, outcome)
                self._read(lane, outcome)
        finally:
            self._cancel(lane.call)

    async def request_all(
        self,
        service: str,
        arguments: tuple[Any, ...],
        options: dict[str, Any],
        *,
        timeout: float | None,
        version: int,
        wait: float,
        type: Any,  # noqa: A002 - the public name
    ) -> AsyncGenerator[ProviderReply, None]:
        """See Node.request_all."""
        inlet = _Inlet(self._driver.loop)
        lanes: list[_Lane] = []
        try:
            for provider in await self._providers(service, version, wait):
                lane = self._lane(inlet, service, version, arguments, options, timeout, 0, provider)
                lanes.append(lane)
            while (found := await inlet.next()) is not None:
                lane, outcome = found
                assert lane.call.only is not None
                source = lane.call.only.peer.source
                if isinstance(outcome, Exception):
                    yield ProviderReply(source, None, outcome)
                    continue
                yield self._reply(source, service, type, outcome)
                self._read(lane, outcome)
        finally:
            for lane in lanes:
                self._cancel(lane.call)

    def _lane(
        self,
        inlet: _Inlet,
        service: str,
        version: int,
        arguments: tuple[Any, ...],
        options: dict[str, Any],
        timeout: float | None,
        wait: float,
        only: Provider | None = None,
    ) -> _Lane:
        """One more call whose items come by an inlet."""
        lane = _Lane(inlet)
        inlet.open += 1
        lane.call = self._begin(
            lane, service, version, arguments, options, timeout, wait, credit=self._config.stream_bytes, only=only
        )
        return lane

    def _read(self, lane: _Lane, body: msgspec.Raw) -> None:
        """An item was read: when that is half of what the provider may send, tell it."""
        lane.read_bytes += RECORD_BYTES + memoryview(body).nbytes
        if lane.read_bytes >= lane.call.credit // 2:
            self._calls.grant(lane.call, lane.read_bytes, self._driver.loop.time())
            lane.read_bytes = 0
            self._driver.schedule_pump()

    def _reply(self, source: Source, service: str, expected: Any, body: msgspec.Raw) -> ProviderReply:
        try:
            return ProviderReply(source, self._decode(service, expected, body), None)
        except DecodeFailed as error:
            return ProviderReply(source, None, error)

    async def _providers(self, service: str, version: int, wait: float) -> list[Provider]:
        self._driver.check_open()
        if real("wait", wait):
            with suppress(TimeoutError):
                await self.wait_for(service, version, wait)
        providers = self._calls.providers(service, version)
        if not providers:
            raise self._calls.nobody(service, version)
        return list(providers)

    async def wait_for(self, service: str, version: int, timeout: float | None, providers: int = 1) -> None:
        """See Node.wait_for_service."""
        await self._driver.wait_until(lambda: len(self._calls.providers(service, version)) >= providers, timeout)

    def close(self) -> None:
        """The node closes: nobody gets a reply any more."""
        self._calls.give_up(NodeClosed("the node was closed while the request was out"), self._driver.loop.time())


class _Inlet:
    """What came of some calls, in the order in which it came; `open` of them have not ended."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.open = 0
        self._loop = loop
        self._waiting: deque[tuple[_Lane, msgspec.Raw | Exception]] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, lane: _Lane, outcome: msgspec.Raw | Exception | None, *, last: bool) -> None:
        """Take what came; None for nothing but the end."""
        if outcome is not None:
            self._waiting.append((lane, outcome))
        self.open -= last
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> tuple[_Lane, msgspec.Raw | Exception] | None:
        """The next outcome, or None at the end."""
        while not self._waiting:
            if not self.open:
                return None
            self._waiter = self._loop.create_future()
            await self._waiter
        return self._waiting.popleft()


class _Lane:
    """One call's way into an inlet; a `protocol.calls.StreamCaller`."""

    call: Call

    def __init__(self, inlet: _Inlet) -> None:
        self._inlet = inlet
        self.read_bytes = 0
        "Read since the provider was told."

    def done(self) -> bool:
        """Never before its call."""
        return False

    def set_result(self, body: msgspec.Raw, /) -> None:
        """One value, and the end."""
        self._inlet.put(self, body, last=True)

    def set_exception(self, error: Exception, /) -> None:
        """The end."""
        self._inlet.put(self, error, last=True)

    def add_item(self, body: msgspec.Raw, /) -> None:
        """One value."""
        self._inlet.put(self, body, last=False)

    def end(self) -> None:
        """The end."""
        self._inlet.put(self, None, last=True)
