"""Rules about source code, as functions from a syntax tree to complaints; test_architecture.py applies them."""

from __future__ import annotations

import ast
from collections.abc import Iterator

IMPURE_MODULES = {
    "asyncio": "return what to do; the driver in zfabric.node awaits it",
    "concurrent": "return what to do; the driver in zfabric.node runs it",
    "multiprocessing": "return what to do; the driver in zfabric.node runs it",
    "os": "take what you need as a parameter; zfabric.node reads the environment",
    "pathlib": "take bytes; zfabric.node and zfabric.store read files",
    "random": "take `rng: random.Random` as a parameter (import it under TYPE_CHECKING)",
    "secrets": "take ids and nonces as parameters; zfabric.node draws them",
    "select": "take frames; zfabric.transport polls",
    "selectors": "take frames; zfabric.transport polls",
    "signal": "the driver in zfabric.node handles signals",
    "socket": "take and return frames; zfabric.transport owns the sockets",
    "subprocess": "return what to do; nothing here starts processes",
    "threading": "be a plain object; the driver in zfabric.node owns threads",
    "time": "take `now: float` as a parameter; the driver in zfabric.node reads the clock",
    "uuid": "take ids as parameters; zfabric.node draws them",
    "zmq": "take and return frames; zfabric.transport owns the sockets",
}
CLOCK_READERS = {"now", "utcnow", "today"}
UNSAFE_MODULES = {"cloudpickle", "dill", "marshal", "pickle", "shelve"}
UNSAFE_BUILTINS = {"eval", "exec"}
UNSAFE_CALLS = {
    "asyncio.create_subprocess_shell",
    "builtins.eval",
    "builtins.exec",
    "os.popen",
    "os.system",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "yaml.full_load",
    "yaml.load",
    "yaml.unsafe_load",
}
SLEEPS = {"anyio.sleep", "asyncio.sleep", "time.sleep"}

Complaints = Iterator[tuple[int, str]]


def impure(tree: ast.Module) -> Complaints:
    """Imports and calls that the protocol core must not have: I/O, clocks, randomness, event loops."""
    for node, module in _imports(tree, skip=_type_checking_blocks(tree)):
        root = module.partition(".")[0]
        if root in IMPURE_MODULES:
            yield node.lineno, f"imports {root}: {IMPURE_MODULES[root]}"
    for call in _calls(tree):
        if isinstance(call.func, ast.Attribute) and call.func.attr in CLOCK_READERS:
            yield call.lineno, f"calls {ast.unparse(call.func)}(): {IMPURE_MODULES['time']}"


def unsafe(tree: ast.Module) -> Complaints:
    """Ways to turn data into code: pickle, eval, exec, a shell."""
    for node, module in _imports(tree):
        if module.partition(".")[0] in UNSAFE_MODULES:
            yield node.lineno, f"imports {module}: send plain values with msgspec"
    names = _imported_names(tree)
    for call in _calls(tree):
        called = _dotted(call.func, names)
        if called in UNSAFE_BUILTINS or called in UNSAFE_CALLS:
            yield call.lineno, f"calls {called}(): data is never code; start programs with a list of arguments"
        for keyword in call.keywords:
            if keyword.arg in {"shell", "allow_pickle"} and not _is_false(keyword.value):
                yield call.lineno, f"passes {keyword.arg}=: data is never code"


def sleeping(tree: ast.Module) -> Complaints:
    """Sleeps for a fixed time; `sleep(0)` only lets others run and is fine."""
    names = _imported_names(tree)
    for call in _calls(tree):
        if _dotted(call.func, names) in SLEEPS and call.args:
            pause = call.args[0]
            if isinstance(pause, ast.Constant) and pause.value != 0:
                yield call.lineno, "sleeps for a fixed time: wait for the condition itself, with a deadline"


def long_functions(tree: ast.Module, lines_max: int) -> Complaints:
    """Functions of more than `lines_max` lines, decorators not counted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > lines_max:
                yield node.lineno, f"{node.name} has {lines} lines, {lines_max} are the most: split it by decision"


def private_imports(tree: ast.Module, public: set[str]) -> Complaints:
    """Imports from zfabric of anything but the modules `public` and what is below them."""
    for node, module in _imports(tree):
        if module == "zfabric" or not module.startswith("zfabric."):
            continue
        if not any(module == name or module.startswith(f"{name}.") for name in public):
            yield node.lineno, f"imports {module}: use the public names of `zfabric`"


def upward_imports(tree: ast.Module, banned: set[str]) -> Complaints:
    """Imports of packages that stand above everything else."""
    for node, module in _imports(tree):
        if any(module == name or module.startswith(f"{name}.") for name in banned):
            yield node.lineno, f"imports {module}, which stands above: turn the dependency round"


def loaded(tree: ast.Module) -> Iterator[str]:
    """What is imported as soon as the module is, `from a import b` as `a.b`."""
    later = _type_checking_blocks(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            later.update(ast.walk(node))
    for statement, module in _imports(tree, skip=later):
        if isinstance(statement, ast.ImportFrom):
            yield from (f"{module}.{alias.name}" for alias in statement.names)
        else:
            yield module


def _imports(tree: ast.Module, skip: set[ast.AST] | None = None) -> Iterator[tuple[ast.stmt, str]]:
    """Every absolute import, as (statement, module)."""
    for node in ast.walk(tree):
        if skip is not None and node in skip:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node, node.module or ""


def _type_checking_blocks(tree: ast.Module) -> set[ast.AST]:
    """Everything inside `if TYPE_CHECKING:`, which never runs."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    guarded = [block for block in blocks if _dotted(block.test, {}) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}]
    return {node for block in guarded for statement in block.body for node in ast.walk(statement)}


def _imported_names(tree: ast.Module) -> dict[str, str]:
    """What the imported names of a module stand for: `from time import sleep as nap` gives nap: time.sleep."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _calls(tree: ast.Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _dotted(func: ast.expr, names: dict[str, str]) -> str:
    """The full name of what is called, or an empty text where it is not a plain dotted name."""
    if isinstance(func, ast.Name):
        return names.get(func.id, func.id)
    if isinstance(func, ast.Attribute):
        owner = _dotted(func.value, names)
        return f"{owner}.{func.attr}" if owner else ""
    return ""


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False
