"""What dialling strangers may cost, by who named them: pure."""

from __future__ import annotations

from typing import Final

from protocol import limits
from protocol.transport.dialling import DIAL_BYTES

# A third party whom records name gets at most this many times the bytes that it cost to bring them.
DIALLED_PER_BROUGHT: Final = 3
# What one block may have saved up: dials of as many silent places as the whole budget of dials allows.
MOST_CREDIT: Final = 128 * DIAL_BYTES


class DialCredit:
    """Bytes that may be sent to strangers, by the block of addresses that named them."""

    def __init__(self) -> None:
        self._bytes: dict[str, float] = {}

    def is_left(self, origin: str) -> bool:
        """Whether one more dial is paid for."""
        return self._bytes.get(origin, 0.0) > 0

    def brought(self, origin: str, size_bytes: int) -> None:
        """Records of that size came from there."""
        self._pay(origin, DIALLED_PER_BROUGHT * size_bytes)

    def charge(self, origin: str) -> None:
        """A stranger whom it named is dialled."""
        self._pay(origin, -DIAL_BYTES)

    def refund(self, origin: str) -> None:
        """That stranger has answered."""
        self._pay(origin, DIAL_BYTES)

    def _pay(self, origin: str, size_bytes: float) -> None:
        self._bytes[origin] = min(MOST_CREDIT, self._bytes.pop(origin, 0.0) + size_bytes)
        if len(self._bytes) > limits.KNOWN_RECORDS:
            del self._bytes[next(iter(self._bytes))]
