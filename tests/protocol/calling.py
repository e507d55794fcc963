"""Clients and providers without sockets or clocks: handlers that take virtual time, and futures that are plain."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from tests.protocol.network import Party
from zfabric.protocol.calls import RECORD_BYTES, Call
from zfabric.protocol.serving import Execution, ServiceState
from zfabric.wire.service_records import Failure, Item, Offer, Reply

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder().decode


class Outcome:
    """What became of one call."""

    def __init__(self, argument: Any) -> None:
        self.argument = argument
        self.cancelled = False
        self.value: Any = None
        self.error: Exception | None = None
        self.items: list[Any] = []
        self.ends = 0

    def done(self) -> bool:
        """Whether it has ended."""
        return self.ends > 0

    def set_result(self, body: msgspec.Raw, /) -> None:
        """A reply."""
        self.value = decode(body)
        self.ends += 1

    def set_exception(self, error: Exception, /) -> None:
        """An error."""
        self.error = error
        self.ends += 1

    def add_item(self, body: msgspec.Raw, /) -> None:
        """One of several."""
        self.items.append(decode(body))

    def end(self) -> None:
        """All of them."""
        self.ends += 1


class Client:
    """A node that calls."""

    def __init__(self, party: Party) -> None:
        self.party = party
        self.calls: list[Call] = []
        self.outcomes: list[Outcome] = []

    def call(
        self,
        value: Any = None,
        *,
        timeout: float = 10.0,
        wait: float = 0.0,
        hedge_s: float | None = None,
        service: str = "work",
        **options: Any,
    ) -> Outcome:
        """Begin a call."""
        outcome = Outcome(value)
        arguments = encode([value])
        now, nbytes = self.party.world.now, RECORD_BYTES + len(arguments)
        call = Call(outcome, service, 1, msgspec.Raw(arguments), {}, nbytes, timeout, now + timeout, **options)
        if hedge_s is not None:
            call.hedge_s = hedge_s
        self.party.core.calls.begin(call, now, wait)
        self.party.pump()
        self.calls.append(call)
        self.outcomes.append(outcome)
        return outcome

    def cancel(self, outcome: Outcome) -> None:
        """Nobody waits any more."""
        outcome.cancelled = not outcome.done()
        self.party.core.calls.cancel(self.calls[self.outcomes.index(outcome)], self.party.world.now)
        self.party.pump()


class Worker:
    """A node with one service, which gives back what it was given after a while."""

    def __init__(
        self,
        party: Party,
        *,
        concurrency: int = 100,
        seconds: float = 0.05,
        streams: bool = False,
        service: str = "work",
    ) -> None:
        self.party = party
        self.seconds = seconds
        self.begun: Counter[Any] = Counter()
        self.finished: Counter[Any] = Counter()
        self.cancelled: list[Any] = []
        self.running = self.most = 0
        self.held: list[Execution] = []
        self.resumed = 0
        offer = Offer(service, 1, concurrency)
        self.state: ServiceState = party.core.serving.offer(offer, self, party.world.now, streams=streams)
        party.pump()

    def run(self, execution: Execution) -> bool:
        """Work for a while."""
        self.begun[self._value(execution)] += 1
        self.running += 1
        self.most = max(self.most, self.running)
        self.held.append(execution)
        self.party.world.after(self.seconds, self.finish, execution)
        return True

    def finish(self, execution: Execution) -> None:
        """The work is done."""
        if self.party.stalled:
            self.party.world.after(0.1, self.finish, execution)
        elif self.party.alive and execution in self.held:
            self.held.remove(execution)
            self.running -= 1
            value = self._value(execution)
            if not execution.cancelled:
                self.finished[value] += 1
            number = execution.request.number
            outcome = (
                Failure(number, "error", "Odd", "") if value == "odd" else Reply(number, msgspec.Raw(encode(value)))
            )
            self.party.core.serving.finish(execution, outcome, 100, self.party.world.now)
            self.party.pump()

    def cancel(self, execution: Execution) -> None:
        """Note it; the end of the work comes a little later."""
        self.cancelled.append(self._value(execution))
        self.party.world.after(0, self._give_up, execution)

    def _give_up(self, execution: Execution) -> None:
        if execution in self.held:
            self.held.remove(execution)
            self.running -= 1
            self.party.core.serving.give_up(execution, self.party.world.now)
            self.party.pump()

    def resume(self, execution: Execution) -> None:
        """A stream may go on."""
        self.resumed += 1

    def send(self, execution: Execution, value: Any, nbytes: int) -> bool:
        """One item of a stream."""
        item = Item(execution.request.number, msgspec.Raw(encode(value)))
        more = self.party.core.serving.add_item(execution, item, nbytes, self.party.world.now)
        self.party.pump()
        return more

    def drain(self) -> None:
        """Take no more."""
        self.party.core.serving.drain(self.state, self.party.world.now)
        self.party.pump()

    def withdraw(self) -> None:
        """End at once."""
        self.party.core.serving.withdraw(self.state, self.party.world.now)
        self.party.pump()

    @staticmethod
    def _value(execution: Execution) -> Any:
        return decode(execution.request.arguments)[0]
