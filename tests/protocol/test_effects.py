"""How records become frames."""

from __future__ import annotations

import pytest

from zfabric.protocol import effects
from zfabric.wire.records import Heartbeat, decode_envelope


def test_a_frame_holds_a_bounded_number_of_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many records are several frames, in order, with the same number in each but the last."""
    assert effects.RECORDS_PER_FRAME == 1000
    monkeypatch.setattr(effects, "RECORDS_PER_FRAME", 10)
    queued = effects.Effects(bytes(16))
    queued.tell(1, *(Heartbeat(number) for number in range(21)))

    frames = [action.frame for action in queued.take() if isinstance(action, effects.Send)]

    parts = [decode_envelope(frame, 100)[1] for frame in frames]
    assert [len(part) for part in parts] == [10, 10, 1]
    assert [record for part in parts for record in part] == [Heartbeat(number) for number in range(21)]
