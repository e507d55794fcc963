"""The pieces of the telemetry demo, without processes and without waiting."""

from __future__ import annotations

import sys
from itertools import combinations
from typing import Any

import pytest
from zfabric.examples.telemetry import main
from zfabric.examples.telemetry.alarm import Hysteresis, Threshold, Watchdog
from zfabric.examples.telemetry.control import Matched, Report
from zfabric.examples.telemetry.measure import Histogram, Intake
from zfabric.examples.telemetry.pacing import Pace
from zfabric.examples.telemetry.part import PARTS, RECEIVERS
from zfabric.examples.telemetry.readings import READINGS, Alarm, Cpu, Disk, Memory, host_word, topic_of
from zfabric.examples.telemetry.sources import SAMPLERS, Window
from zfabric.examples.telemetry.summary import Summary, render, summarise
from zfabric.examples.telemetry.table import bar, describe, human_bytes

import zfabric

# -- pacing --------------------------------------------------------------------------------------


def test_pace_keeps_its_schedule() -> None:
    """Slots are due at start + n / rate, and each is given once."""
    pace = Pace(10, start_s=100.0)

    assert [pace.due(now) for now in (100.0, 100.05, 100.1, 100.1, 100.2)] == [1, 0, 1, 0, 1]
    assert pace.next_s == pytest.approx(100.3)


def test_pace_does_not_drift() -> None:
    """Who always wakes a little late still gets every slot: lateness does not add up."""
    pace = Pace(1000, start_s=0.0)
    now, given = 0.0, 0
    while now < 10.0:
        given += pace.due(now)
        now = pace.next_s + 0.0007

    assert given in (9999, 10_000)
    assert pace.skipped == 0


def test_pace_skips_what_is_too_late() -> None:
    """After a long pause only `catch_up_s` of slots are given at once, and the others are counted."""
    pace = Pace(1000, start_s=0.0, catch_up_s=0.05)

    assert pace.due(1.0) == 50
    assert pace.skipped == 951
    assert pace.due(1.0005) == 0
    assert pace.due(1.001) == 1


def test_slow_pace_gives_one_slot_at_once() -> None:
    """A slow source is never asked for two samples at the same time."""
    pace = Pace(10, start_s=0.0)

    assert pace.due(0.95) == 1
    assert pace.skipped == 9


def test_pace_needs_a_rate() -> None:
    """A rate of 0 is refused."""
    with pytest.raises(ValueError, match="above 0"):
        Pace(0, start_s=0.0)


# -- alarms --------------------------------------------------------------------------------------


def test_alarm_has_hysteresis() -> None:
    """An alarm is raised once at the upper value, and cleared once below the lower one: no flutter in between."""
    state = Hysteresis(Threshold(raise_at=75, clear_below=50))

    values = [10, 74.9, 75, 90, 74, 50, 76, 49.9, 60, 74, 75]
    changes = [(value, state.raised) for value in values if state.update(value)]

    assert changes == [(75, True), (49.9, False), (75, True)]


def test_threshold_needs_a_band() -> None:
    """Without a band between its two values an alarm would flutter."""
    with pytest.raises(ValueError, match="must be under"):
        Threshold(raise_at=50, clear_below=50)


def test_watchdog_keeps_metrics_apart() -> None:
    """Each core has a state of its own; other metrics have their own thresholds."""
    watchdog = Watchdog()

    def changes(reading: Any) -> list[tuple[str, float, bool]]:
        return [(metric, value, state.raised) for metric, value, state in watchdog.check(reading)]

    assert changes(Cpu(cores=(80.0, 10.0), load=1.0, sent_ns=0)) == [("cpu.0", 80.0, True)]
    assert changes(Cpu(cores=(80.0, 99.0), load=1.0, sent_ns=0)) == [("cpu.1", 99.0, True)]
    assert changes(Cpu(cores=(20.0, 60.0), load=1.0, sent_ns=0)) == [("cpu.0", 20.0, False)]
    memory = Memory(total_bytes=1, available_bytes=0, used_percent=91.0, swap_percent=1.0, sent_ns=0)
    assert changes(memory) == [("memory", 91.0, True)]
    disk = Disk(read_bytes_per_s=0, written_bytes_per_s=0, used_percent=94.0, sent_ns=0)
    assert changes(disk) == []


# -- measuring -----------------------------------------------------------------------------------


def test_histogram_percentiles() -> None:
    """Percentiles are right within the width of a bucket, and never above the greatest value."""
    histogram = Histogram({})
    for microseconds in range(1, 1001):
        histogram.add(microseconds * 1000)

    assert histogram.count == 1000
    assert histogram.percentile_ms(50) == pytest.approx(0.5, rel=0.04)
    assert histogram.percentile_ms(99) == pytest.approx(0.99, rel=0.04)
    assert histogram.percentile_ms(100) == 1.0


@pytest.mark.parametrize("duration_ns", [0, 1, 63, 64, 65, 127, 128, 1000, 123_456_789, 10**12])
def test_histogram_of_one(duration_ns: int) -> None:
    """A single duration is every percentile of itself."""
    histogram = Histogram({})
    histogram.add(duration_ns)

    assert histogram.percentile_ms(50) == duration_ns / 1e6


def test_histograms_merge() -> None:
    """Two halves merged are the whole."""
    whole, half, other = Histogram({}), Histogram({}), Histogram({})
    for value in range(0, 10_000, 7):
        whole.add(value)
        (half if value % 2 else other).add(value)
    half.merge(other)

    assert half == whole
    assert Histogram({}).percentile_ms(99) == 0.0


def message(seq: int, topic: str = "telemetry.vm.cpu", source: str = "a") -> zfabric.Message:
    """A message as the intake sees it."""
    return zfabric.Message(value=None, seq=seq, topic=topic, timestamp=0.0, source=zfabric.Source(source, "cpu"))


async def test_intake_sees_holes_and_doubles() -> None:
    """Numbers that are jumped over count as missing, and numbers that come again as repeated, by stream."""
    intake = Intake()
    for seq in (0, 1, 4, 4, 5):
        intake.note(message(seq), sent_ns=0)
    intake.note(message(0, topic="telemetry.vm.disk"), sent_ns=0)

    assert intake.received == {"telemetry.vm.cpu": 5, "telemetry.vm.disk": 1}
    assert (intake.missing, intake.repeated) == (2, 1)


@pytest.mark.parametrize(("from_first", "missing"), [(True, 7), (False, 0)])
async def test_intake_and_late_joining(from_first: bool, missing: int) -> None:
    """Who joined late on purpose missed nothing; who was there from the first message did."""
    intake = Intake(from_first=from_first)
    intake.note(message(7), sent_ns=0)
    intake.note(message(8), sent_ns=0)

    assert intake.missing == missing


async def test_drain_gives_up_when_nothing_comes() -> None:
    """`drain` returns at once when all is there, and says so when the rest does not come."""
    intake = Intake()
    intake.note(message(0), sent_ns=0)

    assert await intake.drain({"telemetry.vm.cpu": 1})
    assert not await intake.drain({"telemetry.vm.cpu": 2}, patience_s=0.01)


# -- readings and samples ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(READINGS))
def test_samplers_read_this_machine(kind: str) -> None:
    """Every source makes readings of its own type, with the time they were made."""
    sample = SAMPLERS[kind]()

    first, second = sample(), sample()

    assert type(first) is type(second) is READINGS[kind]
    assert 0 < first.sent_ns <= second.sent_ns
    assert describe(second)


def test_cpu_percentages_are_percentages() -> None:
    """Each core has one value from 0 to 100."""
    sample = SAMPLERS["cpu"]()
    sample()

    reading = sample()

    assert isinstance(reading, Cpu)
    assert reading.cores
    assert all(0 <= percent <= 100 for percent in reading.cores)


def test_window_slides() -> None:
    """The oldest sample that is kept is about as old as the window, and never the newest."""
    window = Window(0.5)

    turns = [window.turn(now, now) for now in (0.0, 0.2, 0.4, 0.6, 0.8, 5.0)]

    assert [oldest for _, oldest in turns] == [0.0, 0.0, 0.0, 0.0, 0.2, 0.8]
    assert turns[0][0] > 0


@pytest.mark.parametrize(
    ("hostname", "word"),
    [("vm", "vm"), ("build-7.example.com", "build-7"), ("Jo's Mac.local", "Jo-s-Mac"), ("", "host"), ("...", "host")],
)
def test_host_becomes_a_word(hostname: str, word: str) -> None:
    """Any host name gives a word that a topic may hold."""
    assert host_word(hostname) == word
    assert topic_of("cpu", word).name == f"telemetry.{word}.cpu"


def test_table_texts() -> None:
    """Numbers are shown in units that suit them."""
    assert [human_bytes(n) for n in (0, 999, 1000, 25_300_000_000, 5e15)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "25.3 GB",
        "5000.0 TB",
    ]
    assert (bar(0, 4), bar(50, 4), bar(150, 4)) == ("░░░░", "██░░", "████")
    alarm = Alarm(metric="cpu.0", state="raised", value=80.0, threshold=75.0, sent_ns=0)
    assert describe(alarm) == "cpu.0 raised: 80 % ≥ 75 %"
    assert describe(Cpu(cores=(1.0,) * 6, load=0.0, sent_ns=0)).endswith("and 2 more")


# -- the summary ---------------------------------------------------------------------------------


def balanced(*, table_received: int = 10, gaps: int = 0, absent: str = "") -> Summary:
    """The summary of a run of ten readings per source, with one thing wrong at will."""
    parts = [name for name in PARTS if name != absent]
    matched = {
        name: Matched(opened_at=100.0 + n, matched_at=110.0, peers={other: 109.0 for other in parts if other != name})
        for n, name in enumerate(parts)
    }
    published = {kind: {f"telemetry.vm.{kind}": 10} for kind in READINGS if kind != absent}
    reports = {name: Report(published=published.get(name, {})) for name in parts}
    for name in RECEIVERS:
        if name != absent:
            reports[name].received = {topic: 10 for topics in published.values() for topic in topics}
    reports["table"].received["telemetry.vm.cpu"] = table_received
    reports["table"].gaps = gaps
    about = {"host": "vm", "fabric": "x", "discovery": "mdns", "seconds": 2.0, "recording": None}
    return summarise(matched, reports, problems=[], **about)


def test_summary_of_a_good_run() -> None:
    """When all books agree the run is ok, and discovery counts from the later node of a pair."""
    summary = balanced()

    assert summary.ok
    assert (summary.sent, summary.received, summary.lost) == (50, 150, 0)
    assert summary.found == summary.processes == 8
    assert [(pair.a, pair.b) for pair in summary.pairs] == list(combinations(PARTS, 2))
    assert (summary.pairs[0].ms, summary.pairs[-1].ms, summary.all_matched_ms) == (8000.0, 2000.0, 3000.0)
    assert (summary.sent_per_s, summary.received_per_s) == (25.0, 75.0)
    assert "every message arrived everywhere" in render(summary)


def test_summary_counts_what_is_short() -> None:
    """A message that one receiver did not get is lost, and the run has failed."""
    summary = balanced(table_received=7)

    assert not summary.ok
    assert summary.lost == 3
    assert "FAILED: 3 messages were lost" in render(summary)


def test_summary_believes_gap_events() -> None:
    """What a node reported as a gap is lost, even if the counts happen to agree."""
    summary = balanced(gaps=2)

    assert not summary.ok
    assert (summary.lost, summary.gaps) == (2, 2)


def test_summary_without_one_part() -> None:
    """When one process was never found, nobody has found all others."""
    summary = balanced(absent="disk")

    assert not summary.ok
    assert summary.found == 0
    assert summary.all_matched_ms is None
    assert "FAILED: only 0 of 8" in render(summary)


# -- the command line ----------------------------------------------------------------------------


def test_missing_psutil_names_the_cure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without psutil the demo says what to install, and fails."""
    monkeypatch.setitem(sys.modules, "psutil", None)

    assert main(["--seconds", "1"]) == 1
    assert "pip install 'zfabric[demo]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["--seconds", "0"], ["--seconds", "nan"], ["--rate", "cpu=0"], ["--rate", "gpu=10"], ["--rate", "cpu=x"], ["gpu"]],
)
def test_nonsense_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong arguments are usage errors that say what would be right."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err
