"""Judges the histories of a run: what was confirmed, what arrived, and whether every hole was announced.

An operation is ok, failed or unknown, and unknown never counts as loss or success. Streams are (producer,
incarnation, topic); subscribers are judged by name, over all their incarnations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from zfabric.wire.ranges import RangeSet

__all__ = ["Stream", "Verdict", "judge", "read"]

Stream = tuple[str, int, str]
Line = dict[str, Any]


def read(path: Path) -> list[Line]:
    """The lines of a history; a last one that a killed process could not finish is left out."""
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    return [msgspec.json.decode(line) for line in whole.splitlines()]


@dataclass
class Seen:
    """What one subscriber saw of one stream."""

    had: RangeSet = field(default_factory=RangeSet)
    announced: RangeSet = field(default_factory=RangeSet)
    messages: int = 0
    duplicates: int = 0
    disordered: int = 0
    first: int | None = None


@dataclass
class Verdict:
    """The outcome; everything but `duplicates` and `delivered` has to be empty after a good run."""

    delivered: int = 0
    duplicates: int = 0
    announced: int = 0
    "Messages that Gap events told of."
    lost: dict[tuple[str, Stream], list[tuple[int, int]]] = field(default_factory=dict)
    "Confirmed, and never delivered to that subscriber: half-open ranges."
    silent: dict[tuple[str, Stream], list[tuple[int, int]]] = field(default_factory=dict)
    "Holes that no event announced."
    invented: list[str] = field(default_factory=list)
    disordered: int = 0

    def check(self, *, duplicates: bool = False, gaps: bool = False) -> Verdict:
        """Assert that all was well; `duplicates` and `gaps` say what the run allows."""
        assert not self.invented, f"delivered what was never sent: {self.invented[:3]}"
        assert not self.lost, f"confirmed and lost: {self.lost}"
        assert not self.silent, f"missing without a word: {self.silent}"
        assert not self.disordered, f"{self.disordered} messages out of order"
        assert duplicates or not self.duplicates, f"{self.duplicates} messages came twice"
        assert gaps or not self.announced, f"{self.announced} messages were given up"
        return self


def judge(
    histories: Iterable[list[Line]],
    *,
    from_start: bool = True,
    excused: Iterable[str] = (),
    to_end: bool = False,
) -> Verdict:
    """Compare what publishers tried and had confirmed with what subscribers got.

    `from_start`: every subscriber was in place before the first message. `excused` subscribers need not have
    what was confirmed (they were given up); their holes must still be announced. `to_end`: whatever was tried must
    have been delivered or announced, confirmed or not.
    """
    histories = [lines for lines in histories if lines]
    producers, tried, confirmed = _sent(histories)
    seen: dict[str, dict[Stream, Seen]] = defaultdict(lambda: defaultdict(Seen))
    verdict = Verdict()
    for lines in histories:
        if lines[0].get("role") == "subscribe":
            _follow(lines, seen[lines[0]["name"]], producers, tried, verdict)
    for name, per_stream in seen.items():
        for stream, last in confirmed.items():
            got = per_stream[stream]
            begin = 0 if from_start else (got.first if got.first is not None else last + 1)
            missing = list(got.had.missing(begin, last + 1))
            if missing and name not in set(excused):
                verdict.lost[name, stream] = missing
            end = max(max((span[1] for span in got.had), default=0), tried[stream] + 1 if to_end else 0)
            holes = [hole for span in got.had.missing(begin, end) for hole in got.announced.missing(*span)]
            if holes:
                verdict.silent[name, stream] = holes
    return verdict


def _sent(histories: list[list[Line]]) -> tuple[dict[str, tuple[str, int]], dict[Stream, int], dict[Stream, int]]:
    producers: dict[str, tuple[str, int]] = {}
    tried: dict[Stream, int] = {}
    confirmed: dict[Stream, int] = {}
    for lines in histories:
        opened = lines[0]
        if opened.get("role") != "publish":
            continue
        producers[opened["opened"]] = opened["name"], opened["incarnation"]
        for line in lines:
            for kind, into in (("tried", tried), ("ok", confirmed)):
                if kind in line:
                    topic, last = line[kind]
                    into[opened["name"], opened["incarnation"], topic] = last
    return producers, tried, {stream: confirmed.get(stream, -1) for stream in tried}


def _follow(
    lines: list[Line],
    seen: dict[Stream, Seen],
    producers: dict[str, tuple[str, int]],
    tried: dict[Stream, int],
    verdict: Verdict,
) -> None:
    """Take in one incarnation of a subscriber."""
    position: dict[Stream, int] = {}
    for line in lines:
        if "damaged" in line:
            verdict.invented.append(f"{line['topic']}#{line['seq']}: {line['damaged']}")
        elif "got" in line:
            name, incarnation, topic, first, last = line["got"]
            stream = name, incarnation, topic
            if last > tried.get(stream, -1):
                verdict.invented.append(f"{stream}: {first} to {last}")
                continue
            one = seen[stream]
            count = last - first + 1
            new = sum(stop - start for start, stop in one.had.missing(first, last + 1))
            one.had.add(first, last + 1)
            one.first = first if one.first is None else one.first
            verdict.delivered += new
            verdict.duplicates += count - new
            verdict.disordered += first <= position.get(stream, -1)
            position[stream] = last
        elif line.get("event") == "Gap":
            producer = producers.get(line["source"]["id"])
            if producer is not None:
                seen[*producer, line["topic"]].announced.add(line["first"], line["last"] + 1)
                verdict.announced += line["last"] - line["first"] + 1
