"""`zfabric store` on the files of a store that does not run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.store.support import append, keyed, messages, one
from zfabric.cli import main
from zfabric.store import Commit, PositionUpdate, open_log


class Shell:
    """Runs commands in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self.capture = capture
        self.err = ""

    def __call__(self, *arguments: object, code: int = 0) -> list[dict[str, Any]]:
        """The objects that `zfabric store ARGUMENTS --json` prints; it must end with `code`."""
        found = main(["store", *map(str, arguments), "--json"])
        out, self.err = self.capture.readouterr()
        assert found == code, self.err
        return [msgspec.json.decode(line) for line in out.splitlines()]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    """A shell."""
    return Shell(capsys)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A closed store with two topics."""
    with open_log(str(tmp_path / "data"), create=True) as log:
        for base in range(20):
            one(log, append("orders.eu", base), keyed("prices", base, [f"k{base % 4}"]))
    return tmp_path / "data"


def test_info(shell: Shell, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every topic is shown with its offsets and how long it is kept."""
    shell("retain", data, "prices", "--messages", "15", "--compact")

    eu, prices = shell("info", data)

    assert (eu["topic"], eu["first"], eu["next"], eu["producers"]) == ("orders.eu", 0, 20, 1)
    assert (prices["first"], prices["retention"]["messages"], prices["retention"]["compact"]) == (5, 15, True)
    assert main(["store", "info", str(data)]) == 0
    assert "15 messages, last of each key" in capsys.readouterr().out


def test_verify(shell: Shell, data: Path) -> None:
    """A sound store is well; a damaged one ends with 1 and says what is missing; a lost end can be accepted."""
    assert [(found["topic"], found["messages"], found["gaps"]) for found in shell("verify", data)] == [
        ("orders.eu", 20, []),
        ("prices", 20, []),
    ]
    (head,) = data.glob("log-*.db")
    old = head.read_bytes()
    with open_log(str(data)) as log:
        one(log, append("orders.eu", 20))
    head.write_bytes(old.replace(b"orders.eu 1 1 7+1", b"orders.eu 1 1 9+1", 1))

    shell("verify", data, code=1)
    assert "cut or put back" in shell.err

    eu, _ = shell("verify", data, "--accept-loss", code=1)
    assert eu["messages"] == 19
    assert [gap["reason"] for gap in eu["gaps"]] == ["its checksum differs", "lost"]


def test_backup_and_restore(shell: Shell, data: Path, tmp_path: Path) -> None:
    """A restored backup is the store; neither writes over what is there."""
    shell("backup", data, tmp_path / "saved")
    restored = shell("restore", tmp_path / "saved", tmp_path / "back")

    assert [found["messages"] for found in restored] == [20, 20]
    assert shell("info", tmp_path / "back") == shell("info", data)
    shell("restore", tmp_path / "saved", data, code=1)
    with open_log(str(data)):
        shell("info", data, code=1)
        assert "in use" in shell.err


@pytest.mark.parametrize("as_json", [False, True])
def test_export_and_import(
    data: Path, tmp_path: Path, as_json: bool, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """An export in either form makes the same store, also through a pipe's file."""
    file = tmp_path / "export"
    assert main(["store", "export", str(data), str(file), *(["--json"] if as_json else [])]) == 0
    assert main(["store", "import", str(tmp_path / "copy"), str(file)]) == 0
    assert main(["store", "export", str(data), *(["--json"] if as_json else [])]) == 0

    assert capsysbinary.readouterr().out == file.read_bytes()
    with open_log(str(tmp_path / "copy")) as copy, open_log(str(data)) as log:
        assert copy.read("prices", 0, 10**6) == log.read("prices", 0, 10**6)
    assert main(["store", "import", str(tmp_path / "copy"), str(file)]) == 1


def test_purge_and_compact(shell: Shell, data: Path) -> None:
    """Messages before an offset, all, or the topic itself go; of each key the last value stays."""
    assert shell("purge", data, "orders.eu", "--before", "5") == [{"topic": "orders.eu", "removed": 5}]
    assert shell("purge", data, "orders.eu") == [{"topic": "orders.eu", "removed": 15}]
    (compacted,) = shell("compact", data, "prices")
    assert compacted["bytes"] < compacted["bytes_before"]
    with open_log(str(data)) as log:
        assert messages(log, "prices") == [16, 17, 18, 19]
    shell("purge", data, "orders.eu", "--forget")
    assert [known["topic"] for known in shell("info", data)] == ["prices"]
    shell("purge", data, "nothing", code=69)
    shell("compact", data, "nothing", code=69)


@pytest.mark.parametrize(
    "arguments",
    [
        ("retain", "prices", "--messages", "9" * 30),
        ("retain", "prices", "--bytes", str(2**63)),
        ("retain", "prices", "--age", "1e300"),
        ("purge", "prices", "--before", "9" * 30),
    ],
)
def test_numbers_that_nothing_has_room_for_are_refused(
    shell: Shell, data: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """A bound that was taken was one that no export could tell."""
    verb, *rest = arguments
    shell(verb, data, *rest, code=2)

    shell("export", data, tmp_path / "export")


def test_groups_forget_a_topic_that_is_forgotten(shell: Shell, data: Path) -> None:
    """The next topic of that name has other offsets: where they were in the old one they would miss its beginning."""
    names = ["group/g", "group/g/orders", "group/g/orders.eu", "group/g/orders.eu/3", "group/orders.eu"]
    with open_log(str(data)) as log:
        log.commit([Commit(positions=[PositionUpdate(name, b"\x05", 7) for name in names])])

    shell("purge", data, "orders.eu", "--forget")

    with open_log(str(data)) as log:
        assert list(log.positions()) == ["group/g", "group/g/orders", "group/orders.eu"]


def test_a_store_must_be_there(shell: Shell, tmp_path: Path) -> None:
    """Looking at a directory makes no store of it."""
    for verb in ("info", "verify", "export", "compact"):
        shell(verb, tmp_path / "nothing", code=1)
        assert "no store here" in shell.err
    assert not (tmp_path / "nothing").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
def test_copies_are_the_owners_alone(shell: Shell, data: Path, tmp_path: Path) -> None:
    """The files of a store, of its backup, and an export, whatever the umask says."""
    before = os.umask(0)
    try:
        with open_log(str(tmp_path / "made"), create=True) as log:
            one(log, append("a", 0))
            log.enforce()
        shell("backup", data, tmp_path / "copy")
        shell("restore", tmp_path / "copy", tmp_path / "again")
        shell("export", data, tmp_path / "export")
    finally:
        os.umask(before)

    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent != data]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files if path.stat().st_mode & 0o077} == {}
    assert {"FORMAT", "lock", "reserve", "export"} <= {path.name for path in files}
