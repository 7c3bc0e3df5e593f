"""The decoder's law: any bytes give messages, "need more", or RemoteProtocolError; nothing else."""

from __future__ import annotations

import gc
import hashlib
import struct
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.codec import LENGTH_BYTES, FrameReader, decode
from protocol.errors import Malformed, RemoteProtocolError, TooLarge
from protocol.fields import pack_fields
from protocol.messages import BY_TAG, Message
from protocol.model import parse_manifest
from protocol.records import parse_record
from protocol.unpack import unpack
from tests.protocol.golden import read_golden
from tests.protocol.samples import MESSAGES, NOW, same

FRAMES = read_golden("frames.txt")
SIGNED = read_golden("signed.txt")
MIB = limits.MIB


def frame(body: bytes) -> bytes:
    """`body` with its length before it."""
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def outcome(pieces: list[bytes]) -> tuple[list[Message], type[RemoteProtocolError] | None, int]:
    """What a reader makes of `pieces`: messages, the error that ended them, bytes left. Holds the law."""
    reader = FrameReader()
    messages = []
    for piece in pieces:
        reader.feed(piece)
        try:
            while (message := reader.next()) is not None:
                assert isinstance(message, Message)
                messages.append(message)
        except RemoteProtocolError as error:
            return messages, type(error), 0
    return messages, None, reader.pending


def refused(body: bytes) -> type[RemoteProtocolError]:
    """The error that decoding `body` raises."""
    with pytest.raises(RemoteProtocolError) as caught:
        decode(body)
    return caught.type


def plain(name: str) -> dict[str, Any]:
    """The msgpack map of a sample."""
    return {"t": MESSAGES[name].tag, **pack_fields(MESSAGES[name])}


def with_changes(name: str, **changes: Any) -> bytes:
    """The body of a sample with other values in some fields."""
    return bytes(msgpack.packb(plain(name) | changes))


@given(st.binary(max_size=300))
@settings(max_examples=500)
def test_random_bytes(data: bytes) -> None:
    """Random bytes, as a stream and as the body of a frame."""
    outcome([data])
    outcome([frame(data)])


@pytest.mark.parametrize("name", FRAMES)
def test_every_truncation(name: str) -> None:
    """A frame cut anywhere needs more; a body cut anywhere is Malformed."""
    golden = FRAMES[name]
    for size in range(len(golden)):
        assert outcome([golden[:size]]) == ([], None, size)
        if size >= LENGTH_BYTES:
            assert refused(golden[LENGTH_BYTES:size]) is Malformed


@pytest.mark.parametrize("name", FRAMES)
def test_every_single_bit_flip(name: str) -> None:
    """A flipped bit gives another message, "need more" or an error; a peer never makes us raise."""
    golden = FRAMES[name]
    for bit in range(len(golden) * 8):
        flipped = bytearray(golden)
        flipped[bit // 8] ^= 1 << bit % 8
        messages, error, pending = outcome([bytes(flipped)])
        assert error is not None or pending or not same(messages[0], MESSAGES[name])


@pytest.mark.parametrize("name", FRAMES)
def test_bytes_after_the_message(name: str) -> None:
    """A body is one message and nothing after it."""
    assert refused(FRAMES[name][LENGTH_BYTES:] + b"\xc0") is Malformed


ODD_VALUES: list[Any] = [
    None, True, False, -1, 0, 1 << 63, (1 << 64) - 1, -(1 << 63), 1.5, -0.0, float("nan"), float("inf"),
    float("-inf"), "", "x", "x" * 5000, b"", b"x" * 5000, [], [1], [[]], {}, {"a": 1}, {b"a": 1},
    [1, 2], [2, 1], [-1, 5], [0, 1 << 20], ["0", 1], [None] * 3000, msgpack.ExtType(5, b"abc"),
    msgpack.Timestamp(0), {"dtype": "f32", "shape": [1], "codec": "raw", "data": b""},
]  # fmt: skip


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value inside `value` stands."""
    found = [path] if path else []
    if isinstance(value, dict):
        entries: list[tuple[Any, Any]] = list(value.items())
    else:
        entries = list(enumerate(value)) if isinstance(value, list) else []
    for key, entry in entries:
        found += paths(entry, (*path, key))
    return found


@pytest.mark.parametrize("name", MESSAGES)
def test_right_tags_and_wrong_field_types(name: str) -> None:
    """At every place in every message, every odd value gives a message or RemoteProtocolError."""
    body = FRAMES[name][LENGTH_BYTES:]
    for path in paths(msgpack.unpackb(body)):
        for odd in ODD_VALUES:
            value = msgpack.unpackb(body)
            target = value
            for key in path[:-1]:
                target = target[key]
            target[path[-1]] = odd
            outcome([frame(msgpack.packb(value))])


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_has_exactly_its_fields(name: str) -> None:
    """A field missing or a field too many is Malformed: what is not understood is not half-obeyed."""
    assert refused(with_changes(name, surprise=1)) is Malformed
    for field in plain(name):
        value = plain(name)
        del value[field]
        assert refused(msgpack.packb(value)) is Malformed


structures = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=8)
    | st.binary(max_size=8) | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=4)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.slow
@given(st.data())
@settings(max_examples=500)
def test_random_structures_with_right_tags_and_names(data: st.DataObject) -> None:
    """The names of a message's fields, and anything at all in them."""
    tag = data.draw(st.sampled_from(sorted(BY_TAG)))
    value: dict[str, Any] = {"t": tag}
    for field in BY_TAG[tag].__dataclass_fields__:
        value[field] = data.draw(structures)
    outcome([frame(msgpack.packb(value))])


@pytest.mark.parametrize(
    "opener", [b"\x91", b"\x81\xa1a", b"\xdd\x00\x00\x00\x01", b"\xdf\x00\x00\x00\x01\xa1a"]
)
@pytest.mark.parametrize("depth", [10, 65, 1000, 100_000])
def test_deep_nesting(opener: bytes, depth: int) -> None:
    """Lists in lists, maps in maps: Malformed, never a RecursionError."""
    assert refused(opener * depth + b"\xc0") is Malformed
    assert refused(opener * depth) is Malformed


@pytest.mark.parametrize(
    "body",
    [
        b"\xdd\xff\xff\xff\xff",  # a list of 2**32 - 1
        b"\xdc\xff\xff",
        b"\xdf\xff\xff\xff\xff",  # a map
        b"\xde\xff\xff",
        b"\xc6\xff\xff\xff\xff",  # bytes
        b"\xdb\xff\xff\xff\xff",  # text
        b"\xc9\xff\xff\xff\xff\x01",  # an extension
        b"\x82\xa1t\xa4step\xa6inputs\xc6\xff\xff\xff\xff",
        b"\xdd\x00\x00\x10\x00" * 1000,  # as long as allowed, a thousand deep
    ],
)
def test_huge_declared_lengths_cost_nothing(body: bytes) -> None:
    """A length is only believed as far as its bytes are there; nothing of its size is allocated."""
    assert peak_bytes(lambda: refused(body)) < (40 * MIB if len(body) > 100 else MIB)


def test_a_huge_frame_is_refused_when_its_length_is_read() -> None:
    """Four bytes are enough to refuse a frame above the limit, and nothing is set aside for it."""

    def read(limit: int, size: int) -> FrameReader:
        reader = FrameReader(limit)
        reader.feed(size.to_bytes(4, "big"))
        return reader

    for limit in (100, limits.CONTROL_FRAME_BYTES, limits.FRAME_BYTES):
        assert read(limit, limit).next() is None
        with pytest.raises(TooLarge):
            read(limit, limit + 1).next()
    assert peak_bytes(lambda: read(limits.FRAME_BYTES, limits.FRAME_BYTES).next()) < MIB


@pytest.mark.slow
def test_the_tensors_size_is_checked_before_anything_is_made_of_it() -> None:
    """Shapes whose product is absurd are refused by arithmetic."""
    for shape in ([1 << 26, 1 << 26, 1 << 26], [1 << 62], [1 << 26, 1], [0, -1]):
        tensor = {"dtype": "f32", "shape": shape, "codec": "raw", "data": b""}
        body = with_changes("step", inputs=tensor)
        assert peak_bytes(lambda body=body: refused(body)) < MIB


def test_regression_small_values_do_not_become_large_objects() -> None:
    """A frame of empty lists (or maps) takes one byte each on the wire and some sixty in memory."""
    for empty in (b"\x90", b"\x80"):
        rows = b"\xdc\x10\x00" + empty * 4096
        body = b"\xdc\x03\xff" + rows * 1023  # 4 MiB; 290 MiB if every list is made
        assert peak_bytes(lambda body=body: refused(body)) < 10 * MIB


def test_extension_types() -> None:
    """No extension type is ever built, a timestamp neither."""
    for packed in (b"\xd4\x05x", b"\xd6\xff\x00\x00\x00\x00", b"\xc7\x00\x05", b"\xc7\x0c\xff" + bytes(12)):
        assert refused(b"\x82\xa1t\xa4ping\xa5nonce" + packed) is Malformed
        assert refused(packed) is Malformed


def test_duplicate_keys() -> None:
    """A key twice is Malformed: which one counts is not left to the reader, at any depth."""
    assert refused(b"\x83\xa1t\xa4ping\xa5nonce\x01\xa5nonce\x02") is Malformed
    assert refused(b"\x83\xa1t\xa5close\xa1t\xa4ping\xa5nonce\x01") is Malformed
    tensor = b"\x85\xa5dtype\xa3i32\xa5shape\x91\x00\xa5codec\xa3raw\xa4data\xc4\x00\xa4data\xc4\x00"
    with pytest.raises(Malformed, match="twice"):
        unpack(tensor, 10)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), -1.0, 1e10, True, "1", None])
def test_a_time_is_a_finite_number_in_its_range(number: Any) -> None:
    """NaN compares false with everything; it does not slip through a range check."""
    assert refused(with_changes("ack", queue_ms=number)) is Malformed


def test_short_floats_and_integers_are_numbers() -> None:
    """Another implementation may send a float in 4 bytes, or a whole number as an integer."""
    body = with_changes("ack").replace(b"\xcb" + struct.pack(">d", 0.5), b"\xca" + struct.pack(">f", 0.5))
    assert decode(body) == MESSAGES["ack"]
    assert decode(with_changes("ack", compute_ms=12)).compute_ms == 12.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", [-1, 1.0, True, (1 << 31) + 1, (1 << 64) - 1, "1", b"1", None])
def test_a_step_number_is_a_bounded_integer(number: Any) -> None:
    """msgpack's integers end at 64 bits; a number ends far below, and True is none."""
    assert issubclass(refused(with_changes("ping", nonce=number)), RemoteProtocolError)


def test_integers_above_64_bits_do_not_exist() -> None:
    """msgpack has no such integer; what would stand for one is an extension and refused."""
    with pytest.raises(OverflowError):
        msgpack.packb(1 << 64)
    assert refused(b"\x82\xa1t\xa4ping\xa5nonce\xc7\x09\x01" + b"\xff" * 9) is Malformed


@pytest.mark.parametrize(
    "text",
    [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xed\xa0\x80\xed\xb0\x80", b"\xc0\x80", b"\xf5\x80\x80\x80"],
    ids=["byte", "cut", "surrogate", "surrogate pair", "overlong", "beyond"],
)
def test_text_is_utf8(text: bytes) -> None:
    """No other encoding, no surrogates, in values, tags and keys."""
    packed = bytes([0xA0 | len(text)]) + text
    assert refused(b"\x82\xa1t\xa5file?\xa4name" + packed) is Malformed
    assert refused(b"\x81\xa1t" + packed) is Malformed
    assert refused(b"\x82\xa1t\xa5close" + packed + b"\x01") is Malformed


def test_text_and_bytes_above_their_limits_are_too_large() -> None:
    """The error says which of the two it was: sense or size."""
    assert refused(with_changes("error", code="x" * 65)) is TooLarge
    assert refused(with_changes("map", records=[b"x" * (limits.RECORD_BYTES + 1)])) is TooLarge
    assert refused(with_changes("file", data=bytes(limits.FILE_CHUNK_BYTES + 1))) is TooLarge


@pytest.mark.parametrize("body", [b"", b"\xc0", b"\x90", b"\x80", b"\xa1t", b"\x81\x01\x02", b"\x81\x90\x01"])
def test_a_frame_holds_one_map_with_a_known_tag(body: bytes) -> None:
    """Anything else at the top, keys that are no text included, is Malformed."""
    assert refused(body) is Malformed


@pytest.mark.parametrize("tag", ["", "OPEN", "open ", "x" * 1000, 1, None, [], {}, b"open", True])
def test_unknown_tags(tag: Any) -> None:
    """Tags of any type and length that name no message."""
    assert refused(msgpack.packb({"t": tag})) is Malformed


@given(st.binary(max_size=200))
def test_records_keep_the_law(data: bytes) -> None:
    """Announcements from strangers: random bytes are refused with a RemoteProtocolError."""
    with pytest.raises(RemoteProtocolError):
        parse_record(data, NOW)


@pytest.mark.parametrize(
    "data", [b"", b"\xc0", b"\x94\x01\xa0\xc4\x00\xc4\x00", b"\x91" * 5000, bytes(20_000)]
)
def test_records_of_odd_shapes_keep_the_law(data: bytes) -> None:
    """The same for empty, deep, long and nearly right ones."""
    with pytest.raises(RemoteProtocolError):
        parse_record(data, NOW)


@given(structures)
def test_manifests_keep_the_law(value: Any) -> None:
    """Whoever announces a digest chooses the bytes that hash to it; those are strangers' bytes too."""
    for data in (msgpack.packb(value), msgpack.packb([1, 2, 64, 256, 512, value, value])):
        with pytest.raises(RemoteProtocolError):
            parse_manifest(data, hashlib.sha256(data).digest())


def peak_bytes(action: Any) -> int:
    """The most memory that `action` held at once."""
    gc.collect()
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
