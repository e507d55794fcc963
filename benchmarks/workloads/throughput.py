"""How many messages a second go from one process to another, one way."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.model import Cell, Entry
from benchmarks.workloads import ratio
from benchmarks.workloads.rates import Rates, Variant, comparable

__all__ = ["WORKLOAD"]

PLAIN = "plain"


class Throughput(Rates):
    """Roles: `sender` and `receiver`."""

    name = "throughput"
    summary = "messages per second between two processes, one way"
    messages: Mapping[str, int] = {"full": 500_000, "quick": 300_000, "tiny": 3_000}
    payloads = "bytes,dict,struct,numpy"
    baselines: Mapping[str, str] = {"x PUSH/PULL": "pyzmq PUSH/PULL", "x PUB/SUB": "pyzmq PUB/SUB"}

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Encryption."""
        super().add_arguments(parser)
        parser.add_argument("--secure", action="store_true", help="plain, encrypted, signed: peers that can do all")

    def variants(self, options: argparse.Namespace) -> Iterator[Variant]:
        """One case, or plain, encrypted, and signed as well."""
        if options.secure:
            yield Variant(case=PLAIN)
            yield Variant(case="encrypted", changes={"secure": True})
            yield Variant(case="signed", changes={"secure": True, "signed": True})
        else:
            yield Variant()

    def cells(self, options: argparse.Namespace, entries: Sequence[Entry]) -> list[Cell]:
        """With `--secure` only peers that can encrypt."""
        return super().cells(options, [entry for entry in entries if entry.can_encrypt or not options.secure])

    def _ratios(
        self, cell: Cell, cells: Sequence[Cell], figures: Sequence[Sequence[float | None]], own: Sequence[float | None]
    ) -> dict[str, float]:
        """What encryption, and signatures, leave of the same peer's plain rate, too."""
        ratios = super()._ratios(cell, cells, figures, own)
        for other, theirs in zip(cells, figures, strict=True):
            same = other.entry is cell.entry and comparable(other)[1:] == comparable(cell)[1:]
            if same and cell.run.secure and other.case == PLAIN:
                found = ratio(own, theirs)
                if found is not None:
                    ratios["x plain"] = found
        return ratios


WORKLOAD = Throughput()
