"""Which ticks schedules have, and what is due: time is a number here."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from zfabric import Config, LimitExceeded, NotStored
from zfabric.store.log import Position
from zfabric.store.schedules import LATE_S, Schedules
from zfabric.store.ticks import Ticks
from zfabric.wire.durable_records import Declaration, ScheduleState

BERLIN = ZoneInfo("Europe/Berlin")
START = 1_000_000


def at(text: str, *, fold: int = 0) -> int:
    """A time of Berlin as a tick."""
    return int(datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=fold).timestamp())


def declared(**changes: Any) -> bytes:
    """A declaration, encoded."""
    options: dict[str, Any] = {"queue": "reports", "value": b"\xc0", "every_s": 10, **changes}
    return msgspec.msgpack.encode(Declaration(**options))


def declare(schedules: Schedules, now: float, name: str = "s", **changes: Any) -> None:
    """Declare a schedule, and store it."""
    due = schedules.declare(name, declared(**changes), now)
    assert due is not None
    schedules.put(name, due.state)


def made(schedules: Schedules, now: float) -> list[int]:
    """The ticks of all jobs that are due, each written."""
    ticks = []
    while due := list(schedules.due(now)):
        for each in due:
            schedules.done(each)
            ticks += [] if each.tick is None else [each.tick]
    return ticks


def restarted(schedules: Schedules, now: float) -> Schedules:
    """The same from its rows."""
    rows = {"$schedule/s": Position(msgspec.msgpack.encode(schedules.get("s")), 0)}
    return Schedules(rows, Config(), now)


def test_ticks_of_an_interval_are_its_multiples() -> None:
    """Whoever computes them, and whenever, they are the same."""
    ticks = Ticks("", 3600, "UTC")

    assert [ticks.after(0), ticks.after(3599), ticks.after(3600)] == [3600, 3600, 7200]
    assert ticks.last(0, 10**9 + 5) == 10**9 // 3600 * 3600
    assert ticks.last(7200, 7300) == 7200


def test_ticks_of_an_expression_are_in_its_time_zone() -> None:
    """Three in the morning is another time of UTC in summer."""
    ticks = Ticks("0 3 * * *", 0, "Europe/Berlin")

    assert ticks.after(at("2026-01-10 02:00")) == at("2026-01-10 03:00")
    assert ticks.after(at("2026-01-10 03:00")) == at("2026-01-11 03:00")
    assert at("2026-07-11 03:00") - ticks.last(0, at("2026-07-10 12:00")) == 86_400
    assert Ticks("*/2 * * * * *", 0, "UTC").after(1_000_001) == 1_000_002


def test_a_time_that_does_not_exist_is_the_first_after_it() -> None:
    """02:30 on the day on which clocks jump from 02:00 to 03:00."""
    ticks = Ticks("30 2 * * *", 0, "Europe/Berlin")

    assert ticks.after(at("2026-03-29 01:00")) == at("2026-03-29 03:00")
    assert ticks.after(at("2026-03-29 03:00")) == at("2026-03-30 02:30")


def test_a_time_that_exists_twice_is_the_first_of_both() -> None:
    """02:30 on the day on which clocks go back from 03:00 to 02:00; what comes every half hour goes on."""
    ticks = Ticks("30 2 * * *", 0, "Europe/Berlin")
    first, second = at("2026-10-25 02:30"), at("2026-10-25 02:30", fold=1)

    assert second - first == 3600
    assert ticks.after(at("2026-10-25 01:00")) == first
    assert ticks.after(first) == ticks.after(first + 2400) == ticks.after(second) == at("2026-10-26 02:30")
    assert ticks.last(at("2026-10-20 12:00"), first + 2400) == first
    often = Ticks("*/30 * * * *", 0, "Europe/Berlin")
    assert [often.after(first), often.after(first + 1800)] == [first + 1800, second]


@pytest.mark.parametrize("expression", ["* * * * *", "0 3 * * *", "0 0 1 * *", "0 0 29 2 *"])
def test_the_last_tick_is_found_however_long_ago_it_was(expression: str) -> None:
    """It is the one whose next is to come."""
    ticks = Ticks(expression, 0, "Europe/Berlin")
    until = at("2026-10-25 02:40", fold=1)

    last = ticks.last(at("2010-01-01 00:00"), until)

    assert last <= until < ticks.after(last)
    assert ticks.last(last, until) == last


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"cron": "61 * * * *"}, "minute"),
        ({"cron": "* *"}, "Wrong number of fields"),
        ({"cron": "0 0 31 2 *"}, "day"),
        ({"cron": "* * * * *", "timezone": "Europe/Nowhere"}, "no time zone 'Europe/Nowhere'"),
        ({"cron": "* * * * *", "timezone": "../../etc/passwd"}, "no time zone"),
        ({"cron": "* * * * *", "every_s": 5}, "either"),
        ({"every_s": 0}, "either"),
        ({"missed": "all"}, "Invalid"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], complaint: str) -> None:
    """ValueError, and it says what is wrong."""
    value = msgspec.msgpack.encode(
        [
            "q",
            b"\xc0",
            options.get("cron", ""),
            options.get("every_s", 0 if "cron" in options else 5),
            options.get("timezone", "UTC"),
            options.get("missed", "one"),
        ]
    )

    with pytest.raises(ValueError, match=complaint):
        Schedules({}, Config(), START).declare("s", value, START)


def test_without_the_library_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that cannot read cron expressions refuses them, and names the cure; intervals work."""
    monkeypatch.setitem(sys.modules, "cronsim", None)
    schedules = Schedules({}, Config(), START)

    with pytest.raises(NotStored, match="pip install"):
        schedules.declare("s", declared(every_s=0, cron="* * * * *"), START)
    declare(schedules, START)


def test_the_same_declaration_changes_nothing() -> None:
    """However often; another one replaces it, without a job for what was before."""
    schedules = Schedules({}, Config(), START)
    declare(schedules, START)

    assert schedules.declare("s", declared(), START + 5) is None
    assert made(schedules, START + 10) == [START + 10]
    declare(schedules, START + 10.5, every_s=5)
    assert made(schedules, START + 14) == []
    assert made(schedules, START + 15) == [START + 15]


def test_every_tick_is_one_job_while_the_store_runs() -> None:
    """Also when it was busy for a while: each tick has its own."""
    schedules = Schedules({}, Config(), START)
    declare(schedules, START)

    assert schedules.next == START + 10
    assert made(schedules, START + 9.9) == []
    assert made(schedules, START + 10) == [START + 10]
    assert made(schedules, START + 10) == []
    assert made(schedules, START + 45) == [START + 20, START + 30, START + 40]


def test_a_clock_that_is_set_back_makes_no_tick_twice() -> None:
    """Nor does declaring it anew meanwhile; and one that is set forward misses ticks."""
    schedules = Schedules({}, Config(), START)
    declare(schedules, START)
    assert made(schedules, START + 10) == [START + 10]

    assert made(schedules, START - 3600) == []
    declare(schedules, START - 3600, value=b"\xc3")
    assert made(restarted(schedules, START - 3600), START) == []
    assert made(schedules, START + 19) == []
    assert made(schedules, START + 20) == [START + 20]
    assert made(schedules, START + 20 + LATE_S * 100) == [START + 20 + LATE_S * 100]


def test_missed_ticks_are_one_job() -> None:
    """For all that came while the store did not run, at once; it has the last one's tick."""
    schedules = Schedules({}, Config(), START)
    declare(schedules, START)

    again = restarted(schedules, START + 35)

    assert made(again, START + 35) == [START + 30]
    assert made(again, START + 50) == [START + 40, START + 50]


def test_missed_ticks_are_none_where_that_is_wanted() -> None:
    """The next job is that of the next tick; a pause without ticks misses none."""
    schedules = Schedules({}, Config(), START)
    declare(schedules, START, missed="none")

    assert made(restarted(schedules, START + 5), START + 10) == [START + 10]
    again = restarted(schedules, START + 35)

    assert made(again, START + 35) == []
    assert made(again, START + 40) == [START + 40]


def test_a_schedule_that_cannot_be_told_any_more_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """Its time zone has gone: it is reported, and stays."""
    state = ScheduleState(Declaration("q", b"\xc0", every_s=1, timezone="Gone/Away"), START + 10)
    schedules = Schedules({"$schedule/bad": Position(msgspec.msgpack.encode(state), 0)}, Config(), START)
    declare(schedules, START)

    assert made(schedules, START + 10) == [START + 10]
    assert schedules.get("bad") is not None
    assert "Gone/Away" in caplog.text


def test_schedules_are_bounded() -> None:
    """In number and in size; one that is there may be replaced."""
    schedules = Schedules({}, Config(store_schedules_max=2, store_schedule_bytes=100), START)
    declare(schedules, START, "a")
    declare(schedules, START, "b")

    with pytest.raises(LimitExceeded, match="store_schedules_max"):
        schedules.declare("c", declared(), START)
    with pytest.raises(LimitExceeded, match="store_schedule_bytes"):
        schedules.declare("a", declared(value=bytes(100)), START)
    declare(schedules, START, "a", every_s=7)
