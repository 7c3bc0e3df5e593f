"""The bytes on the wire do not change unnoticed."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.peer.id import ID

from protocol.codec import FrameReader, encode
from protocol.identity import Identity
from protocol.inventory import parse_inventory
from protocol.messages import BY_TAG
from protocol.model import parse_manifest
from protocol.records import parse_record, sign_record
from protocol.transport.peer_id import public_key
from tests.protocol.golden import read_golden
from tests.protocol.samples import IDENTITY, MESSAGES, NOW, OTHER, announcement, inventory, manifest, same

FRAMES = read_golden("frames.txt")
SIGNED = read_golden("signed.txt")


def test_every_message_has_a_golden_frame() -> None:
    """No kind of message is without fixed bytes, and none are left over."""
    assert FRAMES.keys() == MESSAGES.keys()
    assert {name.split()[0] for name in FRAMES} == BY_TAG.keys()
    assert all(MESSAGES[name].tag == name.split()[0] for name in MESSAGES)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_gives_its_golden_frame(name: str) -> None:
    """encode gives exactly these bytes."""
    assert encode(MESSAGES[name]).hex(" ") == FRAMES[name].hex(" ")


@pytest.mark.parametrize("name", MESSAGES)
def test_a_golden_frame_gives_its_message(name: str) -> None:
    """decode gives the message back, and uses every byte."""
    reader = FrameReader()
    reader.feed(FRAMES[name])
    message = reader.next()
    assert same(message, MESSAGES[name])
    assert reader.pending == 0


def test_golden_record() -> None:
    """A fixed key signs a fixed announcement into exactly these bytes, which others accept."""
    record = sign_record(IDENTITY, announcement())
    assert record.data.hex(" ") == SIGNED["record"].hex(" ")
    assert parse_record(SIGNED["record"], NOW) == record


def test_golden_manifest() -> None:
    """A fixed manifest has exactly these bytes and this digest."""
    digest = "a57f79c5246c12188b9f47ef10e2990e444256eb4579b823676432dafc6de151"
    assert manifest().encode().hex(" ") == SIGNED["manifest"].hex(" ")
    assert manifest().digest.hex() == digest
    assert parse_manifest(SIGNED["manifest"], bytes.fromhex(digest)) == manifest()


def test_golden_inventory() -> None:
    """A fixed inventory has exactly these bytes and this stage digest."""
    digest = "e3258bdc1ed75c9d"
    assert inventory().encode().hex(" ") == SIGNED["inventory"].hex(" ")
    assert inventory().digest.hex() == digest
    assert parse_inventory(SIGNED["inventory"], bytes.fromhex(digest)) == inventory()


def test_golden_peer_id() -> None:
    """Fixed keys have these peer ids, which hold the keys."""
    assert IDENTITY.peer == "12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB"
    assert OTHER.peer == "12D3KooWCd3eX8r5ihRvzK7P1yPq5aakaBJhG5GNj18YTztPhoCa"
    assert public_key(IDENTITY.peer) == IDENTITY.key.public_key().public_bytes_raw()


def test_peer_id_of_the_libp2p_specification() -> None:
    """The Ed25519 key pair among the test vectors of the peer-id specification, named as py-libp2p names it."""
    secret = "7e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d"
    public = "1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"
    identity = Identity(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret)))
    assert public_key(identity.peer).hex() == public
    for peer in (identity.peer, IDENTITY.peer, OTHER.peer):
        assert peer == ID.from_pubkey(Ed25519PublicKey.from_bytes(public_key(peer))).to_base58()
