"""How records become frames."""

from __future__ import annotations

from zfabric.protocol.effects import RECORDS_PER_FRAME, Effects, Send
from zfabric.wire.records import Heartbeat, decode_envelope


def test_a_frame_holds_a_bounded_number_of_records() -> None:
    """Many records are several frames, in order, with the same number in each but the last."""
    effects = Effects(bytes(16))
    effects.tell(1, *(Heartbeat(number) for number in range(2 * RECORDS_PER_FRAME + 1)))

    frames = [action.frame for action in effects.take() if isinstance(action, Send)]

    parts = [decode_envelope(frame, 10**6)[1] for frame in frames]
    assert [len(part) for part in parts] == [RECORDS_PER_FRAME, RECORDS_PER_FRAME, 1]
    assert [record for part in parts for record in part] == [Heartbeat(n) for n in range(2 * RECORDS_PER_FRAME + 1)]
