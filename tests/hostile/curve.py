"""What CURVE costs where there is nothing else: `python -m tests.hostile.curve`, bare sockets between two processes.

Frames of 64 KiB from PUSH to PULL, plain and encrypted by turns, and handshakes one after the other. It prints what
encryption leaves of the throughput, and the receiver's CPU; nothing is asserted, as figures depend on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import zmq

SIZE = 64 * 1024
SERVER, CLIENT = zmq.curve_keypair(), zmq.curve_keypair()


@dataclass
class Run:
    """What the receiver saw."""

    frames_per_s: float
    cpu_us: float
    "Of its own, for each frame."
    handshake_us: float
    "Of its own, for each connection that greets and says one byte."


def receive(frames: int, handshakes: int, *, curve: bool) -> Run:
    """Bind, let another process connect and send, and count."""
    with zmq.Context() as context, context.socket(zmq.PULL) as pull:
        if curve:
            pull.curve_server, pull.curve_secretkey = True, SERVER[1]
        port = pull.bind_to_random_port("tcp://127.0.0.1")
        keys = [key.decode() for key in (SERVER[0], *CLIENT)] if curve else []
        argv = [sys.executable, "-m", "tests.hostile.curve", "--send", str(port), str(frames), str(handshakes), *keys]
        sender = subprocess.Popen(argv, cwd=Path(__file__).parents[2])
        pull.recv()
        began, spent = time.perf_counter(), time.process_time()
        for _ in range(frames):
            pull.recv()
        rate, cpu_s = frames / (time.perf_counter() - began), time.process_time() - spent
        spent = time.process_time()
        for _ in range(handshakes):
            pull.recv()
        greeting_s = time.process_time() - spent
        sender.wait()
    return Run(rate, cpu_s / frames * 1e6, greeting_s / handshakes * 1e6)


def send(port: str, frames: int, handshakes: int, *keys: str) -> None:
    """The other process: all frames over one connection, then a connection for each handshake."""
    with zmq.Context() as context:

        def push(data: bytes, times: int) -> None:
            with context.socket(zmq.PUSH) as socket:
                if keys:
                    socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = map(str.encode, keys)
                socket.connect(f"tcp://127.0.0.1:{port}")
                for _ in range(times):
                    socket.send(data)

        push(bytes(SIZE), frames + 1)
        for _ in range(handshakes):
            push(b"1", 1)


def main(frames: int, handshakes: int, repeat: int) -> None:
    """Measure, by turns."""
    runs = [(receive(frames, handshakes, curve=False), receive(frames, handshakes, curve=True)) for _ in range(repeat)]
    left = sorted(curve.frames_per_s / plain.frames_per_s for plain, curve in runs)
    print(f"encryption leaves {statistics.median(left):.2f} of the throughput ({left[0]:.2f} to {left[-1]:.2f})")
    for name, side in (("plain", 0), ("curve", 1)):
        cpu_us = statistics.median(run[side].cpu_us for run in runs)
        greeting_us = statistics.median(run[side].handshake_us for run in runs)
        print(f"{name}: the receiver spends {cpu_us:.0f} us of CPU on a frame, {greeting_us:.0f} us on a handshake")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--send"]:
        send(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:])
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=6000)
    parser.add_argument("--handshakes", type=int, default=500)
    parser.add_argument("--repeat", type=int, default=3)
    main(**vars(parser.parse_args()))
