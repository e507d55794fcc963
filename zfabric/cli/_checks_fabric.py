"""The doctor's look at the fabric itself: who is there, and why others do not become peers."""

from __future__ import annotations

from zfabric.cli._look import look_around
from zfabric.cli._options import Options
from zfabric.cli._output import count
from zfabric.cli.checks import Check, failed, ok, skipped
from zfabric.errors import FabricError
from zfabric.security.finding import find_credentials

__all__ = ["cure", "neighbours"]

NAME = "fabric"
_CURES = (
    ("this node has none", "here: `zfabric keys join`, with the line that `keys init` or `keys invite` printed there"),
    ("no key", "there: `zfabric keys join`, with the line that `keys init` or `keys invite` prints here"),
    ("not trust", "compare `zfabric keys list` on both sides, and invite who is missing or was revoked"),
    ("key", "both need the same key: compare `zfabric doctor` there, then `zfabric keys join`"),
)
_CURE = "run `zfabric doctor` there, too"


def cure(refusal: str) -> str:
    """What to do about it."""
    return next((cure for words, cure in _CURES if words in refusal), _CURE)


async def neighbours(options: Options) -> list[Check]:
    """The nodes of the fabric, and each refusal with its cure. Often only one side can know why."""
    try:
        keyed = find_credentials(options.fabric, None) is not None
        sighting = await look_around(options, "doctor")
    except (FabricError, OSError) as error:
        return [skipped(NAME, str(error))]
    checks = [failed(NAME, refusal, cure(refusal)) for refusal in sorted(set(sighting.refusals))]
    if sighting.peers or not checks:
        how = "all encrypted" if keyed else "all plain"
        there = f"{count(len(sighting.peers), 'node')}, {how}" if sighting.peers else "no other node"
        checks.append(ok(NAME, f"{options.fabric!r} has {there}"))
    return checks
