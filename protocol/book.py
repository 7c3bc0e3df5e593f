"""The announcements one peer holds: the newest of each peer, and which of those peers were really met.

A record proves who wrote it, and nothing else. Until its peer has been met at an address that the record names, it is
a stranger's word: few of those are held, they give way first, and only so many are looked into as whoever brought
them has paid for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from protocol import limits
from protocol.credit import DialCredit
from protocol.errors import ConfigError, RemoteProtocolError
from protocol.records import Announcement, Record, newer, parse_record
from protocol.strangers import OURS, Source, Strangers, alternate
from protocol.transport.addresses import parse_address
from protocol.transport.base import PeerAddrs
from protocol.transport.origin import origin_of

# A stranger whose dial failed is tried again after this, twice as long each time: it may only have been busy.
RETRY_S: Final = 5.0
RETRY_MOST_S: Final = 600.0
# Strangers that a map passes on. Whoever asks several peers hears of each newcomer from some of them, and what was
# tried in vain is not passed on.
STRANGERS_PASSED_ON: Final = 16
# Records that a map request brings, besides our own: those heard last; the older ones have had time to spread.
NEWS: Final = 64


@dataclass(slots=True, eq=False)
class _Entry:
    record: Record
    source: Source
    heard_at: float
    met: tuple[str, ...] = ()  # where its peer was met, as addresses
    block: str | None = None  # and in which block
    tries: int = 0
    retry_at: float = 0.0
    charged: str | None = None  # whose credit pays for the dial that is not answered yet

    def is_valid(self, now: float) -> bool:
        """Whether it still holds; nobody's word lives longer here than RECORD_LIFE_S, whatever it says itself."""
        return now < self.record.announcement.expires and now < self.heard_at + limits.RECORD_LIFE_S


class RecordBook:
    """Everybody's latest word. `now` is always an argument, in seconds since the Unix epoch.

    Holds `most` records of peers that were met, and as many of strangers.
    """

    def __init__(self, most: int = limits.KNOWN_RECORDS // 2) -> None:
        self._most = most
        self._entries: dict[str, _Entry] = {}
        self._held: dict[bytes, str] = {}  # record -> peer
        self._proven: dict[str, None] = {}  # who was met, least recently first
        self._strangers = Strangers()
        self._places: dict[tuple[str, int], str] = {}  # where each proven peer was met
        self._vouched: set[str] = set()
        self._credit = DialCredit()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Record]:
        return iter([entry.record for entry in self._entries.values()])

    def get(self, peer: str) -> Record | None:
        """The latest record of `peer`, expired or not."""
        entry = self._entries.get(peer)
        return entry.record if entry is not None else None

    # --- what records say

    def add(self, record: Record, now: float, source: Source = OURS) -> bool:
        """Keep a checked record if it says something new; whether it did."""
        known = self._entries.get(record.peer)
        if known is not None:
            if not newer(record.announcement, known.record.announcement):
                return False
            del self._held[known.record.data]
            known.record, known.heard_at = record, now
            self._held[record.data] = record.peer
            self._place(known, known.source)
            self._make_room()
            return True
        self._entries[record.peer] = entry = _Entry(record, source, now)
        self._held[record.data] = record.peer
        self._place(entry, source)
        self._make_room()
        return True

    def merge(self, data: Iterable[bytes], now: float, source: Source = OURS) -> tuple[list[Record], int]:
        """Check and keep records from a peer: those that were new, and how many were refused."""
        fresh, refused, brought = [], 0, 0
        for entry in data:
            brought += len(entry)
            if entry in self._held:
                # Checked when it came: a signature takes 0.1 ms, and maps repeat each other.
                self._heard_again(self._entries[self._held[entry]], source)
                continue
            try:
                record = parse_record(entry, now)
            except RemoteProtocolError:
                refused += 1
                continue
            if self.add(record, now, source):
                fresh.append(record)
        self._credit.brought(source.origin, brought)
        return fresh, refused

    def expire(self, now: float) -> None:
        """Forget every record whose time is over by its own word: until then its replay is not news."""
        for entry in list(self._entries.values()):
            if entry.record.announcement.expires <= now:
                self._forget(entry)

    def alive(self, now: float) -> list[Announcement]:
        """What peers that have not gone say, proven or not, in records still valid."""
        said = (entry.record.announcement for entry in self._entries.values() if entry.is_valid(now))
        return [a for a in said if a.state != "gone"]

    def met(self, now: float) -> list[Announcement]:
        """The same, of proven peers alone."""
        entries = (self._entries[peer] for peer in self._proven)
        said = (entry.record.announcement for entry in entries if entry.is_valid(now))
        return [a for a in said if a.state != "gone"]

    # --- who was met

    def prove(self, peer: str, *places: str) -> None:
        """There is a verified connection with `peer`, whose other end is at these `places`: one, under all its names.

        Counts for the peer's latest record, and for later ones that name the same place. One place is one peer's: the
        one who was met there before has gone.
        """
        entry = self._entries.get(peer)
        if entry is None:
            return
        if entry.charged is not None:
            self._credit.refund(entry.charged)
        self._unplace(entry)
        entry.met, entry.block = places, _block(places)
        entry.tries, entry.retry_at, entry.charged = 0, 0.0, None
        self._place(entry, entry.source)
        self._make_room()

    def doubt(self, peer: str) -> None:
        """`peer` was not to be reached: it is a stranger again, until it is met."""
        entry = self._entries.get(peer)
        if entry is not None and entry.met:
            self._unplace(entry)
            entry.met, entry.block = (), None
            self._place(entry, entry.source)
            self._make_room()

    def vouch(self, peer: str) -> None:
        """Our user named `peer`: it counts as met wherever it answers."""
        self._vouched.add(peer)
        entry = self._entries.get(peer)
        if entry is not None:
            self._place(entry, entry.source)

    def is_proven(self, peer: str) -> bool:
        """Whether the latest record of `peer` is more than a claim."""
        return peer in self._proven

    def proven(self, peer: str) -> tuple[str, ...]:
        """Addresses of a record where its peer was met; nothing else in it is more than a claim."""
        entry = self._entries.get(peer)
        if entry is None:
            return ()
        met = _parsed(entry.met)
        return tuple(addr for addr in entry.record.announcement.addrs if _parsed((addr,)) & met)

    def origin(self, peer: str) -> str | None:
        """The block of addresses in which `peer` was met."""
        entry = self._entries.get(peer)
        return entry.block if entry is not None else None

    # --- whom to meet, whom to speak of

    def claim(
        self, now: float, most: int, wanted: Callable[[Announcement], bool] = lambda said: True
    ) -> list[PeerAddrs]:
        """Strangers to dial now, as far as those who named them have paid for it; each then has a while's rest.

        First whom peers that we asked named, then whom others pushed; one of each source in turn, in its order.
        """
        claimed: list[PeerAddrs] = []
        for entry in self._in_turn(now):
            said, origin = entry.record.announcement, entry.source.origin
            if len(claimed) == most:
                break
            if not self._credit.is_left(origin) or not wanted(said):
                continue
            self._credit.charge(origin)
            entry.charged = origin
            entry.retry_at = now + min(RETRY_MOST_S, RETRY_S * 2.0**entry.tries)
            entry.tries += 1
            claimed.append(PeerAddrs(said.peer, said.addrs))
        return claimed

    def pack(self, now: float, rng: random.Random, besides: str = "") -> tuple[bytes, ...]:
        """What one map message holds, `besides` one peer's record: the proven, in random order, one of each block in
        turn, as many as fit; then a few strangers, so that news spreads."""
        blocks: dict[str | None, list[_Entry]] = {}
        for peer in self._proven:
            if peer != besides:
                blocks.setdefault(self._entries[peer].block, []).append(self._entries[peer])
        for entries in blocks.values():
            rng.shuffle(entries)
        return _packed(
            alternate(blocks.values()),
            self._news_of_strangers(now),
            now,
            limits.MAP_RECORDS - 1,
            limits.MAP_BYTES,
        )

    def news(self, now: float, besides: str = "") -> tuple[bytes, ...]:
        """What a map request brings to others: the proven records heard last, and a few strangers."""
        proven = [self._entries[peer] for peer in self._proven if peer != besides]
        proven.sort(key=lambda entry: -entry.heard_at)
        space = limits.MAP_REQUEST_BYTES - limits.RECORD_BYTES - 1024
        return _packed(proven[:NEWS], self._news_of_strangers(now), now, NEWS, space)

    # --- inside

    def _place(self, entry: _Entry, source: Source) -> None:
        """Put an entry where it belongs now: among the proven, or among the strangers that `source` brought."""
        peer = entry.record.peer
        if peer not in self._vouched and not self.proven(peer):
            self._unplace(entry)
            entry.source, entry.met, entry.block = source, (), None
            self._strangers.add(peer, source)
            return
        if peer not in self._proven:
            self._unplace(entry)
            self._proven[peer] = None
        for place in _parsed(entry.met):
            other = self._places.get(place, peer)
            if other != peer:
                self.doubt(other)
            self._places[place] = peer

    def _unplace(self, entry: _Entry) -> None:
        peer = entry.record.peer
        self._proven.pop(peer, None)
        self._strangers.discard(peer, entry.source)
        for place in _parsed(entry.met):
            if self._places.get(place) == peer:
                del self._places[place]

    def _forget(self, entry: _Entry) -> None:
        self._unplace(entry)
        del self._entries[entry.record.peer]
        del self._held[entry.record.data]

    def _heard_again(self, entry: _Entry, source: Source) -> None:
        """A stranger whom somebody pushed, and now one that we asked names too, is the latter's."""
        if source.asked and not entry.source.asked and not self.is_proven(entry.record.peer):
            self._place(entry, source)

    def _make_room(self) -> None:
        """Keep to the bounds; a sixty-fourth goes at once, so that it costs little per record."""
        count = max(1, self._most // 64)
        if len(self._proven) > self._most:
            self._forget_proven(count)
        if len(self._entries) - len(self._proven) > self._most:
            for peer in self._strangers.going(count):
                self._forget(self._entries[peer])

    def _forget_proven(self, count: int) -> None:
        """Of the block with the most, those not met for the longest time."""
        blocks: dict[str | None, list[str]] = {}
        for peer in self._proven:
            blocks.setdefault(self.origin(peer), []).append(peer)
        for peer in max(blocks.values(), key=len)[:count]:
            if peer not in self._vouched:
                self._forget(self._entries[peer])

    def _in_turn(self, now: float) -> Iterator[_Entry]:
        """Strangers that may be tried now."""
        for peer in self._strangers.in_turn():
            entry = self._entries[peer]
            if entry.retry_at <= now and _may_be_met(entry, now):
                yield entry

    def _news_of_strangers(self, now: float) -> list[_Entry]:
        return list(islice((entry for entry in self._in_turn(now) if not entry.tries), STRANGERS_PASSED_ON))


def _block(places: Iterable[str]) -> str | None:
    """The block of the first of these that is no name."""
    for host, _ in _parsed(places):
        try:
            return origin_of(host)
        except ValueError:
            continue
    return None


def _may_be_met(entry: _Entry, now: float) -> bool:
    said = entry.record.announcement
    return entry.is_valid(now) and said.state != "gone" and bool(said.addrs)


def _packed(
    first: Iterable[_Entry], then: Iterable[_Entry], now: float, most: int, size_bytes: int
) -> tuple[bytes, ...]:
    """The valid records among these, as many as fit; a place is kept for each of `then`."""
    last = [entry.record.data for entry in then]
    size_bytes -= sum(len(data) + 8 for data in last)
    kept: list[bytes] = []
    for entry in first:
        data = entry.record.data
        if len(kept) + len(last) >= most or size_bytes < len(data) + 8:
            break
        if entry.is_valid(now):
            kept.append(data)
            size_bytes -= len(data) + 8
    return (*kept, *last)


def _parsed(addrs: Iterable[str]) -> set[tuple[str, int]]:
    """Addresses as places that can be compared."""
    found = set()
    for addr in addrs:
        try:
            place = parse_address(addr)
        except ConfigError:
            continue
        found.add((place.host, place.port))
    return found
