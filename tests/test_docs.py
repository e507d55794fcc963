"""The README is a program: its ```bash and ```python blocks run.

A comment `<!-- test: skip the reason -->` above a block leaves it out, and the reason shows in pytest's report.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TIMEOUT_S = 45

BLOCK = re.compile(
    r"^(?:<!-- test: skip (?P<reason>.+?) -->\s*\n)?"
    r"^```(?P<language>bash|python)[^\n]*\n(?P<code>.*?)^```\s*$",
    re.MULTILINE | re.DOTALL,
)
SHELL_PREAMBLE = """
set -euo pipefail
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
trap 'echo "failed: $BASH_COMMAND" >&2' ERR
"""
RECURSIVE = re.compile(r"make (test|check)|\.ci/run|\bpytest\b|\btox\b")


@dataclass(frozen=True)
class Block:
    """One fenced block, and where it stands."""

    line: int
    language: str
    code: str
    reason: str | None
    "Why it is left out, if it is."


def blocks_of(text: str) -> list[Block]:
    """Every block of a Markdown text that is meant to run."""
    return [
        Block(text.count("\n", 0, match.start("code")), match["language"], match["code"], match["reason"])
        for match in BLOCK.finditer(text)
    ]


def readme_blocks() -> list[Block]:
    """The blocks of the README."""
    return blocks_of(README.read_text(encoding="utf-8")) if README.exists() else []


def shell_script(code: str) -> str:
    """What bash runs for a block. Where commands follow a `$ ` prompt, the other lines are their output."""
    lines = code.splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    return SHELL_PREAMBLE + "\n".join(lines) + "\n"


def execute(block: Block, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a block: bash in the checkout, line by line until one fails; Python as a program in an empty folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONWARNINGS": "error", "NO_COLOR": "1"}
    if block.language == "bash":
        command, cwd = ["bash", "-c", shell_script(block.code)], ROOT
    else:
        program = folder / "readme_block.py"
        program.write_text(block.code, encoding="utf-8")
        command, cwd = [sys.executable, str(program)], folder
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("block", readme_blocks(), ids=lambda block: f"README.md:{block.line}-{block.language}")
def test_readme_block_runs(block: Block, tmp_path: Path) -> None:
    """What the README tells people to type or to write works as it stands."""
    if block.reason is not None:
        pytest.skip(block.reason)
    if block.language == "bash":
        assert not RECURSIVE.search(block.code), "this would run the tests inside the tests: mark the block"

    outcome = execute(block, tmp_path)

    assert outcome.returncode == 0, f"{block.code}\n{outcome.stdout}\n{outcome.stderr}"


@pytest.mark.slow
def test_readme_publisher_and_subscriber_meet(tmp_path: Path) -> None:
    """The README's first two programs, typed into two terminals, exchange their messages."""
    programs = [block.code for block in readme_blocks() if block.language == "python"][:2]
    for name, code in zip(("publisher", "subscriber"), programs, strict=True):
        apart = re.sub(r'Node\("([\w-]+)"\)', rf'Node("\1", fabric="readme-{os.getpid()}")', code)
        assert apart != code, "other nodes of this machine must not take part"
        (tmp_path / f"{name}.py").write_text(apart, encoding="utf-8")
    subscriber = subprocess.Popen(
        [sys.executable, "-u", "subscriber.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        subprocess.run([sys.executable, "publisher.py"], cwd=tmp_path, timeout=TIMEOUT_S, check=True)
        assert subscriber.stdout is not None
        lines = [subscriber.stdout.readline() for _ in range(3)]
    finally:
        subscriber.kill()
        subscriber.communicate()

    assert lines == [f"sensor-1 plant.line1.temp {{'c': {celsius}}}\n" for celsius in (21.5, 21.7, 21.4)]


@pytest.mark.skipif(not README.exists(), reason="there is no README yet")
def test_readme_has_blocks_of_both_languages() -> None:
    """The README shows commands and programs, and some of each run."""
    assert {block.language for block in readme_blocks() if block.reason is None} == {"bash", "python"}


SAMPLE = """
```bash
true
echo one
```

<!-- test: skip it needs two machines -->
```python
print("never")
```

```text
not a block
```

  <!-- test: skip a comment elsewhere -->

```python
print("two")
```
"""


def test_blocks_are_found_with_their_reasons() -> None:
    """A comment right above a block leaves out that block and no other."""
    found = [(block.language, block.line, block.reason) for block in blocks_of(SAMPLE)]

    assert found == [("bash", 2, None), ("python", 8, "it needs two machines"), ("python", 18, None)]


def test_a_failing_line_fails_the_block(tmp_path: Path) -> None:
    """A bash block stops at the first line that fails, and says which."""
    outcome = execute(Block(1, "bash", "true\nfalse 1\ntrue\n", None), tmp_path)

    assert outcome.returncode == 1
    assert "failed: false 1" in outcome.stderr


def test_output_below_a_prompt_is_not_run(tmp_path: Path) -> None:
    """In a transcript only the lines after `$ ` are commands."""
    outcome = execute(Block(1, "bash", "$ echo hello\nhello\n", None), tmp_path)

    assert (outcome.returncode, outcome.stdout) == (0, "hello\n")


def test_a_program_that_raises_fails_the_block(tmp_path: Path) -> None:
    """A Python block is a program of its own: an exception fails it."""
    assert execute(Block(1, "python", "raise SystemExit(3)\n", None), tmp_path).returncode == 3
