"""What the DHT may store: a rule the caller supplies, because only it knows what a record is."""

from __future__ import annotations

from typing import Protocol


class DhtValidator(Protocol):
    """Judges DHT values; both methods are pure and fast, and see bytes that strangers wrote."""

    def validate(self, key: str, value: bytes) -> None:
        """Return if `value` may stand under `key`.

        Raises: RemoteProtocolError, if it may not; any other exception is a bug of the validator.
        """

    def newer(self, a: bytes, b: bytes) -> bool:
        """Whether `a`, valid, should replace `b`, valid, under the same key; False for equals."""


class AcceptAll:
    """Every value is valid and the later wins: for tests and simulations only."""

    def validate(self, key: str, value: bytes) -> None:
        """Accept anything."""

    def newer(self, a: bytes, b: bytes) -> bool:
        """Whatever came later is newer."""
        return a != b
