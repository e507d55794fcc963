"""What the workloads have in common that measure how much arrives in a second."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks import payloads
from benchmarks.model import Cell, Entry, Row, Run, Sample
from benchmarks.options import number, numbers, words
from benchmarks.workloads import ratio, summarise

__all__ = ["Rates", "Variant", "comparable", "cpu_seconds", "receivers_of"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One case of a workload."""

    case: str = ""
    axis: str = ""
    "What grows from case to case, if something does."
    at: float = 0.0
    "How much of it there is."
    changes: Mapping[str, Any] = field(default_factory=dict)
    "Fields of the run."

    @classmethod
    def along(cls, axis: str, at: int, **changes: Any) -> Variant:
        """A case with that much of what the axis names."""
        what = axis if at > 1 else axis.removesuffix("s")
        return cls(case=f"{at:,} {what}", axis=axis, at=at, changes=changes)


class Rates:
    """Roles: `sender` and `receiver`; the latter is played by `Run.receivers` processes.

    A subclass gives the class attributes, and `variants`: the axis along which it measures.
    """

    name: str
    summary: str
    repetitions: Mapping[str, int] = {"full": 5, "quick": 3, "tiny": 1}
    messages: Mapping[str, int]
    payloads = "bytes"
    "Default of `--payload`."
    size = "100"
    "Default of `--size`."
    unit = "k msg/s"
    bytes_max = 1_000_000_000
    "No run sends more than this."
    baselines: Mapping[str, str] = {"x PUB/SUB": "pyzmq PUB/SUB"}
    "Names of ratios, and how the names of the peers begin to which they compare."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Message counts, payload sizes and kinds, and transports."""
        counts = parser.add_mutually_exclusive_group()
        counts.add_argument("--messages", type=number, help="measured messages of one run")
        counts.add_argument(
            "--growing", type=numbers, default=[], help="comma-separated numbers of messages, a case for each"
        )
        parser.add_argument(
            "--size", type=numbers, default=self.size, help="comma-separated bytes of a payload (default: %(default)s)"
        )
        parser.add_argument(
            "--transport", type=words("tcp", "ipc"), default="tcp", help="comma-separated: tcp, ipc (default: tcp)"
        )
        kinds = words(*payloads.KINDS)
        parser.add_argument(
            "--payload", type=kinds, default=self.payloads, help="comma-separated kinds (default: %(default)s)"
        )

    def variants(self, options: argparse.Namespace) -> Iterator[Variant]:
        """What is measured with each payload, size and transport."""
        yield Variant()

    def processes(self, run: Run, entry: Entry) -> tuple[str, ...]:
        """The roles of a run's processes."""
        return (*("receiver",) * run.receivers, "sender")

    def cells(self, options: argparse.Namespace, entries: Sequence[Entry]) -> list[Cell]:
        """Every peer with every variant, payload, size and transport that it and the user want."""
        cells = []
        for payload in options.payload:
            for size in options.size if payload in {"bytes", "numpy"} else [0]:
                for transport in options.transport:
                    for variant in self._grown(options):
                        run = Run(transport=transport, payload=payload, size=size, **variant.changes)
                        cells += [
                            self._cell(entry, run, variant, options)
                            for entry in entries
                            if transport in entry.transports and entry.payload == payload
                        ]
        # A peer that is measured with fewer messages has no cell for more of them.
        return [cell for cell in cells if cell.axis != "messages" or cell.run.messages == cell.at]

    def _grown(self, options: argparse.Namespace) -> Iterator[Variant]:
        """The variants, or each of them with every number of messages that is asked for."""
        for variant in self.variants(options):
            if not options.growing:
                yield variant
            for messages in options.growing:
                more = Variant.along("messages", messages, **variant.changes, messages=messages)
                yield replace(more, case=f"{more.case}, {variant.case}" if variant.case else more.case)

    def _cell(self, entry: Entry, run: Run, variant: Variant, options: argparse.Namespace) -> Cell:
        copies = 1 if run.shared else run.receivers
        if "messages" not in variant.changes:
            run = replace(run, messages=options.messages or self.messages[options.scale] * 8 // max(8, copies))
        most = min(entry.messages_max // copies, self.bytes_max // max(1, run.size))
        messages = max(20, min(run.messages, most))
        run = replace(run, warmup=max(run.topics, messages // 10), messages=messages)
        processes = self.processes(run, entry)
        return Cell(entry=entry, run=run, processes=processes, case=variant.case, axis=variant.axis, at=variant.at)

    def rows(self, cells: Sequence[Cell], samples: Sequence[Sequence[Sample]]) -> list[Row]:
        """One row a cell, with ratios to the baselines of the same case."""
        figures = [
            [self.figure(cell, sample) for sample in of_cell] for cell, of_cell in zip(cells, samples, strict=True)
        ]
        return [
            Row(
                workload=self.name,
                case=cell.case,
                peer=cell.entry.peer,
                transport=cell.run.transport,
                payload=cell.run.payload,
                size=payloads.encoded_size(cell.run.payload, cell.run.size),
                messages=cell.run.messages,
                unit=self.unit,
                axis=cell.axis,
                at=cell.at,
                **summarise(figures[index]),
                lost=0 if cell.run.bounded else sum(_lost(cell, sample) for sample in of_cell),
                ratios=self._ratios(cell, cells, figures, figures[index]),
                details=self.details(cell, [sample for sample in of_cell if not sample.failure]),
                failures=[sample.failure for sample in of_cell if sample.failure],
            )
            for index, (cell, of_cell) in enumerate(zip(cells, samples, strict=True))
        ]

    def figure(self, cell: Cell, sample: Sample) -> float | None:
        """What one sample gives: all that arrived anywhere, over the time from first arrival to last."""
        receivers = [outcome for outcome in receivers_of(sample) if outcome["counted"]]
        if sample.failure or not receivers:
            return None
        seconds = max(outcome["stop"] for outcome in receivers) - min(outcome["start"] for outcome in receivers)
        return float(sum(outcome["counted"] for outcome in receivers) / seconds / 1000)

    def details(self, cell: Cell, samples: Sequence[Sample]) -> dict[str, float]:
        """Median CPU time per message of the sender and of all receivers: steadier than the rate on a busy machine."""
        return {
            f"{role} us/msg": statistics.median(cpu_seconds(sample, role) for sample in samples)
            * 1e6
            / cell.run.messages
            for role in (("sender", "receiver") if samples else ())
        }

    def _ratios(
        self, cell: Cell, cells: Sequence[Cell], figures: Sequence[Sequence[float | None]], own: Sequence[float | None]
    ) -> dict[str, float]:
        ratios: dict[str, float] = {}
        for name, beginning in self.baselines.items():
            for other, theirs in zip(cells, figures, strict=True):
                if other.entry.peer.startswith(beginning) and comparable(other) == comparable(cell):
                    found = ratio(own, theirs)
                    if found is not None:
                        ratios.setdefault(name, found)
        return ratios


def comparable(cell: Cell) -> tuple[Any, ...]:
    """Cells may be compared where this is equal."""
    return cell.case, cell.run.transport, cell.run.payload, cell.run.size


def receivers_of(sample: Sample) -> list[Mapping[str, Any]]:
    """What the receivers returned."""
    return [outcome for name, outcome in sample.outcomes.items() if name.startswith("receiver")]


def cpu_seconds(sample: Sample, role: str) -> float:
    """CPU time of all processes that played a role."""
    return float(sum(outcome["cpu_s"] for name, outcome in sample.outcomes.items() if name.startswith(role)))


def _lost(cell: Cell, sample: Sample) -> int:
    """Messages that did not arrive; competing receivers share them."""
    receivers = receivers_of(sample)
    if not receivers:
        return 0
    return (
        int(cell.run.messages - sum(each["received"] for each in receivers))
        if cell.run.shared
        else sum(int(each["lost"]) for each in receivers)
    )
