"""Keys: named in one way only, and nobody signs with another's."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadSignature, Malformed
from protocol.identity import generate, verify
from protocol.transport.peer_id import peer_id_of, public_key
from tests.protocol.samples import IDENTITY, OTHER, SMALL_ORDER


def test_printing_shows_no_secret() -> None:
    """repr and str are the peer id."""
    identity = generate()
    secret = identity.key.private_bytes_raw()
    for shown in (repr(identity), str(identity), f"{identity}", repr(vars(identity))):
        assert identity.peer in shown
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown
    assert repr(identity) == f"Identity({identity.peer})"


@given(st.binary(min_size=32, max_size=32))
def test_a_peer_id_holds_its_key(public: bytes) -> None:
    """public_key undoes peer_id_of for any 32 bytes."""
    assert public_key(peer_id_of(Ed25519PublicKey.from_public_bytes(public))) == public


@given(st.text(max_size=60))
def test_other_text_is_malformed(text: str) -> None:
    """Nothing but Malformed, whatever the text."""
    with pytest.raises(Malformed):
        public_key(text)


@pytest.mark.parametrize(
    "peer",
    ["", "1", IDENTITY.peer[:-1], IDENTITY.peer + "1", "1" + IDENTITY.peer,
     "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnR8sD",
     "é" * 40, "0OIl"],
)  # fmt: skip
def test_no_ed25519_peer_id(peer: str) -> None:
    """Cut, longer, RSA and non-base58 ids."""
    with pytest.raises(Malformed):
        public_key(peer)


@pytest.mark.parametrize("tail", [" ", "\n", "\t ", "\x0b"])
def test_regression_a_key_has_one_name(tail: str) -> None:
    """White space after a peer id, which base58 decoders overlook, makes no second name for a key."""
    with pytest.raises(Malformed):
        public_key(IDENTITY.peer + tail)
    signature = IDENTITY.sign("d", b"b")
    with pytest.raises(Malformed):
        verify(IDENTITY.peer + tail, "d", b"b", signature)


def test_regression_a_long_peer_id_is_refused_at_once() -> None:
    """base58 takes quadratic time: an id of a megabyte would take minutes."""
    with pytest.raises(Malformed):
        public_key("z" * 1_000_000)


def test_signatures() -> None:
    """Of this key, for this domain, over this body."""
    signature = IDENTITY.sign("d", b"body")
    assert len(signature) == 64
    verify(IDENTITY.peer, "d", b"body", signature)
    for peer, domain, body in (
        (OTHER.peer, "d", b"body"),
        (IDENTITY.peer, "e", b"body"),
        (IDENTITY.peer, "d", b"bodY"),
    ):
        with pytest.raises(BadSignature):
            verify(peer, domain, body, signature)


@given(st.binary(max_size=100))
def test_other_signatures_are_refused(signature: bytes) -> None:
    """Of any length and content; nothing but BadSignature."""
    with pytest.raises(BadSignature):
        verify(IDENTITY.peer, "d", b"body", signature)


@pytest.mark.parametrize("point", SMALL_ORDER, ids=bytes.hex)
def test_nobody_signs_for_a_key_that_anybody_can_sign_for(point: bytes) -> None:
    """A signature made of nothing, which holds for such a point and any or many a message, does not hold here."""
    peer = peer_id_of(Ed25519PublicKey.from_public_bytes(point))
    for number in range(64):
        with pytest.raises(BadSignature):
            verify(peer, "test", bytes((number,)), bytes((1, *bytes(63))))
