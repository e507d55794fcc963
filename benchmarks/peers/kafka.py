"""Kafka through librdkafka (confluent-kafka). `KAFKA_BOOTSTRAP=host:port` names a real broker, with a topic `benchmark`
of one partition that may be filled; otherwise librdkafka's own mock broker runs inside the producer: no disk, no copy.

The producer's queue is large and batches for 5 ms; the consumer takes lists of up to 10,000 messages.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition

from benchmarks.drive import Receiver, Sender, receiving, sending
from benchmarks.model import Entry, Link, Run

__all__ = ["ENTRIES", "consume", "produce"]

BROKER = os.environ.get("KAFKA_BOOTSTRAP", "")
TOPIC = "benchmark"
TAKE = 10_000
PRODUCER = {"queue.buffering.max.messages": 2_000_000, "queue.buffering.max.kbytes": 1_000_000, "linger.ms": 5}


@contextmanager
def produce(run: Run, link: Link) -> Iterator[Sender]:
    """Produce; flush waits for every confirmation."""
    where = {"bootstrap.servers": BROKER} if BROKER else {"test.mock.num.brokers": 1, "bootstrap.servers": "mock"}
    producer = Producer({**PRODUCER, **where})
    brokers = producer.list_topics(TOPIC, timeout=10).brokers.values()
    if "receiver" in link.meet(",".join(f"{broker.host}:{broker.port}" for broker in brokers)):
        link.meet()
    yield Sender(sends=[partial(producer.produce, TOPIC, partition=0)], flush=lambda: producer.flush(60))


@contextmanager
def consume(run: Run, link: Link) -> Iterator[Receiver]:
    """Consume lists of messages."""
    where = link.meet()["sender"]
    consumer: Any = Consumer(
        {"bootstrap.servers": where, "group.id": uuid.uuid4().hex, "enable.auto.commit": False, "fetch.wait.max.ms": 10}
    )
    consumer.assign([TopicPartition(TOPIC, 0, OFFSET_END)])
    while not consumer.position([TopicPartition(TOPIC, 0)]):
        consumer.poll(0.1)
    consumer.poll(0.5)
    link.meet()
    yield Receiver(receive=lambda: consumer.consume(TAKE, timeout=run.quiet_s), lists=True)
    consumer.close()


NAME = "Kafka" if BROKER else "Kafka, mock broker"

ENTRIES = [
    Entry(
        workloads=("throughput",),
        peer=NAME,
        roles={"sender": sending(produce), "receiver": receiving(consume)},
        messages_max=200_000,
    ),
    Entry(
        workloads=("durable",) if BROKER else (),
        peer=NAME,
        roles={"sender": sending(produce)},
        messages_max=200_000,
    ),
]
