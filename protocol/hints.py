"""What the DHT holds for this project: signed announcements by peer, and who provides what."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Final

from protocol.errors import Malformed, RemoteProtocolError
from protocol.records import newer, parse_record

# Every node provides this key, and that of its model.
SWARM_KEY: Final = "swarm"


def model_key(digest: bytes) -> str:
    """The key that the nodes of a model provide."""
    return digest.hex()


def record_key(peer: str) -> str:
    """The key under which a peer's announcement stands; 47 bytes, as some DHT nodes take no more than 50."""
    return f"/swarm/{hashlib.sha256(peer.encode()).hexdigest()[:40]}"


class RecordRule:
    """A `protocol.transport.validator.DhtValidator`: valid announcements, each under its own peer's key."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock

    def validate(self, key: str, value: bytes) -> None:
        """Raises: RemoteProtocolError, unless `value` is a valid announcement of the peer whose key it is."""
        record = parse_record(value, self._clock())
        if key != record_key(record.peer):
            raise Malformed("an announcement under another peer's key")

    def newer(self, a: bytes, b: bytes) -> bool:
        """Whether `a` is the later statement; what has become invalid is older than all."""
        try:
            new = parse_record(a, self._clock())
        except RemoteProtocolError:
            return False
        try:
            old = parse_record(b, self._clock())
        except RemoteProtocolError:
            return True
        return newer(new.announcement, old.announcement)
