"""The announcements one peer holds: the newest of each peer, bounded, forgetting what expired."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Iterator

from protocol import limits
from protocol.errors import RemoteProtocolError
from protocol.records import Announcement, Record, newer, parse_record


class RecordBook:
    """Everybody's latest word. `now` is always an argument, in seconds since the Unix epoch."""

    def __init__(self, most: int = limits.KNOWN_RECORDS) -> None:
        self._most = most
        self._records: dict[str, Record] = {}
        self._proven: dict[str, dict[str, None]] = {}  # peer -> where it was met

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(tuple(self._records.values()))

    def get(self, peer: str) -> Record | None:
        """The latest record of `peer`, expired or not."""
        return self._records.get(peer)

    def add(self, record: Record) -> bool:
        """Keep a checked record if it says something new; whether it did."""
        known = self._records.get(record.peer)
        if known is not None and not newer(record.announcement, known.announcement):
            return False
        if known is None and len(self._records) >= self._most:
            self._forget_some()
        self._records[record.peer] = record
        return True

    def prove(self, peer: str, place: str) -> None:
        """`peer` was met at `place`: there was a verified connection with it there."""
        self._proven.setdefault(peer, {})[place] = None

    def proven(self, peer: str) -> tuple[str, ...]:
        """Addresses of a record where its peer was met; nothing else in it is more than a claim."""
        record = self._records.get(peer)
        met = self._proven.get(peer, {})
        return tuple(addr for addr in record.announcement.addrs if addr in met) if record is not None else ()

    def merge(self, data: Iterable[bytes], now: float) -> tuple[list[Record], int]:
        """Check and keep records from a peer: those that were new, and how many were refused."""
        fresh, refused = [], 0
        held = {record.data for record in self._records.values()}
        for entry in data:
            if entry in held:  # checked when it came; a signature takes 0.1 ms, and maps repeat each other
                continue
            try:
                record = parse_record(entry, now)
            except RemoteProtocolError:
                refused += 1
                continue
            held.add(entry)
            if self.add(record):
                fresh.append(record)
        return fresh, refused

    def expire(self, now: float) -> None:
        """Forget every record whose time is over."""
        self._records = {peer: r for peer, r in self._records.items() if r.announcement.expires > now}

    def alive(self, now: float) -> list[Announcement]:
        """What the peers that have not gone say, of records still valid."""
        said = (record.announcement for record in self._records.values())
        return [a for a in said if a.expires > now and a.state != "gone"]

    def pack(self, now: float, rng: random.Random) -> tuple[bytes, ...]:
        """The valid records as bytes, at most what one map message holds; random ones where not all fit."""
        valid = [r.data for r in self._records.values() if r.announcement.expires > now]
        valid = rng.sample(valid, min(len(valid), limits.MAP_RECORDS))
        kept, size = [], 0
        for data in valid:
            size += len(data) + 8
            if size > limits.CONTROL_FRAME_BYTES - 1024:
                break
            kept.append(data)
        return tuple(kept)

    def _forget_some(self) -> None:
        """Make room: the sixty-fourth that expires soonest, at once, so that it costs little per record."""
        count = max(1, self._most // 64)
        for record in heapq.nsmallest(count, self._records.values(), key=lambda r: r.announcement.expires):
            del self._records[record.peer]
