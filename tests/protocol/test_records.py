"""A peer speaks only for itself, only for a while, and nobody can change its words."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import pytest

from protocol import limits
from protocol.errors import BadSignature, LocalProtocolError, Malformed, RemoteProtocolError, TooLarge
from protocol.fields import pack_fields
from protocol.identity import Identity, verify
from protocol.model import Span
from protocol.numerics import Numerics
from protocol.records import DOMAIN, VERSION, RoundTrip, newer, parse_record, sign_record
from tests.protocol.samples import IDENTITY, NOW, OTHER, announcement


def signed(body: Any, by: Identity = IDENTITY, peer: str | None = None, domain: str = DOMAIN) -> bytes:
    """A record of any body, signed by `by` and said to be by `peer`, as only a hostile peer makes it."""
    packed = body if isinstance(body, bytes) else msgpack.packb(body)
    return bytes(msgpack.packb([VERSION, peer or by.peer, packed, by.sign(domain, packed)]))


def said(**changes: Any) -> dict[str, Any]:
    """The body of IDENTITY's announcement with some fields changed."""
    return pack_fields(announcement()) | changes


def test_signed_by_another_key() -> None:
    """Nobody announces in another's name: neither with another's id outside nor inside the signature."""
    with pytest.raises(BadSignature):
        parse_record(signed(said(), by=OTHER, peer=IDENTITY.peer), NOW)
    with pytest.raises(Malformed, match="another peer"):
        parse_record(signed(said(), by=OTHER), NOW)
    with pytest.raises(LocalProtocolError):
        sign_record(OTHER, announcement())


def test_every_flipped_bit_is_refused() -> None:
    """No bit of a record can change without notice."""
    data = sign_record(IDENTITY, announcement()).data
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RemoteProtocolError):
            parse_record(bytes(flipped), NOW)


def test_a_changed_body_under_an_old_signature() -> None:
    """A better speed, say, needs a new signature."""
    version, peer, body, signature = msgpack.unpackb(sign_record(IDENTITY, announcement()).data)
    faster = msgpack.packb(msgpack.unpackb(body) | {"decode_ms": 0.1})
    with pytest.raises(BadSignature):
        parse_record(msgpack.packb([version, peer, faster, signature]), NOW)


@pytest.mark.parametrize("domain", ["", "swarm announcement 2", "libp2p-tls-handshake:"])
def test_a_signature_for_another_purpose(domain: str) -> None:
    """Signatures of one domain are worthless in another."""
    with pytest.raises(BadSignature):
        parse_record(signed(said(), domain=domain), NOW)


def test_domains_cannot_run_into_bodies() -> None:
    """Where the domain ends and the body begins is fixed: moving the boundary breaks the signature."""
    signature = IDENTITY.sign("ab", b"c")
    verify(IDENTITY.peer, "ab", b"c", signature)
    for domain, body in (("a", b"bc"), ("abc", b""), ("", b"abc")):
        with pytest.raises(BadSignature):
            verify(IDENTITY.peer, domain, body, signature)


@pytest.mark.parametrize("size", [0, 1, 63, 65, 1000])
def test_signatures_of_a_wrong_size(size: int) -> None:
    """Neither short nor long ones are taken."""
    body = msgpack.packb(said())
    with pytest.raises(BadSignature):
        parse_record(msgpack.packb([VERSION, IDENTITY.peer, body, bytes(size)]), NOW)


def test_time() -> None:
    """Valid from a clock's skew before it was issued until it expires, and for no longer than allowed."""
    life, skew = limits.RECORD_LIFE_S, limits.CLOCK_SKEW_S
    data = signed(said(issued=NOW, expires=NOW + life))
    for now in (NOW - skew, NOW, NOW + life - 0.001):
        assert parse_record(data, now).peer == IDENTITY.peer
    with pytest.raises(Malformed, match="expired"):
        parse_record(data, NOW + life)
    with pytest.raises(Malformed, match="future"):
        parse_record(data, NOW - skew - 0.001)
    with pytest.raises(Malformed, match="too long"):
        parse_record(signed(said(issued=NOW, expires=NOW + life + 0.001)), NOW)
    with pytest.raises(Malformed):
        parse_record(signed(said(issued=NOW, expires=NOW - 1)), NOW)
    with pytest.raises(Malformed):
        parse_record(signed(said(issued=NOW, expires=float("nan"))), NOW)


def test_a_span_outside_the_model_or_without_its_digests() -> None:
    """What makes no sense is refused here once, for everybody who reads announcements."""
    weights = [bytes(8)]
    with pytest.raises(Malformed, match="span"):
        parse_record(signed(said(span=[4, 5], weights=weights)), NOW)
    assert parse_record(signed(said(span=[3, 4], weights=weights)), NOW).announcement.span == Span(3, 4)
    for count in (0, 1, 3):
        with pytest.raises(Malformed, match="digest"):
            parse_record(signed(said(weights=weights * count)), NOW)


@pytest.mark.parametrize("version", [0, 2, None, "1", [1]])
def test_other_versions(version: Any) -> None:
    """A record of a later version is refused, not guessed at."""
    _, *rest = msgpack.unpackb(sign_record(IDENTITY, announcement()).data)
    with pytest.raises(Malformed):
        parse_record(msgpack.packb([version, *rest]), NOW)


def test_the_parts_of_a_record() -> None:
    """Four of them, each of its type; the signature is over bytes and not over what they mean."""
    version, peer, body, signature = msgpack.unpackb(sign_record(IDENTITY, announcement()).data)
    for parts in (
        [version, peer, body],
        [version, peer, body, signature, None],
        {0: version},
        [version, peer.encode(), body, signature],
        [version, None, body, signature],
        [version, peer, msgpack.unpackb(body), signature],
        [version, peer, body, signature.hex()],
    ):
        with pytest.raises(Malformed):
            parse_record(msgpack.packb(parts), NOW)


def test_signed_rubbish_is_malformed() -> None:
    """A good signature makes no sense of a bad body."""
    for body in (b"", b"\xc0", b"\x91" * 3000, msgpack.packb([1]), msgpack.packb(said(surprise=1))):
        with pytest.raises(Malformed):
            parse_record(signed(body), NOW)


def test_every_odd_value_in_every_field() -> None:
    """The decoder's law for what hostile peers sign."""
    odd_values: list[Any] = [
        None,
        True,
        -1,
        1 << 60,
        1e300,
        float("nan"),
        "x" * 1025,
        b"",
        [],
        {},
        [[]],
        [{}],
    ]
    for name in said():
        for odd in odd_values:
            try:
                parse_record(signed(said(**{name: odd})), NOW)
            except RemoteProtocolError:
                continue
            assert odd in ([], b"", True, 1 << 60), (name, odd)


def test_too_long() -> None:
    """Above the limit nothing is parsed, and none of ours is made."""
    with pytest.raises(TooLarge):
        parse_record(bytes(limits.RECORD_BYTES + 1), NOW)
    with pytest.raises(LocalProtocolError):
        sign_record(IDENTITY, announcement(weights=(bytes(8),) * 2 * limits.STAGES))


def test_the_largest_announcement_fits() -> None:
    """Every field at its limit at once."""
    name = "x" * (limits.ADDRESS_BYTES - len("/dns/....") - 4 * 50 - len("/udp/65535/quic-v1"))
    address = f"/dns/{'.'.join([name, *['x' * 50] * 4])}/udp/65535/quic-v1"
    assert len(address) == limits.ADDRESS_BYTES
    said = announcement(
        addrs=(address,) * limits.ADDRESSES,
        links=tuple(RoundTrip("x" * limits.PEER_ID_BYTES, 1.0) for _ in range(limits.LINKS)),
        model="é" * limits.NAME_CELLS,  # two bytes each
        blocks=limits.STAGES - 2,
        hidden_size=limits.HIDDEN_SIZE,
        span=Span(0, limits.STAGES),
        dtype="bf16",
        numerics=Numerics("x" * 12, 999),
        weights=(bytes(8),) * limits.STAGES,
        state="serving",
        kv_tokens=1 << 40,
        kv_tokens_total=1 << 40,
        sequence=1 << 53,
    )
    assert parse_record(sign_record(IDENTITY, said).data, NOW).announcement == said


def test_newer() -> None:
    """A higher sequence wins; of the same sequence the one that lives longer; never both."""
    first = announcement()
    later = dataclasses.replace(first, sequence=6)
    longer = dataclasses.replace(first, expires=first.expires + 1)
    assert newer(later, first)
    assert not newer(first, later)
    assert newer(longer, first)
    assert not newer(first, longer)
    assert not newer(first, first)
    assert newer(later, longer)
