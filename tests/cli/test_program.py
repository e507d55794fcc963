"""The program around the verbs: help, usage errors, completion, what is loaded when, and terminals."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import zfabric
from tests.cli.processes import Commands, environment
from zfabric.cli import main
from zfabric.cli._exits import EXITS, Exit
from zfabric.cli._program import SECTIONS, program

VERBS = [name for verbs in SECTIONS.values() for name in verbs]
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def python(code: str) -> list[str]:
    """The words that a fresh interpreter prints."""
    command = [sys.executable, "-P", "-c", code]
    outcome = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    return outcome.stdout.split()


def test_help_loads_no_verb_and_no_library() -> None:
    """`zfabric --help` needs click and whatever `import zfabric` loads, and nothing else of weight."""
    listing = "print(*sorted(sys.modules))"
    root = set(python(f"import sys, zfabric; {listing}"))
    shown = set(python(f"import sys; from zfabric.cli import main; main(['--help']); {listing}"))

    assert not {"rich", "zeroconf", "numpy", "zmq", "msgspec"} & (shown - root)
    assert {name for name in shown if name.startswith("zfabric.cli.")} == {"zfabric.cli._exits", "zfabric.cli._program"}
    assert "zfabric.node.node" in root or "zmq" not in shown


def test_help_lists_verbs_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """The help is all that a stranger needs: each verb, and what each exit code means."""
    assert main(["--help"]) == 0

    text = capsys.readouterr().out
    for name in VERBS:
        assert f"\n  {name} " in text
    for code in EXITS:
        assert f" {int(code)}  " in text


def leaves(command: click.Command) -> Iterator[click.Command]:
    """The commands of a group, and of groups in it."""
    if isinstance(command, click.Group):
        for each in command.commands.values():
            yield from leaves(each)
    else:
        yield command


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_json(verb: str) -> None:
    """Each verb loads, explains itself and takes --json."""
    command = program.get_command(click.Context(program), verb)

    assert command is not None
    assert command.help
    for each in leaves(command):
        assert each.help
        names = {option for parameter in each.params for option in parameter.opts}
        assert "--json" in names or verb == "demo"  # whose options are those of the example


USAGE = [
    (["subb", "x"], "did you mean `sub`?"),
    (["sub"], "Missing argument"),
    (["sub", "sensor.>"], "`#` any number of words"),
    (["sub", "a", "--raw", "--json"], "exclude each other"),
    (["sub", "a", "--timeout", "-1"], "-1 is not above 0"),
    (["pub", "a", "--rate", "nan"], "nan is not a number"),
    (["store", "retain", "x", "a", "--age", "nan"], "nan is not a number"),
    (["pub", "a.*", "1"], "is a wildcard"),
    (["pub", "a", "1", "-H", "novalue"], "is not NAME=VALUE"),
    (["pub", "a", "1", "--text", "--raw"], "exclude each other"),
    (["nodes", "--seed", "192.168.0.7"], "is not an address such as tcp://"),
    (["nodes", "--seed", "tcp://192.168.0.7"], "is not an address such as tcp://"),
    (["nodes", "--seed", "tcp://192.168.0.7:70000#ada"], "is not an address such as tcp://"),
    (["nodes", "--interface", "nope0"], "no interface 'nope0' here"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE)
def test_usage_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong command line exits with 2 and says what is wrong with it, in one line and without a traceback."""
    assert main(arguments) == Exit.USAGE

    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert "Traceback" not in shown.err


def test_documentation_has_the_same_table() -> None:
    """docs/cli.md names every verb and every exit code with the words of the help."""
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")

    for code, meaning in EXITS.items():
        assert f"| {int(code)} | {meaning} |" in text
    for name in VERBS:
        assert f"## zfabric {name}\n" in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each shell gets a script that asks this program."""
    assert main(["completion", shell]) == 0

    assert f"_ZFABRIC_COMPLETE={shell}_complete" in capsys.readouterr().out


@pytest.mark.slow
async def test_topics_are_completed(cli: Commands, node: zfabric.Node) -> None:
    """The Tab key offers the topics that are published now, and verbs without looking at any fabric."""
    node.publisher("plant.temp")
    node.publisher("other")

    async def complete(words: str, index: str) -> str:
        outcome = await cli.run(_ZFABRIC_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=index)
        return outcome.out

    async with asyncio.timeout(30):  # the budget is short: a busy machine may need several tries
        while (topics := await complete("zfabric sub pl", "2")) == "":
            continue

    assert topics.split() == ["plain,plant.temp"]
    assert (await complete("zfabric topi", "1")).split() == ["plain,topics"]


def on_terminal(arguments: list[str], **changes: str) -> tuple[int, str]:
    """Run a command with a terminal for stdout; returns its exit code and what it showed."""
    here, there = pty.openpty()
    command = [sys.executable, "-P", "-m", "zfabric", *arguments]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=there, stderr=subprocess.DEVNULL, env=environment(**changes)
    )
    os.close(there)
    shown = b""
    try:
        while chunk := os.read(here, 65_536):
            shown += chunk
    except OSError:  # how Linux tells that the other end is closed
        pass
    finally:
        os.close(here)
        process.kill()
        process.wait()
    return process.returncode, shown.decode()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
async def test_on_a_terminal(node: zfabric.Node) -> None:
    """On a terminal sub shows time, topic and value, and others draw tables; names cannot give orders to it."""
    publisher = node.publisher("plant.temp")
    run = asyncio.to_thread
    showing = asyncio.gather(
        run(on_terminal, ["sub", "plant.temp", "--count", "1", "--timeout", "30"]),
        run(on_terminal, ["sub", "plant.temp", "--count", "1", "--timeout", "30"], NO_COLOR="1"),
        run(on_terminal, ["topics"]),
        run(on_terminal, ["hz", "--count", "2"]),
        run(on_terminal, ["top", "--count", "2"]),
    )
    while not showing.done():
        publisher.publish_nowait({"c": 21.5, "evil": "\x1b[2J\u202e"})
        await asyncio.wait([showing], timeout=0.05)

    (code, colored), (_, plain), (_, topics), (_, hz), (_, top) = showing.result()

    assert code == 0
    line = ESCAPE.sub("", colored).strip()
    assert re.fullmatch(r'\d\d:\d\d:\d\d\.\d{3}  plant\.temp  \{"c": 21\.5, "evil": "\\u001b\[2J\\u202e"\}', line)
    assert "\x1b[36mplant.temp" in colored
    assert "\x1b" not in plain
    assert "\x1b" in topics and re.search(r"plant\.temp +friend", ESCAPE.sub("", topics))
    assert "MESSAGES/S" in hz and "plant.temp" in hz
    assert all(part in top for part in ("NODE", "friend", "plant.temp", "QUEUE"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
async def test_replies_and_dead_letters_on_a_terminal(node: zfabric.Node) -> None:
    """What a service or a worker says cannot give orders to the terminal of who asks; lines and tabs stay."""

    @node.service("evil")
    async def evil() -> str:
        return "\x1b[2Ja\n\tb"

    async with node.puller("jobs", ack="manual") as puller:
        await node.pusher("jobs").push("x")
        await (await puller.receive(timeout=30)).reject("because \x1b[2J")

    run = asyncio.to_thread
    (replied, reply), (listed, letters) = await asyncio.gather(
        run(on_terminal, ["request", "evil"]), run(on_terminal, ["dead", "list", "jobs"])
    )

    assert (replied, reply) == (0, "\\u001b[2Ja\r\n\tb\r\n")
    assert listed == 0 and "because \\u001b[2J" in letters and "\x1b" not in letters


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors of POSIX")
@pytest.mark.parametrize("arguments", [["pub", "a"], ["keys", "list"], ["sub", "a", "--timeout", "0.1"]])
def test_streams_may_be_closed(arguments: list[str]) -> None:
    """As some who start programs leave them: nothing comes from there, and nothing is broken by it."""
    closing = "import os, sys; os.close(0), os.close(1); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    command = [sys.executable, "-c", closing, "-P", "-m", "zfabric", *arguments]
    done = subprocess.run(command, stderr=subprocess.PIPE, env=environment(), timeout=30, check=False)

    assert (done.returncode in (0, 69, 75), b"Traceback" in done.stderr) == (True, False), done.stderr


def test_the_examples_are_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the examples are not installed, `demo` says how to get them."""
    monkeypatch.setitem(sys.modules, "zfabric.examples", None)
    monkeypatch.delitem(sys.modules, "zfabric.examples.telemetry", raising=False)

    assert main(["demo"]) == 1

    assert "pip install 'zfabric[demo]'" in capsys.readouterr().err


@pytest.mark.slow
async def test_errors_have_a_traceback_only_when_asked(cli: Commands) -> None:
    """`python -m zfabric` is the command, and its errors come without a traceback unless -vv asks for one."""
    quiet, loud = await asyncio.gather(
        cli.run("nodes", "--interface", "nope0"), cli.run("nodes", "--interface", "nope0", "-vv")
    )

    assert quiet.code == loud.code == 2
    assert quiet.err.startswith("error: no interface 'nope0' here; there are: loopback")
    assert "Traceback" not in quiet.err
    assert "Traceback" in loud.err
