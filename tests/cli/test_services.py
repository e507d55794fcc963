"""`zfabric request`, `serve` and `services`."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import zfabric
from tests.cli.processes import Commands
from tests.waiting import wait_until_async

ECHO = f"{shlex.quote(sys.executable)} -c 'print(input())'"


def script(code: str) -> str:
    """A command line that runs some Python."""
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"


async def test_a_reply_is_printed(cli: Commands, node: zfabric.Node) -> None:
    """Text as text, all else as JSON; arguments are JSON where they can be."""

    @node.service("math.add")
    async def add(a: int, b: int = 0) -> int:
        return a + b

    @node.service("text")
    async def text(value: str, loud: bool = False) -> str:
        return value.upper() if loud else value

    assert (await cli.run("request", "math.add", "1", "2")).out == "3\n"
    assert (await cli.run("request", "text", "grün", "-o", "loud=true")).out == "GRÜN\n"
    assert (await cli.run("request", "text", "7", "--text")).out == "7\n"
    assert (await cli.run("request", "math.add", "5", "--json")).records == [{"service": "math.add", "value": 5}]


async def test_the_exit_code_tells_what_went_wrong(cli: Commands, node: zfabric.Node) -> None:
    """69 nobody, 75 too late, 1 the service failed, 2 the command line."""

    @node.service("stuck")
    async def stuck() -> None:
        await asyncio.Event().wait()

    @node.service("strict", version=2)
    async def strict(a: int) -> int:
        return a

    nobody, late, wrong, old, usage = await asyncio.gather(
        cli.run("request", "nothing", "--timeout", "1"),
        cli.run("request", "stuck", "--timeout", "3"),
        cli.run("request", "strict", "x", "--version", "2"),
        cli.run("request", "strict", "1", "--timeout", "3"),
        cli.run("request", "stuck", "--all", "--stream"),
    )

    assert [outcome.code for outcome in (nobody, late, wrong, old, usage)] == [69, 75, 1, 69, 2]
    assert "zfabric services" in nobody.err
    assert "argument 'a': Expected `int`" in wrong.err
    assert "version 2" in old.err


async def test_streams_and_replies_of_all(cli: Commands, node: zfabric.Node) -> None:
    """One line each."""

    @node.service("count")
    async def count(to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    async with zfabric.Node("other", config=zfabric.Config(mdns=False)) as other:
        for name, provider in (("friend", node), ("other", other)):

            @provider.service("who")
            async def who(name: str = name) -> str:
                if name == "other":
                    raise ValueError("not me")
                return name

        streamed, both = await asyncio.gather(
            cli.run("request", "count", "3", "--stream"), cli.run("request", "who", "--all", "--json")
        )

    assert streamed.out == "0\n1\n2\n"
    assert both.code == 1
    assert {record["source"]: record.get("value") for record in both.records} == {"friend": "friend", "other": None}


async def test_a_command_serves(cli: Commands, node: zfabric.Node) -> None:
    """Arguments on stdin, the reply on stdout, an error for an exit code."""
    serving = await cli.start("serve", "echo", "--command", ECHO, "--json")
    failing = await cli.start("serve", "fail", "--command", script("import sys; sys.exit('broken')"))
    await node.wait_for_service("echo", timeout=20)
    await node.wait_for_service("fail", timeout=20)

    assert await node.request("echo", 1, {"a": "b"}) == [1, {"a": "b"}]
    with pytest.raises(zfabric.RemoteError, match="exited with 1: broken"):
        await node.request("fail")
    listed = await cli.run("services", "--json", "--wait", "3")
    assert [record["service"] for record in listed.records] == ["echo", "fail"]
    assert "echo" in (await cli.run("services", "*", "--wait", "3")).out
    assert (await cli.run("services", "x")).code == 69
    serving.process.send_signal(signal.SIGTERM)
    failing.process.send_signal(signal.SIGINT)
    assert (await serving.end()).records[0]["error"] is None
    assert (await failing.end()).code == 130


async def test_a_command_is_killed_with_its_request(cli: Commands, node: zfabric.Node) -> None:
    """And the reply of one that runs is given before the server ends."""
    serving = await cli.start(
        "serve", "wait", "--command", script("import time; print(1); time.sleep(float(input()[1:-1]))")
    )
    await node.wait_for_service("wait", timeout=20)

    with pytest.raises(zfabric.RequestTimeout):
        await node.request("wait", 1000, timeout=0.5)
    reply = asyncio.create_task(node.request("wait", 0.5))
    await asyncio.sleep(0)
    serving.process.send_signal(signal.SIGTERM)
    outcome = await serving.end()

    assert outcome.code in (143, 0)
    result = await asyncio.gather(reply, return_exceptions=True)
    assert result[0] == 1 or isinstance(result[0], zfabric.NoResponders)


async def test_a_command_is_killed_with_all_that_it_started(cli: Commands, node: zfabric.Node, tmp_path: Path) -> None:
    """Or it would hold up its place; Ctrl-C, which a terminal sends to a whole process group, does not reach it."""
    started = tmp_path / "started"
    child = f"import time; open({str(started)!r}, 'w').close(); time.sleep(1000)"
    code = (
        "import os, subprocess, sys\n"
        f"if '1' in input(): subprocess.run([sys.executable, '-c', {child!r}])\n"
        "print(os.getpgrp())"
    )
    serving = await cli.start("serve", "group", "--concurrency", "1", "--command", script(code))
    await node.wait_for_service("group", timeout=20)

    hanging = asyncio.create_task(node.request("group", 1, timeout=60))
    await wait_until_async(started.exists)
    hanging.cancel()

    assert await node.request("group", timeout=20) != os.getpgid(serving.process.pid)


async def test_a_program_that_is_not_there_is_told_at_once(cli: Commands) -> None:
    """Before anything is provided."""
    outcome = await cli.run("serve", "x", "--command", "no-such-program-here")

    assert outcome.code == 2
    assert "no program" in outcome.err


async def test_what_cannot_be_asked_is_the_command_line_s_fault(cli: Commands, node: zfabric.Node) -> None:
    """No traceback, and nothing is asked."""

    @node.service("echo")
    async def echo(value: str = "") -> str:
        return value

    for arguments in (["-o", "timeout=5"], ["-o", "version=2"]):
        asked = await cli.run("request", "echo", *arguments)
        assert asked.code == 2, asked.err
        assert "option of requests" in asked.err
    asked = await cli.run("request", "echo", "caf\udce9")
    assert asked.code == 1
    assert "not UTF-8 text: give JSON or text" in asked.err  # there is no --raw
    assert "Traceback" not in asked.err
