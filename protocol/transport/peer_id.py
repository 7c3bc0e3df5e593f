"""libp2p's peer ids: a key, wrapped and written in base58. Those of Ed25519 keys, "12D3KooW…", are read back too.

A peer id is a multihash of the protobuf PublicKey {1: type, 2: bytes} (libp2p specification "Peer Ids and Keys").
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Final

import base58
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from protocol.errors import Malformed

KEY_BYTES: Final = 32
_ED25519: Final = bytes.fromhex("0801 1220")  # field 1: Ed25519; field 2: 32 bytes follow
_MOST_INLINE_BYTES: Final = 42  # longer keys are named by their SHA-256
_CHARS: Final = 52  # of every id of an Ed25519 key


def encode_key(key: Ed25519PublicKey) -> bytes:
    """The protobuf PublicKey that stands for `key`."""
    return _ED25519 + key.public_bytes_raw()


def peer_id(encoded: bytes) -> str:
    """The peer id of a protobuf PublicKey, whatever its type."""
    if len(encoded) <= _MOST_INLINE_BYTES:
        multihash = bytes((0x00, len(encoded))) + encoded
    else:
        multihash = b"\x12\x20" + hashlib.sha256(encoded).digest()
    return base58.b58encode(multihash).decode()


def peer_id_of(key: Ed25519PublicKey) -> str:
    """The peer id of `key`."""
    return peer_id(encode_key(key))


@lru_cache(maxsize=4096)  # as many as a map names: maps come again and again, and base58 is slow
def public_key(peer: str) -> bytes:
    """The 32 bytes of the Ed25519 key that a peer id holds. Raises: Malformed, if `peer` is anything else."""
    if len(peer) != _CHARS:  # decoding base58 takes quadratic time
        raise Malformed("not the peer id of an Ed25519 key")
    try:
        encoded = base58.b58decode(peer)[2:]
    except ValueError as error:
        raise Malformed("not a peer id") from error
    # The decoder overlooks white space at the end: one key, one name.
    if (
        len(encoded) != len(_ED25519) + KEY_BYTES
        or not encoded.startswith(_ED25519)
        or peer_id(encoded) != peer
    ):
        raise Malformed("not the peer id of an Ed25519 key")
    return encoded[len(_ED25519) :]
