"""Ed25519 public keys that belong to whoever signs with them."""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from protocol.errors import BadSignature

_P: Final = 2**255 - 19
_Y_MASK: Final = 2**255 - 1  # the highest bit is the sign of x
# The points whose eighth multiple is nothing, by y: a signature "by" them holds for a good part of all messages,
# whoever makes it (Chalkias, Garillot, Nikolaenko, "Taming the many EdDSAs", table 2).
_SMALL_ORDER: Final = frozenset(
    (
        0,
        1,
        _P - 1,
        0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
        0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
    )
)


def load_key(public: bytes) -> Ed25519PublicKey:
    """The key that 32 bytes stand for.

    Raises: BadSignature, if anybody could sign for it, or if other bytes stand for the same key.
    """
    y = int.from_bytes(public, "little") & _Y_MASK
    if len(public) != 32 or y >= _P or y in _SMALL_ORDER:
        raise BadSignature("a key that anybody could sign for, or with a second name")
    return Ed25519PublicKey.from_public_bytes(public)
