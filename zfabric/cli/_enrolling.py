"""The two ends of an invitation: one waits for a newcomer, the other comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import zmq

from zfabric.cli._exits import Exit, Stop
from zfabric.security.enrolment import (
    MESSAGE_BYTES_MAX,
    Done,
    Enrol,
    Enrolled,
    Enrolment,
    Invitation,
    Refused,
    decode,
    encode,
)

__all__ = ["Listener", "enrol"]

ENROL_BYTES_MAX = 1024
"What strangers may send to an inviter."
ANSWER_MS = 3000
"How long one address of the inviter is tried."
LINGER_S = 10.0
"How long an inviter waits for the newcomer to say that it is done."


class Listener:
    """Where a newcomer finds its inviter; a context manager."""

    def __init__(self, addresses: Sequence[str], port: int, public: bytes, secret: bytes) -> None:
        """Raises OSError when no address can be bound."""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        options = {
            zmq.LINGER: 500,
            zmq.MAXMSGSIZE: ENROL_BYTES_MAX,
            zmq.HANDSHAKE_IVL: 3000,
            zmq.RCVHWM: 100,
            zmq.IPV6: 1,
            zmq.CURVE_SERVER: 1,
        }
        for option, value in options.items():
            self._socket.setsockopt(option, value)
        self._socket.curve_publickey, self._socket.curve_secretkey = public, secret
        try:
            self.endpoints = [self._bind(address, port) for address in addresses]
        except BaseException:
            self.close()
            raise

    def _bind(self, address: str, port: int) -> str:
        host = f"[{address}]" if ":" in address else address
        self._socket.bind(f"tcp://{host}:{port or '*'}")
        bound = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        return f"tcp://{host}:{bound.rpartition(':')[2]}"

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the addresses."""
        self._context.destroy()

    def serve(self, enrolment: Enrolment, timeout_s: float, refused: Callable[[str], None]) -> bool:
        """Return once the newcomer has joined; False after `timeout_s` seconds. `refused(reason)` hears of others."""
        deadline = time.monotonic() + timeout_s
        while not enrolment.done and (left_s := deadline - time.monotonic()) > 0:
            if not self._socket.poll(int(left_s * 1000) + 1):
                continue
            route, *frames = self._socket.recv_multipart()
            told, had_none = set(enrolment.refused), not enrolment.public
            answer = enrolment.answer(b"".join(frames), time.time())
            if answer is not None:
                self._socket.send_multipart([route, answer], zmq.DONTWAIT)
            for reason in enrolment.refused.keys() - told:  # each is told once: strangers may go on and on
                refused(reason)
            if had_none and enrolment.public:
                deadline = time.monotonic() + LINGER_S
        return bool(enrolment.public)


def enrol(invitation: Invitation, public: str, signing: str, settle: Callable[[dict[str, str]], None]) -> None:
    """Show the inviter our public keys, and `settle` with what it says. Raises Stop, or what `settle` raises."""
    with zmq.Context() as context:
        for endpoint in invitation.endpoints:
            with context.socket(zmq.DEALER) as socket:
                for option, value in {zmq.LINGER: 500, zmq.MAXMSGSIZE: MESSAGE_BYTES_MAX, zmq.IPV6: 1}.items():
                    socket.setsockopt(option, value)
                socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
                socket.curve_serverkey = invitation.key.encode()
                socket.connect(endpoint)
                socket.send(encode(Enrol(invitation.token, public, signing)))
                if not socket.poll(ANSWER_MS):
                    socket.linger = 0
                    continue
                answer = decode(socket.recv())
                if isinstance(answer, Refused):
                    raise Stop(Exit.REFUSED, f"the inviter refuses: {answer.reason}; ask for another invitation")
                if isinstance(answer, Enrolled):
                    settle(answer.files)
                    socket.send(encode(Done(invitation.token)))
                    return
    addresses = ", ".join(invitation.endpoints)
    raise Stop(
        Exit.NOBODY,
        f"nobody answers at {addresses}: the invitation was used or has expired, the inviter no longer waits, or this "
        "machine cannot reach it (then ask for `zfabric keys invite --offline`)",
    )
