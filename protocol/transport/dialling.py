"""How much strangers may make us send to places they name: pure.

A record, a hint of the DHT, the next hop that a client names: all say where somebody listens, and may name a third
party instead. So a place is dialled freely only where the peer has been met before (or where our user says). Other
dials have a budget, counted in datagrams that nobody answered: a dial that succeeds costs nothing.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Iterable
from enum import Enum
from itertools import islice
from typing import Final

from protocol.errors import ConfigError
from protocol.transport.addresses import Address, parse_address
from protocol.transport.limits import MAX_DIAL_ADDRS
from protocol.transport.origin import origin_of

# A dial that is not answered sends this many datagrams in its one second: the first, and one more after 0.5 s in case
# it was lost. Measured on a silent socket: 2 x 1,228 bytes with their headers (IPv4 and UDP).
SILENT_DATAGRAMS: Final = 2
# Whoever refuses has seen one of them.
REFUSED_DATAGRAMS: Final = 1
DIAL_BYTES: Final = SILENT_DATAGRAMS * 1228

# Unanswered datagrams that wait to be forgotten. Two tries at one place; a machine with two dozen silent nodes, or
# twice as many dead ones, on it; two such machines in one block. In all 128 silent dials, 307 KiB: a client's start
# in a swarm where half of the nodes that it asks are gone.
PLACE_DATAGRAMS: Final = 4
HOST_DATAGRAMS: Final = 48
BLOCK_DATAGRAMS: Final = 96
ALL_DATAGRAMS: Final = 256
# A budget that is spent is whole again after this: by then a record of a node that has gone is forgotten. A place
# that was silent twice stays so for longer: who comes back there will dial us.
REFILL_S: Final = 60.0
PLACE_REFILL_S: Final = 600.0
# Dials of one host in flight: nobody needs more of a machine that answers, and one that does not is found out first.
DIALS_PER_HOST: Final = 4
# Places where peers were met, the latest kept.
PLACES: Final = 4096


class Verdict(Enum):
    """Whether to dial."""

    GO = "go"
    LATER = "later"  # once a dial has ended
    NEVER = "never"  # for now: too much that was sent there, or near it, went unanswered


class Budget:
    """What one peer spends on dials. `now` is monotonic, in seconds; hosts are IP addresses or names."""

    def __init__(self) -> None:
        self._met: OrderedDict[tuple[str, str, int], None] = OrderedDict()
        self._spent: dict[str, tuple[float, float]] = {}  # what -> datagrams, as of when
        self._flying: dict[str, int] = {}  # what -> dials in flight

    def meet(self, peer: str, host: str, port: int) -> None:
        """There was a verified connection with `peer` at this place: dials of it there are free from now on."""
        self._met[peer, host, port] = None
        self._met.move_to_end((peer, host, port))
        if len(self._met) > PLACES:
            self._met.popitem(last=False)

    def met(self, peer: str, host: str, port: int) -> bool:
        """Whether `peer` was met at this place."""
        return (peer, host, port) in self._met

    def begin(self, host: str, port: int, now: float) -> Verdict:
        """Whether a place may be dialled now; GO has to be followed by `end`."""
        shares = _shares(host, port)
        spent = {key: self._level(key, refill_s, most, now) for key, most, refill_s in shares}
        left = {key: most - spent[key] for key, most, _ in shares}
        flying = {key: SILENT_DATAGRAMS * self._flying.get(key, 0) for key in spent}
        if any(left[key] + flying[key] < SILENT_DATAGRAMS for key in spent):
            return Verdict.NEVER
        if any(left[key] < SILENT_DATAGRAMS for key in spent) or self._flying.get(host, 0) >= DIALS_PER_HOST:
            return Verdict.LATER
        self._add(host, port, SILENT_DATAGRAMS, now)
        for key in spent:
            self._flying[key] = self._flying.get(key, 0) + 1
        return Verdict.GO

    def end(self, host: str, port: int, unanswered: int, now: float) -> None:
        """A dial is over, and so many of its datagrams were not answered."""
        self._add(host, port, unanswered - SILENT_DATAGRAMS, now)
        for key, _, _ in _shares(host, port):
            self._flying[key] -= 1
            if not self._flying[key]:
                del self._flying[key]

    def _add(self, host: str, port: int, datagrams: int, now: float) -> None:
        for key, most, refill_s in _shares(host, port):
            level = max(0.0, self._level(key, refill_s, most, now) + datagrams)
            if level:
                self._spent[key] = (level, now)
            else:
                self._spent.pop(key, None)
        if len(self._spent) > PLACES:  # long forgotten ones: what is not, is bounded by ALL_DATAGRAMS
            self._spent = {
                key: spent for key, spent in self._spent.items() if spent[1] > now - PLACE_REFILL_S
            }

    def _level(self, key: str, refill_s: float, most: int, now: float) -> float:
        level, at = self._spent.get(key, (0.0, now))
        return max(0.0, level - (now - at) * most / refill_s)


def _shares(host: str, port: int) -> tuple[tuple[str, int, float], ...]:
    """What a dial counts against: (key, most, seconds until it is whole again)."""
    try:
        block = origin_of(host)
    except ValueError:
        block = "names"
    return (
        (f"{host} {port}", PLACE_DATAGRAMS, PLACE_REFILL_S),
        (host, HOST_DATAGRAMS, REFILL_S),
        (block, BLOCK_DATAGRAMS, REFILL_S),
        ("", ALL_DATAGRAMS, REFILL_S),
    )


def is_dialable(host: str, port: int) -> bool:
    """Whether one peer may listen at an IP address and port: not where many hear, or nobody can."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    nobody = address.is_unspecified or (
        address.version == 4 and address.is_reserved
    )  # 240.0.0.0/4 and broadcast
    return port != 0 and not nobody and not address.is_multicast


def dialable_places(addrs: Iterable[str]) -> list[Address]:
    """Those of the first addresses that are well-formed and may be dialled, each place once."""
    places: dict[tuple[str, str, int], Address] = {}
    for text in islice(addrs, MAX_DIAL_ADDRS):
        try:
            place = parse_address(text)
        except ConfigError:
            continue
        if place.port and (place.is_name or is_dialable(place.host, place.port)):
            places[place.kind, place.host, place.port] = place
    return list(places.values())
