"""The rules of the house, checked on the source and in fresh interpreters."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests import source_rules

ROOT = Path(__file__).parents[1]
FOLDERS = {"zfabric": "zfabric", "patterns": "zfabric.patterns", "examples": "zfabric.examples"}
"Folders of the checkout and the package that each is installed as (`package_dir` in setup.cfg)."

Rule = Callable[[ast.Module], source_rules.Complaints]

LINES_MAX = 500
FUNCTION_LINES_MAX = 70
IMPORT_S_MAX = 0.150
UNLOADED_MODULES = {
    "apsw",
    "click",
    "lark",
    "msgpack",
    "numpy",
    "rich",
    "zeroconf",
    "zfabric.capture",
    "zfabric.cli",
    "zfabric.testing",
}

PUBLIC_MODULES = {
    "zfabric.capture",
    "zfabric.errors",
    "zfabric.events",
    "zfabric.patterns",
    "zfabric.sync",
    "zfabric.testing",
}
"Modules, besides zfabric itself, that users and so `zfabric.patterns` may import from."


def sources(*folders: str) -> list[Path]:
    """Every Python file below these folders of the checkout."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_bytes())


def complaints(rule: Rule, *folders: str) -> list[str]:
    """What one rule has to say about these folders, as `file:line message`."""
    files = sources(*folders)
    assert files, f"nothing to check in {folders}"
    found = []
    for path in files:
        found += [f"{path.relative_to(ROOT)}:{line} {message}" for line, message in rule(tree_of(path))]
    return found


def named(folder: str, package: str) -> Iterator[tuple[Path, str]]:
    """Every file of a folder, and the name of its module."""
    for path in sources(folder):
        parts = path.relative_to(ROOT / folder).with_suffix("").parts
        yield path, ".".join((package, *(part for part in parts if part != "__init__")))


@pytest.mark.slow
def test_imports_point_down() -> None:
    """The import-linter contracts of setup.cfg hold."""
    program = shutil.which("lint-imports", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program is not None

    outcome = subprocess.run(
        [program, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_the_protocol_core_is_pure() -> None:
    """`wire` and `protocol` do no I/O and read neither clock nor random source."""
    assert complaints(source_rules.impure, "zfabric/wire", "zfabric/protocol") == []


def test_patterns_use_public_names_only() -> None:
    """A pattern shows what users can build: it imports nothing private."""
    assert complaints(lambda tree: source_rules.private_imports(tree, PUBLIC_MODULES), "patterns") == []


def test_nothing_imports_patterns() -> None:
    """`zfabric.patterns` is built on zfabric, never the other way round."""
    assert complaints(lambda tree: source_rules.upward_imports(tree, {"zfabric.patterns"}), "zfabric") == []


def test_data_is_never_code() -> None:
    """Nothing that is shipped unpickles, evaluates or hands text to a shell."""
    assert complaints(source_rules.unsafe, *FOLDERS) == []


def test_tests_do_not_sleep() -> None:
    """Tests wait for conditions, not for time to pass."""
    assert complaints(source_rules.sleeping, "tests") == []


def test_functions_stay_short() -> None:
    """No function has more than 70 lines."""
    assert complaints(lambda tree: source_rules.long_functions(tree, FUNCTION_LINES_MAX), "zfabric", "patterns") == []


def test_files_stay_short() -> None:
    """No file has more than 500 lines, nor has any of the tests."""
    lengths = {path: len(path.read_bytes().splitlines()) for path in sources(*FOLDERS, "tests", "benchmarks")}

    assert {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > LINES_MAX} == {}


def test_imports_have_no_cycles() -> None:
    """So each module can be the first of zfabric that a program imports."""
    files = {name: path for folder, package in FOLDERS.items() for path, name in named(folder, package)}
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        found = source_rules.loaded(tree_of(path))
        direct = {each if each in files else each.rpartition(".")[0] for each in found} & files.keys()
        packages = {".".join(each.split(".")[:n]) for each in direct for n in range(2, each.count(".") + 1)}
        graph[name] = direct | {package for package in packages if not name.startswith(package)}

    TopologicalSorter(graph).prepare()  # a CycleError names the circle


def test_every_module_imports() -> None:
    """All of them, in one interpreter, without a warning."""
    names = [name for folder, package in FOLDERS.items() for _, name in named(folder, package)]

    outcome = python(
        "-W", "error", "-c", "import importlib, sys; [*map(importlib.import_module, sys.argv[1:])]", *names
    )

    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_root_exports_exactly_its_public_names() -> None:
    """`zfabric.__all__` is sorted and lists every public name of the root, modules apart, and nothing else."""
    script = (
        "import sys, types, zfabric, __future__\n"
        "listed = zfabric.__all__\n"
        "values = {name: getattr(zfabric, name) for name in {*dir(zfabric), *listed}}\n"
        "here = {name for name, value in values.items() if not name.startswith('_')"
        " and not isinstance(value, (types.ModuleType, __future__._Feature))}\n"
        "public = {name for name in listed if not name.startswith('_')"
        " and not isinstance(values[name], types.ModuleType)}\n"
        "assert list(listed) == sorted(set(listed)), f'sort __all__: {sorted(set(listed))}'\n"
        "assert public == here, f'__all__ lacks {here - public}, root lacks {public - here}'\n"
    )

    outcome = python("-c", script)

    assert outcome.returncode == 0, outcome.stderr


def test_import_loads_only_what_a_node_needs() -> None:
    """A node loads neither click nor rich nor zeroconf nor numpy, and none of our own tools."""
    outcome = python("-c", "import sys, zfabric; zfabric.Node; print(*sorted(sys.modules))")

    assert outcome.returncode == 0, outcome.stderr
    assert UNLOADED_MODULES & set(outcome.stdout.split()) == set()


@pytest.mark.alone
@pytest.mark.slow
def test_import_is_fast() -> None:
    """`import zfabric` costs less than 150 ms over bare Python, or eight bare starts on a slow machine.

    It loads nothing but itself: sockets and all that come with the first name that is used.
    """
    python("-c", "import zfabric")  # writes the bytecode
    loaded_with_it = python("-c", "import sys, zfabric; print(*sys.modules)").stdout.split()
    assert {name for name in loaded_with_it if name.startswith(("zfabric.", "zmq", "msgspec", "asyncio"))} == set()
    pairs = [(seconds("pass"), seconds("import zfabric")) for _ in range(5)]

    bare, loaded = (min(column) for column in zip(*pairs, strict=True))

    assert loaded - bare < max(IMPORT_S_MAX, 8 * bare)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter outside the checkout."""
    command = [sys.executable, "-P", *arguments]
    return subprocess.run(command, cwd=ROOT.anchor, capture_output=True, text=True, check=False)


def seconds(code: str) -> float:
    """Time one interpreter that runs `code`."""
    start = time.perf_counter()
    assert python("-c", code).returncode == 0
    return time.perf_counter() - start


RULE_CASES: list[tuple[Rule, str, int]] = [
    (source_rules.impure, "import time", 1),
    (source_rules.impure, "from asyncio.events import get_running_loop", 1),
    (source_rules.impure, "import msgspec, socket, uuid", 2),
    (source_rules.impure, "def f():\n    import random", 1),
    (source_rules.impure, "from datetime import datetime, UTC\ndatetime.now(UTC)", 1),
    (source_rules.impure, "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import random", 0),
    (source_rules.impure, "from zfabric.wire import time_of\ndef f(now): return now + 1", 0),
    (source_rules.unsafe, "import pickle", 1),
    (source_rules.unsafe, "from multiprocessing import Process\neval('1')", 1),
    (source_rules.unsafe, "import os as system\nsystem.system('ls')", 1),
    (source_rules.unsafe, "from subprocess import run\nrun('ls', shell=True)", 1),
    (source_rules.unsafe, "import numpy\nnumpy.load(f, allow_pickle=True)", 1),
    (source_rules.unsafe, "import re\nre.compile('x')\nrun(['ls'], shell=False)", 0),
    (source_rules.sleeping, "import time\ntime.sleep(0.1)", 1),
    (source_rules.sleeping, "from asyncio import sleep as nap\nasync def f(): await nap(1)", 1),
    (
        source_rules.sleeping,
        "import asyncio\nasync def f(pause):\n    await asyncio.sleep(0)\n    await asyncio.sleep(pause)",
        0,
    ),
    (lambda tree: source_rules.long_functions(tree, 2), "def f():\n    x = 1\n    y = 2", 1),
    (lambda tree: source_rules.long_functions(tree, 3), "def f():\n    x = 1\n    y = 2", 0),
    (lambda tree: source_rules.private_imports(tree, {"zfabric.sync"}), "import zfabric\nimport zfabric.sync", 0),
    (lambda tree: source_rules.private_imports(tree, {"zfabric.sync"}), "from zfabric.node import Driver", 1),
    (lambda tree: source_rules.upward_imports(tree, {"zfabric.patterns"}), "from zfabric.patterns.pipe import Pipe", 1),
]
"(rule, code, number of complaints), for the rules themselves."


@pytest.mark.parametrize(("rule", "code", "expected"), RULE_CASES)
def test_rules_see_what_they_should(rule: Rule, code: str, expected: int) -> None:
    """Each rule finds what it forbids, and only that."""
    assert len(list(rule(ast.parse(code)))) == expected
