"""What the fuzz says is as strange as it should be, and the decoder's law holds for it."""

from __future__ import annotations

import random
from collections import Counter

from protocol.codec import FrameReader
from protocol.errors import RemoteProtocolError
from protocol.fields import pack_fields
from scripts.soak.mutations import wild
from tests.protocol.samples import MESSAGES

FRAMES = 4000


def test_wild_frames_are_errors_messages_or_unfinished() -> None:
    """Nothing else, whatever was done to them; most are errors, and some of each kind come out."""
    rng = random.Random(7)
    templates = [{"t": message.tag, **pack_fields(message)} for message in MESSAGES.values()]
    found: Counter[str] = Counter()
    for _ in range(FRAMES):
        reader = FrameReader()
        reader.feed(wild(rng, rng.choice(templates), templates))
        try:
            found["unfinished" if reader.next() is None else "message"] += 1
        except RemoteProtocolError as error:
            found[type(error).__name__] += 1
    assert set(found) == {"unfinished", "message", "Malformed", "TooLarge"}
    assert found["Malformed"] > FRAMES / 2
