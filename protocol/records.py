"""Signed announcements: what a node says of itself, and how everybody checks it.

A record is msgpack [version, peer id, body, signature]; the body is a msgpack map signed for `DOMAIN` by the
key in the peer id. Nothing in the body is read before the signature is checked, so a peer speaks only for
itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgpack

from protocol import limits
from protocol.errors import LocalProtocolError, Malformed, TooLarge
from protocol.fields import (
    ADDRESSES,
    DIGEST,
    PEER,
    exactly,
    pack_fields,
    parse_fields,
    real,
    said,
    sequence,
    struct,
    uint,
    wire,
    word,
)
from protocol.identity import Identity, verify
from protocol.model import SPAN, Span
from protocol.numerics import NUMERICS, Numerics
from protocol.tensors import FLOATS
from protocol.unpack import unpack

DOMAIN: Final = "swarm announcement 1"
VERSION: Final = 1

_PER_STEP_MS = real(0.0, 1e6)
_TIME = real(0.0, 1e11)


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """The round-trip time that a node measured to another."""

    peer: str = wire(PEER)
    rtt_ms: float = wire(real(0.0, 60_000.0))


@dataclass(frozen=True, slots=True)
class Announcement:
    """One node's state. Times are seconds since the Unix epoch; speeds are the node's own measurements."""

    peer: str = wire(PEER)
    addrs: tuple[str, ...] = wire(ADDRESSES)
    model: str = wire(said(limits.NAME_CELLS, 256))  # display name
    digest: bytes = wire(DIGEST)  # the model digest
    blocks: int = wire(uint(limits.STAGES - 2))
    hidden_size: int = wire(uint(limits.HIDDEN_SIZE))
    span: Span = wire(SPAN)
    dtype: str = wire(FLOATS)  # of the hidden states
    numerics: Numerics = wire(NUMERICS)  # what its stages are computed in
    # one digest per stage served, of the weights as they are stored, whatever they are computed in
    weights: tuple[bytes, ...] = wire(sequence(exactly(8), limits.STAGES))
    state: str = wire(word("joining", "serving", "gone"))
    decode_ms: float = wire(_PER_STEP_MS)  # per block and token, one token at a time
    prefill_ms: float = wire(_PER_STEP_MS)  # per block and token, in a chunk
    head_ms: float = wire(_PER_STEP_MS)  # per token, if the head is served
    queue_ms: float = wire(_PER_STEP_MS)
    kv_tokens: int = wire(uint(1 << 40))  # free
    kv_tokens_total: int = wire(uint(1 << 40))
    links: tuple[RoundTrip, ...] = wire(sequence(struct(RoundTrip), limits.LINKS))
    sequence: int = wire(uint(1 << 53))  # a later statement of the same peer has a higher number
    issued: float = wire(_TIME)
    expires: float = wire(_TIME)

    @property
    def stages(self) -> int:
        """Stages of the whole model."""
        return self.blocks + 2


@dataclass(frozen=True, slots=True)
class Record:
    """An announcement whose signature holds, and the bytes that prove it to others."""

    announcement: Announcement
    data: bytes

    @property
    def peer(self) -> str:
        """Who announced."""
        return self.announcement.peer


def sign_record(identity: Identity, announcement: Announcement) -> Record:
    """The announcement as others can check it.

    Raises: LocalProtocolError, if it is not of `identity` or too long.
    """
    if announcement.peer != identity.peer:
        raise LocalProtocolError("a peer announces only itself")
    body: bytes = msgpack.packb(pack_fields(announcement))
    data: bytes = msgpack.packb([VERSION, announcement.peer, body, identity.sign(DOMAIN, body)])
    if len(data) > limits.RECORD_BYTES:
        raise LocalProtocolError(f"an announcement of {len(data)} bytes")
    return Record(announcement, data)


def parse_record(data: bytes, now: float) -> Record:
    """The record in `data`, checked: signature, limits, time. `now`: seconds since the Unix epoch.

    Raises: BadSignature; Malformed, also when it is expired or from the future; TooLarge.
    """
    record = open_record(data)
    _check_time(record.announcement, now)
    return record


def open_record(data: bytes) -> Record:
    """The record in `data`, whatever the time. Raises: BadSignature, Malformed, TooLarge."""
    if len(data) > limits.RECORD_BYTES:
        raise TooLarge(f"an announcement of {len(data)} bytes, at most {limits.RECORD_BYTES} allowed")
    peer, body = _verified(data)
    announcement: Announcement = parse_fields(Announcement, unpack(body, limits.STAGES))
    if announcement.peer != peer:
        raise Malformed("an announcement of another peer than its signer")
    _check_sense(announcement)
    return Record(announcement, data)


def newer(a: Announcement, b: Announcement) -> bool:
    """Whether `a` replaces `b`, an earlier statement of the same peer."""
    return (a.sequence, a.expires) > (b.sequence, b.expires)


def _verified(data: bytes) -> tuple[str, bytes]:
    value = unpack(data, limits.STAGES)
    if not isinstance(value, list) or len(value) != 4 or value[0] != VERSION:
        raise Malformed("not an announcement of a version that this side reads")
    _, peer, body, signature = value
    if not isinstance(peer, str) or type(body) is not bytes or type(signature) is not bytes:
        raise Malformed("an announcement is a peer id, a body and a signature")
    verify(peer, DOMAIN, body, signature)
    return peer, body


def _check_sense(said: Announcement) -> None:
    if said.span.stop > said.stages:
        raise Malformed(f"a span of {said.span} in a model of {said.stages} stages")
    if len(said.weights) != len(said.span):
        raise Malformed("one weight digest per stage")


def _check_time(said: Announcement, now: float) -> None:
    if said.issued > now + limits.CLOCK_SKEW_S:
        raise Malformed("an announcement from the future; compare the clocks of the two machines")
    if said.expires - said.issued > limits.RECORD_LIFE_S:
        raise Malformed("an announcement that lives too long")
    if said.expires <= now:
        raise Malformed("an expired announcement")
