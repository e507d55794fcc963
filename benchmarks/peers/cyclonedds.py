"""Cyclone DDS from Python: one reliable keep-all topic of an array of bytes (which its binding encodes at once, while a
sequence is a list of numbers to it), taken in lists of up to 1,000 samples.

Loopback only, discovery by unicast: the configuration is set before the library is loaded.
"""

# No `from __future__ import annotations` here: Cyclone reads the types of a class when it is made.
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any
from zlib import crc32

os.environ["CYCLONEDDS_URI"] = """<CycloneDDS><Domain id="any">
  <General><Interfaces><NetworkInterface name="lo" multicast="false"/></Interfaces>
    <AllowMulticast>false</AllowMulticast></General>
  <Discovery><ParticipantIndex>auto</ParticipantIndex><MaxAutoParticipantIndex>150</MaxAutoParticipantIndex>
    <Peers><Peer address="127.0.0.1"/></Peers></Discovery>
</Domain></CycloneDDS>"""

from cyclonedds.core import InstanceState, Policy, Qos, ReadCondition, SampleState, ViewState, WaitSet
from cyclonedds.domain import DomainParticipant
from cyclonedds.idl import IdlStruct
from cyclonedds.idl.types import array, uint8
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration

from benchmarks.drive import Receiver, Sender, receiving, sending
from benchmarks.model import Entry, Link, Run

__all__ = ["ENTRIES", "take", "write"]

RELIABLE = Qos(Policy.Reliability.Reliable(duration(seconds=60)), Policy.History.KeepAll)
TAKE = 1_000


def payload_type(size: int) -> Any:
    """What the topic carries: so many bytes."""

    @dataclass
    class Payload(IdlStruct, typename="Payload"):  # type: ignore[misc, call-arg]
        data: array[uint8, size]

    return Payload


@contextmanager
def write(run: Run, link: Link) -> Iterator[Sender]:
    """Write, when every reader has been matched."""
    participant = DomainParticipant(_domain(run))
    payload = payload_type(run.size)
    writer = DataWriter(participant, Topic(participant, "benchmark", payload), qos=RELIABLE)
    link.meet()
    while len(writer.get_matched_subscriptions()) < run.receivers:
        time.sleep(0.01)
    yield Sender(sends=[lambda value: writer.write(payload(data=value))], flush=partial(_confirm, writer))


@contextmanager
def take(run: Run, link: Link) -> Iterator[Receiver]:
    """Take lists of samples."""
    participant = DomainParticipant(_domain(run))
    reader = DataReader(participant, Topic(participant, "benchmark", payload_type(run.size)), qos=RELIABLE)
    waiter = WaitSet(participant)
    waiter.attach(ReadCondition(reader, SampleState.Any | ViewState.Any | InstanceState.Any))
    link.meet()

    def receive() -> list[Any]:
        waiter.wait(duration(seconds=run.quiet_s))
        samples: list[Any] = reader.take(N=TAKE)
        return samples

    yield Receiver(receive=receive, lists=True, payload=attrgetter("data"))


def _confirm(writer: Any) -> None:
    writer.wait_for_acks(duration(seconds=60))


def _domain(run: Run) -> int:
    """A domain for this run, so that two benchmarks on a machine do not meet."""
    return crc32(run.directory.encode()) % 200


ENTRIES = [
    Entry(
        workloads=("throughput", "fanout", "latency"),
        peer="Cyclone DDS, reliable",
        roles={"sender": sending(write), "receiver": receiving(take)},
        messages_max=40_000,
    )
]
