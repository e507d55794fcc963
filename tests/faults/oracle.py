"""Judges the histories of a run: what was confirmed, what arrived, and whether every hole was announced.

An operation is ok, failed or unknown, and unknown never counts as loss or success. Streams are (producer,
incarnation, topic); subscribers are judged by name, over all their incarnations.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from zfabric.wire.ranges import RangeSet

__all__ = ["Stream", "Verdict", "judge", "read"]

Stream = tuple[str, int, str]
Line = dict[str, Any]
Span = tuple[int, int]


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
    absent: RangeSet = field(default_factory=RangeSet)
    "Best-effort messages between two incarnations: nobody was there to be told."
    first: int | None = None


@dataclass
class Sent:
    """What publishers did."""

    names: dict[str, tuple[str, int]] = field(default_factory=dict)
    "(name, incarnation) of each node id."
    tried: dict[Stream, int] = field(default_factory=dict)
    "The newest message of each stream that `publish` was called with."
    confirmed: dict[Stream, int] = field(default_factory=dict)
    "The newest one that `flush` confirmed."
    mode: dict[Stream, str] = field(default_factory=dict)
    "What each stream promises."


@dataclass
class Verdict:
    """The outcome of a run."""

    delivered: Counter[str] = field(default_factory=Counter)
    "Messages by delivery mode, each counted once for each subscriber."
    duplicates: Counter[str] = field(default_factory=Counter)
    announced: Counter[str] = field(default_factory=Counter)
    "Messages that Gap events told of, by mode."
    given_up: Counter[Stream] = field(default_factory=Counter)
    "The same by stream, reliable ones only."
    lost: dict[tuple[str, Stream], list[Span]] = field(default_factory=dict)
    "Confirmed, and never delivered to that subscriber: half-open ranges."
    silent: dict[tuple[str, Stream], list[Span]] = field(default_factory=dict)
    "Holes that no event announced."
    invented: list[str] = field(default_factory=list)
    disordered: int = 0

    def check(self, *, duplicates: bool = False, gaps: bool = False) -> Verdict:
        """Assert that every promise was kept.

        `duplicates`: a subscriber crashed and came back, so reliable streams may repeat what it had not processed.
        `gaps`: reliable streams may have announced holes, because somebody was away for too long or died.
        """
        assert not self.invented, f"delivered what was never sent: {self.invented[:3]}"
        assert not self.lost, f"confirmed and lost: {self.lost}"
        assert not self.silent, f"missing without a word: {self.silent}"
        assert not self.disordered, f"{self.disordered} times out of order"
        assert not self.duplicates["at-most-once"], f"came twice: {self.duplicates}"
        assert duplicates or not self.duplicates.total(), f"came twice: {self.duplicates}"
        assert gaps or not self.announced - Counter({"at-most-once": self.announced["at-most-once"]}), self.announced
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
    sent = _sent(histories)
    seen: dict[str, dict[Stream, Seen]] = defaultdict(lambda: defaultdict(Seen))
    verdict = Verdict()
    for lines in histories:
        if lines[0].get("role") == "subscribe":
            _follow(lines, seen[lines[0]["name"]], sent, verdict)
    for name, streams in seen.items():
        for stream, tried in sent.tried.items():
            got, last = streams[stream], sent.confirmed.get(stream, -1)
            begin = 0 if from_start else (got.first if got.first is not None else tried + 1)
            missing = list(got.had.missing(begin, last + 1))
            if missing and name not in set(excused):
                verdict.lost[name, stream] = missing
            end = max(max((span[1] for span in got.had), default=0), tried + 1 if to_end else 0)
            known = RangeSet([*got.had, *got.announced, *got.absent])
            holes = list(known.missing(begin, end))
            if holes:
                verdict.silent[name, stream] = holes
    return verdict


def _sent(histories: list[list[Line]]) -> Sent:
    sent = Sent()
    for lines in histories:
        opened = lines[0]
        if opened.get("role") != "publish":
            continue
        name, incarnation = who = opened["name"], opened["incarnation"]
        sent.names[opened["opened"]] = who
        sent.mode |= {(name, incarnation, topic): mode for topic, mode in opened["streams"].items()}
        for line in lines:
            for kind, into in (("tried", sent.tried), ("ok", sent.confirmed)):
                if kind in line:
                    topic, last = line[kind]
                    into[name, incarnation, topic] = last
    return sent


def _follow(lines: list[Line], seen: dict[Stream, Seen], sent: Sent, verdict: Verdict) -> None:
    """Take in one incarnation of a subscriber."""
    position: dict[Stream, int] = {}
    for line in lines:
        if "damaged" in line:
            verdict.invented.append(f"{line['topic']}#{line['seq']}: {line['damaged']}")
        elif "got" in line:
            name, incarnation, topic, first, last = line["got"]
            stream = name, incarnation, topic
            if last > sent.tried.get(stream, -1):
                verdict.invented.append(f"{stream}: {first} to {last}")
                continue
            one, mode = seen[stream], sent.mode[stream]
            before = list(one.had)[-1][1] if one.had else 0
            if mode == "at-most-once" and stream not in position and lines[0]["incarnation"] and before < first:
                one.absent.add(before, first)
            new = sum(stop - start for start, stop in one.had.missing(first, last + 1))
            one.had.add(first, last + 1)
            one.first = first if one.first is None else one.first
            verdict.delivered[mode] += new
            verdict.duplicates[mode] += last - first + 1 - new
            verdict.disordered += first <= position.get(stream, -1)
            position[stream] = last
        elif line.get("event") == "Gap" and line["source"]["id"] in sent.names:
            stream = (*sent.names[line["source"]["id"]], line["topic"])
            seen[stream].announced.add(line["first"], line["last"] + 1)
            count = line["last"] - line["first"] + 1
            verdict.announced[sent.mode[stream]] += count
            if sent.mode[stream] != "at-most-once":
                verdict.given_up[stream] += count
