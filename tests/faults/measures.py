"""The two long measurements of `python -m tests.faults.kitchen_sink --measure ...`."""

from __future__ import annotations

import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.children import Child, crew, hold, memory_kb
from tests.faults.oracle import Line
from tests.faults.proxy import Proxy
from tests.waiting import wait_until

__all__ = ["stuck", "ten_million"]

DEFAULTS = {
    "heartbeat_interval_s": 1.0,
    "peer_timeout_s": 5.0,
    "handshake_timeout_s": 3.0,
    "reconnect_interval_s": 0.1,
    "reconnect_interval_s_max": 5.0,
    "gap_settle_s": 1.0,
}


def stuck(seconds: float) -> None:
    """A publisher at full speed, one subscriber that reads and one that stops reading; default Config."""
    only = ("at-least-once",)
    with tempfile.TemporaryDirectory(prefix="zf") as folder, crew(Path(folder), Path(folder)) as team:
        publisher = team.publisher(count=1_000_000_000, chunk=1_000, subscribers=2, deliveries=only, config=DEFAULTS)
        seeds = publisher.endpoints[:1]
        fast, other = (team.subscriber(n, seeds=seeds, deliveries=only, config=DEFAULTS) for n in ("fast", "stuck"))
        fast.until_position(100_000)
        quiet = _measured(fast, 10.0)
        _print(f"quiet: {_latency(quiet)}, publisher {memory_kb(publisher.pid) // 1024} MB")
        other.command("stop")
        began, reached, memory = time.time(), fast.position(), []
        fast.measure()
        while time.time() < began + seconds:
            hold(1.0, "stuck subscriber")
            memory.append(memory_kb(publisher.pid) // 1024)
        beside = fast.measure()
        rate = (fast.position() - reached) / (time.time() - began)
        events = publisher.events("Evicted")
        told = [event["reason"] for event in other.events("Evicted")]
        _print(f"{seconds:.0f} s beside a stuck one: {_latency(beside)}, {rate / 1000:.0f} k msg/s to the other one")
        _print(f"publisher's memory each second, MB: {memory}")
        _print(f"evicted after {[round(event['at'] - began, 1) for event in events]} s; it was told: {told}")
        after = _measured(fast, 10.0)
        _print(f"after the eviction: {_latency(after)}")
        other.command("go")
        wait_until(lambda: other.events("Gap"), 120)
        publisher.command("stop")
        publisher.until("done", 60)
        fast.until_position(publisher.last("done") - 1, 60)
        team.finish()
        verdict = team.verdict(excused=["stuck"]).check(gaps=True)
        assert not fast.events("Gap")
        _print(f"{dict(verdict.delivered)} delivered, {dict(verdict.announced)} announced to the stuck one")


def ten_million(messages: int, seed: int) -> None:
    """Count everything through SIGSTOP, RST and a link that flaps, all the while at full speed."""
    choose, done = random.Random(seed), Counter[str]()
    only = ("exactly-once",)
    with tempfile.TemporaryDirectory(prefix="zf") as folder, crew(Path(folder), Path(folder)) as team:
        with Proxy(seed=seed) as proxy:
            publisher = team.publisher(count=messages, chunk=1_000, deliveries=only, via=proxy.host)
            lines = [proxy.serve(endpoint) for endpoint in publisher.endpoints]
            subscriber = team.subscriber(seeds=publisher.endpoints[:1], deliveries=only, via=proxy.host)
            lines.append(proxy.serve(subscriber.endpoints[0]))
            began = time.time()
            while subscriber.position() < messages - 1:
                assert time.time() < began + 1800, "no end in sight"
                fault = choose.choice(("SIGSTOP", "RST", "flap"))
                done[fault] += 1
                if fault == "SIGSTOP":
                    child = choose.choice((publisher, subscriber))
                    child.signal(signal.SIGSTOP)
                    hold(choose.uniform(0.5, 2.0), "SIGSTOP")
                    child.signal(signal.SIGCONT)
                elif fault == "RST":
                    proxy.reset(*lines)
                else:
                    for down in (True, False, True, False):
                        for line in lines:
                            line.blackhole = down
                        hold(0.5, "link down" if down else "link up")
                hold(choose.uniform(0.5, 2.0), "quiet")
            publisher.until("done", 60)
            seconds = time.time() - began
            team.finish()
        verdict = team.verdict(to_end=True).check()
        assert verdict.delivered.total() == messages
        closed = subscriber.last("closed")
        _print(f"{verdict.delivered.total()} messages received exactly once each, in order, in {seconds:.0f} s")
        _print(
            f"faults: {dict(done)}; batches repaired {closed['repaired']}, duplicates filtered {closed['duplicates']}"
        )


def _measured(child: Child, seconds: float) -> Line:
    child.measure()
    hold(seconds, "latencies to compare with")
    return child.measure()


def _latency(figures: Line) -> str:
    return ", ".join(f"{name} {figures[name] * 1000:.1f} ms" for name in ("p50", "p99", "max"))


def _print(line: str) -> None:
    print(line, flush=True)
