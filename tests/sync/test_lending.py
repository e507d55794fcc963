"""Shared memory and blocking nodes: values are encoded in threads, memory belongs to the loop."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from tests.waiting import wait_until
from zfabric import Config
from zfabric.sync import Node

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sealed files are Linux'")


def test_threads_publish_large_arrays_and_loans() -> None:
    """Several threads at once, arrays of their own and on loan: each arrives whole."""
    config = Config(mdns=False)
    with Node("one", config=config) as one, Node("two", config=config) as two:
        publisher, subscription = one.publisher("t", delivery="at-least-once"), two.subscribe("t")
        publisher.wait_for(timeout=30)

        def publish(first: int) -> None:
            for number in range(first, first + 20):
                array = publisher.loan(100_000, np.int32) if number % 2 else np.empty(100_000, np.int32)
                array[:] = number
                publisher.publish(array)

        threads = [threading.Thread(target=publish, args=(100 * number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        numbers = []
        for _ in range(60):
            value = subscription.receive(timeout=30).value
            assert (value == value[0]).all()
            numbers.append(int(value[0]))
        for thread in threads:
            thread.join()

        assert sorted(numbers) == [*range(20), *range(100, 120), *range(200, 220)]
        wait_until(lambda: one.statistics().buffers_lent == 60)
