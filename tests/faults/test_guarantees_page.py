"""docs/guarantees.md has no empty cell, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guarantees.md"
NAMED = re.compile(r"`((?:[\w/]+/)?test_\w+\.py)::(test_\w+)`")
MODES = 4
"Columns whose cells name a test."


def cells() -> list[list[str]]:
    """The rows of all tables, without their heads."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    stripped = [[cell.strip() for cell in row] for row in rows]
    return [row for row in stripped if row[0] not in ("fault", "promise", "---")]


@cache
def functions_of(file: str) -> set[str]:
    """The functions of a file; a name without a folder means this one."""
    path = ROOT / "tests" / (file if "/" in file else f"faults/{file}")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_cell_names_a_test() -> None:
    """One for each delivery mode and each fault."""
    rows = cells()

    assert len(rows) > 30
    for row in rows:
        assert len(row) == MODES + 1, row
        assert all(NAMED.search(cell) for cell in row[1:]), row


def test_every_named_test_exists() -> None:
    """Under the name and in the file that the page gives."""
    named = NAMED.findall(PAGE.read_text(encoding="utf-8"))

    assert [(file, test) for file, test in named if test not in functions_of(file)] == []


def test_every_fault_test_is_named() -> None:
    """What is tested is promised somewhere."""
    named = {test for _, test in NAMED.findall(PAGE.read_text(encoding="utf-8"))}
    files = ("crashes", "groups", "limits", "links", "partitions", "pauses", "slow", "topics")
    paths = [*(f"test_{file}.py" for file in files), "durable/test_faults.py", "durable/test_kills.py"]
    tests = {test for path in paths for test in functions_of(path) if test.startswith("test_")}

    assert tests - named == set()
