"""Percentiles of latencies, from a high dynamic range histogram."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence

from hdrh.histogram import HdrHistogram

__all__ = ["percentiles_us"]

LONGEST_US = 60_000_000


def percentiles_us(latencies: bytes, wanted: Sequence[float]) -> list[float]:
    """Microseconds at each of the wanted percentiles; `latencies` are seconds, packed as doubles.

    Three significant digits, from 0.1 us on. 100 is the longest.
    """
    histogram = HdrHistogram(1, LONGEST_US * 10, 3)
    seconds = array("d")
    seconds.frombytes(latencies)
    for tenths, count in Counter(max(1, round(each * 1e7)) for each in seconds).items():
        histogram.record_value(min(tenths, LONGEST_US * 10), count)
    return [histogram.get_value_at_percentile(each) / 10 for each in wanted]
