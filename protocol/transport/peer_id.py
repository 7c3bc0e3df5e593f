"""libp2p peer ids of Ed25519 keys: the key itself, wrapped and written in base58.

A peer id is the identity multihash (0x00, length) of the protobuf PublicKey {1: type, 2: bytes}
(libp2p specification "Peer Ids and Keys"); for Ed25519 that makes 38 bytes, "12D3KooW…".
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_PUBLIC_KEY_PREFIX = bytes.fromhex("08011220")  # field 1: Ed25519; field 2: 32 bytes follow
_MULTIHASH_PREFIX = bytes.fromhex("0024")  # identity, 36 bytes


def peer_id_of(key: Ed25519PublicKey) -> str:
    """The peer id of `key`."""
    return base58(_MULTIHASH_PREFIX + _PUBLIC_KEY_PREFIX + key.public_bytes_raw())


def base58(data: bytes) -> str:
    """`data` in base58, Bitcoin's alphabet."""
    number = int.from_bytes(data, "big")
    digits = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_ALPHABET[digit])
    zeros = len(data) - len(data.lstrip(b"\0"))
    return "1" * zeros + "".join(reversed(digits))


def is_peer_id(text: str) -> bool:
    """Whether `text` has the form of a peer id (of any key type): base58 of a plausible length."""
    return 40 <= len(text) <= 60 and all(char in _ALPHABET for char in text)
