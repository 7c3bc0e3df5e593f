"""How bytes arrive does not matter."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.codec import FrameReader, encode
from protocol.errors import Malformed, TooLarge
from protocol.messages import Message, Ping
from tests.protocol.golden import read_golden
from tests.protocol.samples import MESSAGES, same
from tests.protocol.strategies import messages
from tests.protocol.test_decoder_law import frame, outcome

STREAM = b"".join(read_golden("frames.txt").values())


def check_all(found: list[Message]) -> None:
    """Every sample, in order."""
    assert len(found) == len(MESSAGES)
    assert all(map(same, found, MESSAGES.values()))


def test_byte_at_a_time_equals_whole_feeding() -> None:
    """The same messages at any pace."""
    for pieces in ([STREAM], [STREAM[i : i + 1] for i in range(len(STREAM))]):
        found, error, pending = outcome(pieces)
        assert (error, pending) == (None, 0)
        check_all(found)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
@settings(max_examples=50)
def test_any_chunking_equals_whole_feeding(cuts: list[int]) -> None:
    """Pieces of any size, empty ones too."""
    edges = [0, *sorted(cuts), len(STREAM)]
    found, error, pending = outcome([STREAM[a:b] for a, b in pairwise(edges)])
    assert (error, pending) == (None, 0)
    check_all(found)


@given(st.lists(messages, max_size=4), st.binary(max_size=40), st.integers(0, 1 << 32))
@settings(max_examples=50)
def test_hostile_streams_end_the_same_at_any_pace(said: list[Message], rubbish: bytes, seed: int) -> None:
    """Messages, then rubbish: the messages come out, then the same error or the same need for more."""
    data = b"".join(map(encode, said)) + rubbish
    rng = random.Random(seed)
    cuts = sorted(rng.sample(range(len(data) + 1), min(8, len(data))))
    edges = [0, *cuts, len(data)]
    whole = outcome([data])
    pieces = outcome([data[a:b] for a, b in pairwise(edges)])
    assert whole[1:] == pieces[1:]
    assert len(whole[0]) == len(pieces[0]) >= len(said)
    assert all(map(same, whole[0], pieces[0]))


def test_a_memoryview_may_be_fed() -> None:
    """What is fed is copied; the feeder may use its buffer again."""
    buffer = bytearray(encode(Ping(7)))
    reader = FrameReader()
    reader.feed(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert reader.next() == Ping(7)


def test_pending_counts_the_unfinished_frame() -> None:
    """0 between frames: a stream that ends then ended cleanly."""
    reader = FrameReader()
    data = encode(Ping(1))
    assert reader.pending == 0
    reader.feed(data + data[:6])
    assert reader.next() == Ping(1)
    assert reader.next() is None
    assert reader.pending == 6


def test_a_broken_stream_stays_broken() -> None:
    """After an error the same error comes again: nothing after it is taken for a message."""
    for bad, kind in ((frame(b"\xc0"), Malformed), (b"\xff\xff\xff\xff", TooLarge)):
        reader = FrameReader()
        reader.feed(bad + encode(Ping(1)))
        for _ in range(2):
            with pytest.raises(kind):
                reader.next()


def test_regression_feeding_goes_on_while_an_error_is_handled() -> None:
    """An error that is still held (its traceback with it) does not lock the reader's buffer."""
    reader = FrameReader()
    reader.feed(frame(b"\xc0"))
    with pytest.raises(Malformed) as caught:
        reader.next()
    assert caught.value.__traceback__ is not None
    reader.feed(b"more")


@given(st.integers(0, 300), st.integers(0, 300))
def test_the_limit_is_of_the_body(limit: int, size: int) -> None:
    """A frame of exactly the limit may come; one byte more is refused by its length alone."""
    reader = FrameReader(limit)
    reader.feed(size.to_bytes(4, "big"))
    if size > limit:
        with pytest.raises(TooLarge):
            reader.next()
    elif size:
        assert reader.next() is None
