"""Who a peer is: an Ed25519 key, and the libp2p peer id made from it."""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.errors import BadSignature
from protocol.keys import load_key
from protocol.transport.peer_id import peer_id_of, public_key


class Identity:
    """A private key and its peer id. Prints as the peer id only."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self.key = key
        self.peer = peer_id_of(key.public_key())

    def __repr__(self) -> str:
        return f"Identity({self.peer})"

    def sign(self, domain: str, body: bytes) -> bytes:
        """64 bytes. `domain` separates uses of the key: a signature made for one is worthless in another."""
        return self.key.sign(_message(domain, body))


def generate() -> Identity:
    """A new identity, kept nowhere."""
    return Identity(Ed25519PrivateKey.generate())


def verify(peer: str, domain: str, body: bytes, signature: bytes) -> None:
    """Raises BadSignature unless `peer` and nobody else signed `body` for `domain`; Malformed if it is no peer id."""
    try:
        load_key(public_key(peer)).verify(signature, _message(domain, body))
    except InvalidSignature as error:
        raise BadSignature(f"not signed by {peer}") from error


def _message(domain: str, body: bytes) -> bytes:
    return hashlib.sha256(domain.encode()).digest() + body
