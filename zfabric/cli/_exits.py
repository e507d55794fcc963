"""Exit codes, and how an exception becomes one of them and a line that a user can act on."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["EXITS", "Exit", "Stop", "verdict"]


class Exit(IntEnum):
    """What the process's exit code means; the numbers above 2 are those of sysexits.h and of shells."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOBODY = 69
    TIMED_OUT = 75
    REFUSED = 77
    INTERRUPTED = 130
    TERMINATED = 143


EXITS = {
    Exit.OK: "done",
    Exit.FAILED: "failed; the reason is on stderr",
    Exit.USAGE: "the command line is wrong",
    Exit.NOBODY: "nobody is there: no node, publisher or subscriber that matches",
    Exit.TIMED_OUT: "timed out before all that was asked for had come",
    Exit.REFUSED: "refused: by a peer, or by the rule against plain traffic on a network",
    Exit.INTERRUPTED: "ended by Ctrl-C",
    Exit.TERMINATED: "ended by SIGTERM",
}


class Stop(Exception):
    """Ends a verb with a code and a message for the user."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


def verdict(error: Exception) -> tuple[Exit, str] | None:
    """The exit code and the message for an expected error; None for a bug."""
    from zfabric import errors

    match error:
        case Stop():
            return error.code, str(error)
        case errors.InsecureInterface():
            return Exit.REFUSED, (
                f"interface {error.interface!r} leaves this machine: "
                "make a key with `zfabric keys init FABRIC` (on the other machines `zfabric keys join`), "
                "or add --insecure to accept plain traffic from anybody on that network"
            )
        case errors.InvalidKey():
            return Exit.REFUSED, str(error)
        case errors.InterfaceNotFound() | errors.TopicError() | errors.SelectorError():
            return Exit.USAGE, str(error)
        case errors.NoSubscribers():
            return Exit.NOBODY, f"{error}: `zfabric topics` shows who listens to what"
        case errors.NoResponders():
            return Exit.NOBODY, f"{error}: `zfabric services` shows what there is"
        case TimeoutError():
            return Exit.TIMED_OUT, str(error) or "timed out: give it longer with --timeout"
        case errors.FabricError() | OSError():
            return Exit.FAILED, str(error)
        case _:
            return None
