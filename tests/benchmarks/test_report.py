"""What was measured, as tables and a report: nothing that is missing or failed goes unnamed."""

from __future__ import annotations

import importlib
import importlib.util
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine, peers, plan, report, tables, workloads
from benchmarks.__main__ import cells_of, chosen, main, parser_of
from benchmarks.growth import growths
from benchmarks.harness import TIME_IS_OVER
from benchmarks.model import Cell, Entry, Missing, Part, Results, Row, Run, Sample
from benchmarks.targets import TARGETS, Pick, Target, judge
from tests.benchmarks.support import ROOT


def test_table_names_what_is_missing_or_wrong() -> None:
    """Loss, failures, parts that did not run and absent peers can all be read in the table."""
    row = Row(
        workload="throughput",
        case="one way",
        peer="somelib",
        transport="tcp",
        payload="bytes",
        size=100,
        messages=1000,
        unit="k msg/s",
        **workloads.summarise([3.0, 1.0, 2.0]),
        lost=7,
        ratios={"x PUSH/PULL": 1.25},
        failures=["receiver died"],
    )
    out = io.StringIO()

    results = Results(
        machine=machine.describe(),
        missing=[Missing(peer="otherlib", why="package other is not installed")],
        rows=[row],
        parts=[Part(command="latency --quick", seconds=1.0, failure="time is over")],
    )

    report.write_table(out, results)
    words = " ".join(out.getvalue().split())

    assert "1.25 2.00 1.00 3.00 k msg/s 1,000 somelib one way LOST 7, FAILED 1" in words
    assert "FAILED latency --quick: time is over" in words
    assert "not measured: otherlib (package other is not installed)" in words
    assert "FAILED somelib one way tcp: receiver died" in words


def test_ratio_is_taken_within_a_round() -> None:
    """A machine that slows down for a whole round does not change the ratio."""
    throughput = next(workload for workload in workloads.load() if workload.name == "throughput")
    cells = [
        Cell(entry=Entry(workloads=("throughput",), peer=peer, roles={}), run=Run(), processes=())
        for peer in ("pyzmq PUSH/PULL", "somelib")
    ]

    def samples(*rates: float) -> list[Sample]:
        received = [{"counted": rate, "start": 0.0, "stop": 1.0, "lost": 0, "cpu_s": 0.0} for rate in rates]
        return [Sample(outcomes={"receiver": outcome, "sender": {"cpu_s": 0.0}}) for outcome in received]

    rows = throughput.rows(cells, [samples(1000, 500, 100), samples(2000, 1000, 200)])

    assert rows[1].ratios == {"x PUSH/PULL": 2.0}


def row(workload: str, peer: str, *samples: float | None, **fields: Any) -> Row:
    """A row of 100-byte messages over TCP."""
    values = {
        "case": "",
        "transport": "tcp",
        "payload": "bytes",
        "size": 100,
        "messages": 1,
        "unit": "k msg/s",
        **fields,
    }
    return Row(workload=workload, peer=peer, **values, **workloads.summarise(samples))


RATIO = Target(
    title="rate",
    ours=Pick(workload="throughput", peer="ours"),
    theirs=Pick(workload="throughput", peer="theirs"),
    at_least=2,
)


@pytest.mark.parametrize(
    ("ours", "theirs", "measured", "met"),
    [
        ([4.0, 1.0, 9.0], [2.0, 0.5, 3.0], 2.0, True),
        ([4.0, 1.0], [2.0, 1.0], 1.5, False),
        ([None, 8.0], [1.0, 2.0], 4.0, True),
        ([None], [1.0], None, None),
    ],
)
def test_target_is_judged_by_the_median_of_the_rounds(
    ours: list[float | None], theirs: list[float | None], measured: float | None, met: bool | None
) -> None:
    """A target compares the two sides of each round; a round where one failed does not count."""
    (verdict,) = judge([row("throughput", "ours", *ours), row("throughput", "theirs", *theirs)], [RATIO])

    assert (verdict.measured, verdict.met) == (measured, met)


def test_target_may_be_a_most() -> None:
    """A limit from above is missed above it."""
    target = Target(title="memory", ours=Pick(workload="cost", peer="ours"), at_most=100)

    assert [judge([row("cost", "ours", value)], [target])[0].met for value in (99.0, 101.0)] == [True, False]


def test_targets_name_peers_that_exist() -> None:
    """Every target picks rows that some installed peer file can give."""
    entries, missing = peers.load()
    known = {(workload, entry.peer) for entry in entries for workload in entry.workloads}
    picks = [pick for target in TARGETS for pick in (target.ours, target.theirs) if pick]
    absent = {(pick.workload, pick.peer) for pick in picks} - known

    assert missing or not absent, absent
    assert not {peer for _, peer in absent if peer.startswith(("pyzmq", "zfabric"))}


def test_slope_tells_how_cost_grows() -> None:
    """A cost that stays, one that grows in proportion, and one that falls have slopes of 0, 1 and -1."""
    rows = [
        row("topics", peer, 1000 / at**slope, case=f"{at} topics", axis="topics", at=at)
        for peer, slope in (("flat", 0), ("linear", 1), ("batching", -1))
        for at in (1, 100, 10_000)
    ]

    slopes = {growth.peer: round(growth.slope, 6) for growth in growths(rows)}

    assert slopes == {"flat": 0.0, "linear": 1.0, "batching": -1.0}


@pytest.mark.slow
def test_report_is_written_and_read_again(tmp_path: Path) -> None:
    """A tiny report leaves JSON lines and a page that needs nothing else; from the lines it is made again, the same."""
    command = [sys.executable, "-m", "benchmarks", "report"]
    first, second = tmp_path / "first", tmp_path / "second"
    subprocess.run([*command, "--tiny", "--out", str(first)], cwd=ROOT, check=True, capture_output=True, timeout=150)
    again = [*command, "--from", str(first / "report.jsonl"), "--out", str(second)]
    done = subprocess.run(again, cwd=ROOT, check=True, capture_output=True, text=True, timeout=150)

    page = (first / "report.html").read_text()
    assert page.count("<svg") >= 5
    assert "src=" not in page
    assert "href=" not in page
    assert page == (second / "report.html").read_text()
    assert (first / "report.jsonl").read_bytes() == (second / "report.jsonl").read_bytes()
    for target in TARGETS:
        assert target.title in done.stdout
    if importlib.util.find_spec("matplotlib"):
        assert (first / "report.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("document", tables.DOCUMENTS, ids=lambda path: path.name)
def test_documents_say_what_was_measured(document: Path) -> None:
    """The tables are those of the stored results: run `python -m benchmarks tables` after a new report."""
    text = document.read_text(encoding="utf-8")

    assert tables.replaced(text, report.read_json(ROOT / "benchmarks" / "results" / "report.jsonl")) == text


def test_every_table_stands_in_a_document() -> None:
    """None is made for nothing."""
    texts = "".join(document.read_text(encoding="utf-8") for document in tables.DOCUMENTS)

    assert re.findall(r"benchmarks: begin (\w+)", texts) == list(tables.TABLES)


def test_table_names_misses_and_what_was_not_measured() -> None:
    """A target that is missed says so, and so does one that nobody measured."""
    found = results()
    found.rows.extend(row("throughput", peer, 1.0) for peer in ("zfabric publish_many -> batches", "NATS"))
    text = "<!-- benchmarks: begin targets -->\n<!-- benchmarks: end -->\n"

    lines = tables.replaced(text, found).splitlines()

    assert "| 100 B bytes, batches, at-most-once | NATS | ≥ 20 | 1x (1 to 1), missed |" in lines
    assert "| 100 B bytes, batches, at-most-once | Zenoh | ≥ 4 | not measured |" in lines


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("", ["a", "a, fast", "b"]), ("a", ["a"]), ("fast", ["a, fast"]), ("fast,b", ["a, fast", "b"]), ("c", [])],
)
def test_peers_are_chosen_by_name_or_by_a_part_of_it(wanted: str, found: list[str]) -> None:
    """A whole name means that peer alone, though other names have it as a part."""
    entries = [Entry(workloads=(), peer=peer, roles={}) for peer in ("a", "a, fast", "b")]

    assert [entry.peer for entry in chosen(wanted, entries)] == found


@pytest.mark.parametrize("scale", plan.MINUTES)
def test_plan_is_made_of_commands(scale: str) -> None:
    """Every command of a report can be given by hand."""
    for command in plan.commands(scale):
        with pytest.raises(SystemExit) as ended:
            main([*shlex.split(command), "--help"])
        assert ended.value.code == 0


def test_full_report_measures_what_the_targets_need() -> None:
    """Each row that a target picks comes of some command of the plan, for every peer that is installed."""
    known, (entries, missing) = workloads.load(), peers.load()
    cells = []
    for command in plan.commands("full"):
        options = parser_of(known).parse_args(shlex.split(command))
        if options.command == "latency":
            options.rate = 1000
        workload, of_command = cells_of(options, known, entries)
        cells += [(workload.name, cell.entry.peer, cell) for cell in of_command]
    absent = {
        pick
        for target in TARGETS
        for pick in (target.ours, target.theirs)
        if pick
        and not any(
            (workload, peer) == (pick.workload, pick.peer)
            and (pick.case == cell.case or pick.case.startswith(f"{cell.case}, ") or workload == "storelog")
            and pick.payload in {"", cell.run.payload}
            and pick.transport in {"disk", "loopback", cell.run.transport}
            and pick.size in {None, cell.run.size}
            for workload, peer, cell in cells
        )
    }

    assert missing or not absent
    assert not [pick for pick in absent if pick.peer.startswith(("pyzmq", "zfabric"))]


def results() -> Results:
    """Nothing measured yet."""
    return Results(machine=machine.describe())


def one_row(arguments: Sequence[str], deadline: float) -> list[Row]:
    """What a command gives: a row, or an error for a peer that is broken."""
    if arguments[1] == "broken":
        raise LookupError("no such broker")
    return [row(arguments[0], arguments[1], 1.0)]


def test_report_survives_what_goes_wrong() -> None:
    """A command that raises is named with its reason, and the others still run."""
    found = results()
    done = list(plan.run(["queue broken", "queue somelib"], found, one_row, 60))

    assert len(done) == 2
    assert [part.failure for part in found.parts] == ["LookupError: no such broker", ""]
    assert [each.peer for each in found.rows] == ["somelib"]
    assert found.failed


def test_report_names_what_its_time_did_not_suffice_for() -> None:
    """When the time is over the rest is not run, and stands in the results as not run."""
    found = results()
    list(plan.run(["queue somelib"], found, one_row, -1))

    assert [(part.command, part.failure) for part in found.parts] == [("queue somelib", TIME_IS_OVER)]


def test_report_goes_on_where_it_was_interrupted() -> None:
    """What was measured is not measured again; what failed is."""
    found = results()
    commands = ["queue one", "queue broken"]
    list(plan.run(commands, found, one_row, 60))
    list(plan.run(commands, found, lambda arguments, deadline: [row(arguments[0], arguments[1], 2.0)], 60))

    assert [(each.peer, each.median) for each in found.rows] == [("one", 1.0), ("broken", 2.0)]
    assert not found.failed
