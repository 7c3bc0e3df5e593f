"""Whatever may be said arrives as it was said."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.candidates import candidates_from_tensors
from protocol.codec import LENGTH_BYTES, FrameReader, decode, encode
from protocol.errors import LocalProtocolError
from protocol.messages import ALL, BY_TAG, Error, FileRequest, Message, NextHop, Open, Step
from protocol.model import Manifest, parse_manifest
from protocol.records import Announcement, parse_record, sign_record
from protocol.tensors import Tensor, from_numpy, parse_tensor
from tests.protocol.samples import DIGEST, IDENTITY, MESSAGES, NEXT_SESSION, NOW, SESSION, same
from tests.protocol.strategies import FIELDS, announcements, candidates, manifests, messages, tensors


def test_the_strategies_cover_every_field_of_every_message() -> None:
    """A new message or field is not left out of these tests."""
    assert FIELDS.keys() == set(ALL)
    for cls, names in FIELDS.items():
        assert names.keys() == {field.name for field in dataclasses.fields(cls)}


def test_tags_are_unique() -> None:
    """One tag, one message."""
    assert len(BY_TAG) == len(ALL)


@given(messages)
@settings(max_examples=300)
def test_messages(message: Message) -> None:
    """decode undoes encode, for every message within the limits."""
    assert same(decode(encode(message)[LENGTH_BYTES:]), message)


@given(tensors())
def test_tensors(tensor: Tensor) -> None:
    """A tensor keeps its dtype, shape and every bit, of NaNs too."""
    assert same(parse_tensor({**tensor.pack(), "data": bytes(tensor.data)}), tensor)


@pytest.mark.parametrize("size", [65_535, 65_536, 1_000_000])
def test_large_tensors(size: int) -> None:
    """Bytes at and above the size from which they are spliced into the frame arrive all the same."""
    tensor = from_numpy(np.arange(size, dtype=np.uint8).repeat(4).view(np.int32))
    message = dataclasses.replace(step(), inputs=tensor)
    assert same(decode(encode(message)[LENGTH_BYTES:]), message)


@given(candidates())
def test_candidates(found: object) -> None:
    """Candidates keep shapes, ids and every logit."""
    packed = found.pack()  # type: ignore[attr-defined]
    parts = {name: parse_tensor({**t, "data": bytes(t["data"])}) for name, t in packed.items()}
    assert same(candidates_from_tensors(**parts), found)


@given(st.data())
@settings(max_examples=60)
def test_records(data: st.DataObject) -> None:
    """What one peer signs another reads, word for word."""
    said: Announcement = data.draw(announcements(IDENTITY, NOW))
    record = sign_record(IDENTITY, said)
    assert parse_record(record.data, NOW) == record
    assert record.announcement == said


@given(manifests())
@settings(max_examples=60)
def test_manifests(manifest: Manifest) -> None:
    """A manifest survives its canonical bytes, which do not depend on the order of its files."""
    shuffled = dataclasses.replace(manifest, files=manifest.files[::-1])
    assert shuffled.digest == manifest.digest
    assert parse_manifest(manifest.encode(), manifest.digest).encode() == manifest.encode()


def test_a_message_above_the_frame_limit_is_our_own_error() -> None:
    """Nobody is sent what they must refuse."""
    message = dataclasses.replace(step(), inputs=Tensor("i32", (1,), bytes(limits.FRAME_BYTES)))
    with pytest.raises(LocalProtocolError):
        encode(message)


def test_long_text_is_cut_at_a_character() -> None:
    """The reason of a failure never makes a frame that the peer must refuse."""
    sent = Error("x", "é" * 2000, True)
    received = decode(encode(sent)[LENGTH_BYTES:])
    assert isinstance(received, Error)
    assert received.message == "é" * (limits.SAID_CELLS - 1) + "…"


def test_regression_text_with_surrogates_can_be_sent() -> None:
    """A file name that is no UTF-8 does not keep an error message from being sent."""
    received = decode(encode(FileRequest("a\udc80b"))[LENGTH_BYTES:])
    assert received == FileRequest("a?b")


@pytest.mark.parametrize(
    "name", [name for name in MESSAGES if name not in ("map?", "map", "file", "manifest")]
)
def test_a_printed_message_shows_no_session_id(name: str) -> None:
    """Session ids are secrets: whoever has one may feed the session. Logs do not hold them."""
    shown = repr(MESSAGES[name])
    for secret in (SESSION, NEXT_SESSION):
        assert repr(secret)[2:-1] not in shown.replace(repr(DIGEST), "")


def test_several_frames_in_one_piece() -> None:
    """Frames need no boundary but their length."""
    reader = FrameReader()
    reader.feed(b"".join(map(encode, MESSAGES.values())))
    for message in MESSAGES.values():
        assert same(reader.next(), message)
    assert reader.next() is None


def step() -> Step:
    """The sample of a step."""
    sample = MESSAGES["step"]
    assert isinstance(sample, Step)
    return sample


def test_a_hop_prints_whose_it_is() -> None:
    """Hiding the session id leaves the rest of a message readable."""
    hop = NextHop("12D3", SESSION)
    shown = repr(Open(SESSION, DIGEST, MESSAGES["open"].span, 1, hop))  # type: ignore[attr-defined]
    assert "12D3" in shown
