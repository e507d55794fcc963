"""docs/security.md names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.findall(r"\| (tests/[\w/]+\.py)::(\w+) \|", (ROOT / "docs" / "security.md").read_text("utf-8"))


def test_there_is_a_table() -> None:
    """Every attack has a line of its own."""
    assert len(NAMED) >= 25
    assert len(set(NAMED)) == len(NAMED)


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_the_named_test_exists(file: str, name: str) -> None:
    """A test that is renamed is renamed in the table, too."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse((ROOT / file).read_text("utf-8"))

    assert name in {node.name for node in ast.walk(tree) if isinstance(node, functions)}
