"""What the demo proves in the end: who was found how fast, and what became of every message."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import msgspec

from .control import Matched, Report
from .measure import Histogram
from .part import PARTS, RECEIVERS

__all__ = ["Pair", "Summary", "TopicBooks", "render", "summarise"]


class Pair(msgspec.Struct, frozen=True):
    """How long two nodes took to see each other, from when the later one began to open."""

    a: str
    b: str
    ms: float


class TopicBooks(msgspec.Struct, frozen=True):
    """What became of one topic's messages."""

    topic: str
    sent: int
    received: dict[str, int]
    "By receiver; who does not subscribe to the topic is not listed."

    @property
    def lost(self) -> int:
        """Messages short, over all receivers."""
        return sum(max(0, self.sent - count) for count in self.received.values())


class Latency(msgspec.Struct, frozen=True):
    """From just before `publish` to the subscriber's code."""

    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, histogram: Histogram) -> Latency:
        """The figures of a histogram."""
        p50, p99 = (round(histogram.percentile_ms(percent), 3) for percent in (50, 99))
        return cls(p50, p99, round(histogram.max_ns / 1e6, 3))


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The whole run; `ok` only if all processes were found and nothing was lost."""

    ok: bool
    host: str
    fabric: str
    discovery: str
    seconds: float
    processes: int
    "Processes that were started."
    found: int
    "Processes that saw all others, and were seen by all others."
    all_matched_ms: float | None
    "From when the last node began to open, until every publisher had every subscriber; None if never."
    pairs: list[Pair]
    sent: int
    received: int
    lost: int
    "Messages that did not reach a receiver, by the publishers' counts or by `Gap` events, whichever is more."
    gaps: int
    "Messages that `Gap` events told about."
    repeated: int
    skipped: int
    "Readings that were never made, because the machine was too busy at the time."
    sent_per_s: float
    received_per_s: float
    latency_ms: Latency
    receivers: dict[str, Latency]
    topics: list[TopicBooks]
    alarms: int
    "Alarms raised."
    recorded_lines: int
    recorded_bytes: int
    recording: str | None
    "The recorder's file, if it was kept."
    problems: list[str]


def summarise(
    matched: Mapping[str, Matched], reports: Mapping[str, Report], *, problems: list[str], **about: Any
) -> Summary:
    """Balance the books of all parts. `about` are the fields that the demo itself knows."""
    pairs, found = _discovery(matched)
    topics = _topics(reports)
    latency = Histogram()
    for report in reports.values():
        latency.merge(report.latency)
    gaps = sum(report.gaps for report in reports.values())
    lost = max(gaps, sum(topic.lost for topic in topics))
    sent = sum(topic.sent for topic in topics)
    received = sum(sum(topic.received.values()) for topic in topics)
    repeated = sum(report.repeated for report in reports.values())
    complete = found == len(PARTS) and not any(part.waits_for for part in matched.values())
    troubles = problems + [f"{name}: {text}" for name, report in reports.items() for text in report.problems]
    recorder = reports.get("recorder", Report())
    per_s = 1 / max(about["seconds"], 1e-9)
    return Summary(
        ok=complete and len(reports) == len(PARTS) and sent > 0 and not lost and not repeated and not troubles,
        processes=len(PARTS),
        found=found,
        all_matched_ms=_ms(max(m.matched_at for m in matched.values()) - _last_opened(matched)) if complete else None,
        pairs=pairs,
        sent=sent,
        received=received,
        lost=lost,
        gaps=gaps,
        repeated=repeated,
        skipped=sum(report.skipped for report in reports.values()),
        sent_per_s=round(sent * per_s, 1),
        received_per_s=round(received * per_s, 1),
        latency_ms=Latency.of(latency),
        receivers={name: Latency.of(reports[name].latency) for name in RECEIVERS if name in reports},
        topics=topics,
        alarms=sum(report.alarms for report in reports.values()),
        recorded_lines=recorder.recorded_lines,
        recorded_bytes=recorder.recorded_bytes,
        problems=troubles,
        **about,
    )


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1000, 1)


def _last_opened(matched: Mapping[str, Matched]) -> float:
    return max(part.opened_at for part in matched.values())


def _discovery(matched: Mapping[str, Matched]) -> tuple[list[Pair], int]:
    """The pairs that see each other, and how many parts are in a pair with every other part."""
    pairs = []
    partners = dict.fromkeys(PARTS, 0)
    for a, b in combinations(PARTS, 2):
        if a in matched and b in matched and b in matched[a].peers and a in matched[b].peers:
            seen_at = max(matched[a].peers[b], matched[b].peers[a])
            pairs.append(Pair(a, b, _ms(seen_at - max(matched[a].opened_at, matched[b].opened_at))))
            partners[a] += 1
            partners[b] += 1
    return pairs, sum(count == len(PARTS) - 1 for count in partners.values())


def _topics(reports: Mapping[str, Report]) -> list[TopicBooks]:
    books = []
    for publisher, report in sorted(reports.items(), key=lambda item: PARTS.index(item[0])):
        listeners = [name for name in RECEIVERS if name != publisher and name in reports]
        for topic, sent in report.published.items():
            books.append(TopicBooks(topic, sent, {name: reports[name].received.get(topic, 0) for name in listeners}))
    return books


def render(summary: Summary) -> str:
    """The summary for people."""
    lines = [
        "",
        f"zfabric telemetry of {summary.host}, fabric {summary.fabric}, {summary.seconds:.1f} s",
        "",
        f"  found     {summary.found} of {summary.processes} processes{_discovery_text(summary)}",
    ]
    if summary.sent:
        lines += [*_traffic_text(summary), "", *_topics_text(summary)]
    lines += ["", *(f"  problem: {problem}" for problem in summary.problems), _verdict(summary)]
    return "\n".join(lines)


def _traffic_text(summary: Summary) -> list[str]:
    latency = summary.latency_ms
    where = f"in {summary.recording}" if summary.recording else "(keep them with --record FILE)"
    lines = [
        f"  sent      {summary.sent:,} messages ({summary.sent_per_s:,.0f} per second)",
        f"  received  {summary.received:,} messages ({summary.received_per_s:,.0f} per second)",
        f"  lost      {summary.lost:,}",
        f"  latency   p50 {latency.p50:.2f} ms, p99 {latency.p99:.2f} ms, slowest {latency.max:.2f} ms",
        f"  alarms    {summary.alarms:,} raised",
        f"  recorded  {summary.recorded_lines:,} JSON lines, {summary.recorded_bytes / 1e6:.1f} MB {where}",
    ]
    if summary.repeated:
        lines.append(f"  repeated  {summary.repeated:,}")
    if summary.skipped:
        lines.append(f"  skipped   {summary.skipped:,} readings were not made: this machine was too busy")
    return lines


def _discovery_text(summary: Summary) -> str:
    if summary.all_matched_ms is None or not summary.pairs:
        return ""
    times = sorted(pair.ms for pair in summary.pairs)
    return (
        f", all wired {summary.all_matched_ms:,.0f} ms after the last one started\n"
        f"            {len(times)} pairs met by {_WAYS[summary.discovery]}: "
        f"median {times[len(times) // 2]:,.0f} ms, slowest {times[-1]:,.0f} ms"
    )


_WAYS = {"mdns": "mDNS", "registry": "the same-host registry", "all": "mDNS or the same-host registry"}


def _topics_text(summary: Summary) -> list[str]:
    width = max([len(topic.topic) for topic in summary.topics] + [5])
    header = f"  {'topic':<{width}} {'sent':>9}" + "".join(f" {name:>9}" for name in RECEIVERS)
    lines = [header, "  " + "─" * (len(header) - 2)]
    for topic in summary.topics:
        cells = [f"{topic.received[name]:,}" if name in topic.received else "·" for name in RECEIVERS]
        lines.append(f"  {topic.topic:<{width}} {topic.sent:>9,}" + "".join(f" {cell:>9}" for cell in cells))
    p99 = [f"{summary.receivers[name].p99:.2f} ms" if name in summary.receivers else "·" for name in RECEIVERS]
    lines.append(f"  {'p99 latency':<{width}} {'':>9}" + "".join(f" {cell:>9}" for cell in p99))
    return lines


def _verdict(summary: Summary) -> str:
    if summary.ok:
        return "Every process was found, and every message arrived everywhere."
    if summary.found < summary.processes:
        cure = " If mDNS is blocked here, try --discovery all." if summary.discovery == "mdns" else ""
        return f"FAILED: only {summary.found} of {summary.processes} processes were found by all others.{cure}"
    if summary.lost:
        return f"FAILED: {summary.lost:,} messages were lost."
    return "FAILED: see the problems above."
