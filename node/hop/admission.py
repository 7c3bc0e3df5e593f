"""Who has a session here, and who gives way to whom. Pure: counts, holds nothing.

All that a session may hold is one reservation, made when it opens: tokens (its KV cache and journal) and buffer bytes
(what is in motion: frames, steps that wait, answers). It is charged to the node, to its origin and to its peer, each
of which has a limit. Where a limit binds, those who do not use their seat give way to whoever asks for one: first who
has computed nothing yet, then who has been idle, then who pauses, of peers that have more than who asks; never who
computes or has steps waiting. Who has less never gives way early to who has more, however often that one asks.
`now` is in seconds, on any clock that does not jump.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final

from protocol import limits
from protocol.errors import CacheFull

# An origin never has everything: whoever comes from elsewhere finds a quarter free.
ORIGIN_SHARE: Final = 0.75
# Of the tokens and the buffers a peer has at most half, so that a second one finds room beside it.
PEER_SHARE: Final = 0.5
# But on a small node a lone user has a whole session, as long as a chat opens it.
USABLE_TOKENS: Final = 4096
# A client sends its first step as soon as all hops are open; hops at the end of a route get it when those before have
# computed, seconds later.
NEW_S: Final = 10.0
# So many of one origin may be new at once: beyond, the oldest of them is a flood's and not a client's.
NEW_OF_ORIGIN: Final = 32
# The same where more than a few of one origin hold this part of what there is; but for as long as a first step takes
# to come from a client that is not far, each is let be.
NEW_FEW: Final = 4
NEW_SHARE: Final = 0.25
NEW_CROWDED_S: Final = 0.25
# A user reads and types for longer than this, and then pays a replay, but only where somebody else waits.
IDLE_S: Final = 30.0
# The more of its share an origin holds, the sooner its sessions count as idle: down to this, which a session that
# decodes does not reach though it shares the node with others.
IDLE_CROWDED_S: Final = 3.0
# A peer that has more than who asks keeps those of its sessions that compute all the time: between two steps of an
# answer passes less than this, but for very slow routes.
PAUSE_S: Final = 0.5


@dataclass(slots=True)
class Held:
    """Amounts that sessions hold together, or may hold."""

    tokens: int = 0
    buffer_bytes: int = 0
    sessions: int = 0

    def add(self, seat: Seat, times: int = 1) -> None:
        """One more session, or one less with `times` -1."""
        self.tokens += times * seat.tokens
        self.buffer_bytes += times * seat.buffer_bytes
        self.sessions += times

    def excess(self, seat: Seat, limit: Held) -> str | None:
        """What there would be too much of with `seat` besides, or None."""
        if self.sessions + 1 > limit.sessions:
            return f"{limit.sessions} sessions"
        if self.tokens + seat.tokens > limit.tokens:
            return f"{limit.tokens} tokens"
        if self.buffer_bytes + seat.buffer_bytes > limit.buffer_bytes:
            return f"{limit.buffer_bytes} bytes of buffers"
        return None

    def fraction(self, limit: Held, seat: Seat | None = None, times: int = 1) -> float:
        """How much of the limit this is, of whatever it is most; or would be with `seat` besides, or less."""
        tokens, buffer_bytes, sessions = self.tokens, self.buffer_bytes, self.sessions
        if seat is not None:
            tokens, buffer_bytes = tokens + times * seat.tokens, buffer_bytes + times * seat.buffer_bytes
            sessions += times
        return max(
            tokens / max(1, limit.tokens),
            buffer_bytes / max(1, limit.buffer_bytes),
            sessions / max(1, limit.sessions),
        )


@dataclass(frozen=True, slots=True)
class Room:
    """What there is for all sessions together."""

    tokens: int
    buffer_bytes: int = limits.BUFFER_BYTES_LEAST

    @property
    def of_peer(self) -> Held:
        """The most that one peer has."""
        return self._share(PEER_SHARE, limits.SESSIONS_PER_PEER)

    @property
    def of_origin(self) -> Held:
        """The most that the peers of one origin have together."""
        return self._share(ORIGIN_SHARE, int(limits.SESSIONS * ORIGIN_SHARE))

    @property
    def of_all(self) -> Held:
        """Everything."""
        return Held(self.tokens, self.buffer_bytes, limits.SESSIONS)

    def _share(self, share: float, sessions: int) -> Held:
        tokens = max(int(self.tokens * share), min(self.tokens, USABLE_TOKENS))
        return Held(tokens, int(self.buffer_bytes * share), sessions)


@dataclass(slots=True, eq=False)
class Seat:
    """One session's reservation, and whether it is used: the session keeps the last two fields."""

    peer: str
    origin: str
    tokens: int
    buffer_bytes: int
    opened_at: float = 0.0
    waiting: int = 0  # steps that wait or are computed
    used_at: float | None = None  # when it last computed a step


class _Accounts:
    """What seats hold: together, by origin and by peer."""

    def __init__(self, room: Room, seats: Iterable[Seat]) -> None:
        self._most, self._most_of_origin, self._most_of_peer = room.of_all, room.of_origin, room.of_peer
        self._all = Held()
        self._of_origin: dict[str, Held] = {}
        self._of_peer: dict[str, Held] = {}
        for seat in seats:
            self.add(seat)

    def add(self, seat: Seat, times: int = 1) -> None:
        """Charge a seat, or take the charge back with `times` -1."""
        self._all.add(seat, times)
        self._of_origin.setdefault(seat.origin, Held()).add(seat, times)
        self._of_peer.setdefault(seat.peer, Held()).add(seat, times)

    def excess(self, asking: Seat) -> _Excess | None:
        """The first limit that would be exceeded with `asking` in."""
        none = Held()
        if what := self._of_peer.get(asking.peer, none).excess(asking, self._most_of_peer):
            return _Excess("you have", what, peer=asking.peer)
        if what := self._of_origin.get(asking.origin, none).excess(asking, self._most_of_origin):
            return _Excess("those where you come from have", what, origin=asking.origin)
        if what := self._all.excess(asking, self._most):
            return _Excess("others have", what)
        return None

    def of_origin(self, origin: str) -> float:
        """How much an origin has of what it may have."""
        return self._of_origin[origin].fraction(self._most_of_origin)

    def of_peer(self, peer: str, seat: Seat | None = None, times: int = 1) -> float:
        """How much a peer has of what it may have, or would have with `seat` besides, or less."""
        return self._of_peer.get(peer, Held()).fraction(self._most_of_peer, seat, times)

    def gives_way(self, seat: Seat, asking: Seat) -> bool:
        """Whether a seat's peer keeps as much without it as the asking one has now, or that is the same peer."""
        return seat.peer == asking.peer or self.of_peer(seat.peer, seat, -1) >= self.of_peer(asking.peer)

    def spares(self, seat: Seat, asking: Seat) -> bool:
        """Whether a seat's peer has others, and as much in them as the asking one has now."""
        left = self.of_peer(seat.peer, seat, -1)
        return left > 0 and left >= self.of_peer(asking.peer)


@dataclass(frozen=True, slots=True)
class _Excess:
    """A limit, whose it is, and what there would be too much of."""

    whose: str
    what: str
    peer: str | None = None
    origin: str | None = None

    def counts(self, seat: Seat) -> bool:
        """Whether a seat is charged to it."""
        return self.peer in (None, seat.peer) and self.origin in (None, seat.origin)


class Admission:
    """The seats taken, and the decision about one more."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self._seats: dict[Seat, None] = {}  # in order of opening

    @property
    def total(self) -> int:
        """Tokens, reserved or not."""
        return self.room.tokens

    @property
    def free(self) -> int:
        """Tokens that nobody has reserved."""
        return self.room.tokens - sum(seat.tokens for seat in self._seats)

    def take(self, seat: Seat, now: float) -> list[Seat]:
        """Take a seat; those that have lost theirs to it. Raises: CacheFull, which changes nothing."""
        gone = self._make_room(seat, now)
        for other in gone:
            self.release(other)
        seat.opened_at = now
        self._seats[seat] = None
        return gone

    def release(self, seat: Seat) -> None:
        """Give a seat back. Safe to call twice."""
        self._seats.pop(seat, None)

    def offer(self, buffer_bytes: Callable[[int], int], now: float) -> int:
        """The most tokens that a newcomer from elsewhere would get; `buffer_bytes` is what such a session needs."""

        def is_refused(tokens: int) -> bool:
            return self._would_go(Seat("", "", tokens, buffer_bytes(tokens)), now) is None

        return bisect_right(range(1, self.room.of_peer.tokens + 1), False, key=is_refused)

    def is_owed(self, seat: Seat, now: float) -> bool:
        """Whether others will have to give way for it, but for those who step within PAUSE_S from now."""
        gone = self._would_go(seat, now + PAUSE_S)
        return gone is not None and all(other.peer != seat.peer for other in gone)

    # --- who gives way

    def _would_go(self, asking: Seat, now: float) -> list[Seat] | None:
        try:
            return self._make_room(asking, now)
        except CacheFull:
            return None

    def _make_room(self, asking: Seat, now: float) -> list[Seat]:
        """Who has to go: in order, and nobody whose going is not needed. Raises: CacheFull."""
        accounts = _Accounts(self.room, self._seats)
        excess = accounts.excess(asking)
        if excess is None:
            return []
        gone: list[Seat] = []
        for seat in chain(self._giving_way(accounts, asking, now), self._pausing(accounts, asking, now)):
            if excess.counts(seat) and seat not in gone:
                gone.append(seat)
                accounts.add(seat, -1)
                excess = accounts.excess(asking)
                if excess is None:
                    break
        else:
            raise CacheFull(f"{excess.whose} all there is for now: {excess.what}")
        needed = []
        for seat in reversed(gone):  # who went for one limit may stay where those after it went for another
            accounts.add(seat)
            if accounts.excess(asking) is not None:
                accounts.add(seat, -1)
                needed.append(seat)
        return needed[::-1]

    def _giving_way(self, accounts: _Accounts, asking: Seat, now: float) -> Iterator[Seat]:
        """Who may lose its seat, first who shall lose it first: the new, then the idle."""
        idle = self._idle(accounts, asking, now)  # before the new go: how crowded an origin is counts them
        yield from self._new(accounts, asking, now)
        yield from idle

    def _new(self, accounts: _Accounts, asking: Seat, now: float) -> Iterator[Seat]:
        """Who has computed nothing, of the peers with the most such seats and there the oldest first.

        Of a peer that has more besides than the asking one a seat is never too new: whoever opens many would else
        keep out, by opening them ever anew, whoever asks for one.
        """
        found: list[tuple[Seat, bool]] = []
        of_origin: dict[str, Held] = {}
        of_peer: Counter[str] = Counter()
        for seat in reversed(self._seats):
            if seat.waiting or seat.used_at is not None:
                continue
            held, age_s = of_origin.setdefault(seat.origin, Held()), now - seat.opened_at
            held.add(seat)
            of_peer[seat.peer] += 1
            crowded = held.sessions > NEW_FEW and held.fraction(self.room.of_all) > NEW_SHARE
            early = held.sessions > NEW_OF_ORIGIN or (crowded and age_s >= NEW_CROWDED_S)
            found.append((seat, age_s >= NEW_S or (early and accounts.gives_way(seat, asking))))
        found.reverse()
        found.sort(key=lambda entry: -of_peer[entry[0].peer])
        for seat, old in found:
            if old or accounts.spares(seat, asking):
                yield seat

    def _idle(self, accounts: _Accounts, asking: Seat, now: float) -> list[Seat]:
        """Who has computed nothing for a while, of the origin, then the peer, with the most, and the newest first."""
        idle: list[tuple[float, float, Seat]] = []
        for seat in reversed(self._seats):
            if seat.waiting or seat.used_at is None:
                continue
            origin, peer = accounts.of_origin(seat.origin), accounts.of_peer(seat.peer)
            patience_s = max(IDLE_CROWDED_S, IDLE_S * (1.0 - origin))
            if now - seat.used_at >= (patience_s if accounts.gives_way(seat, asking) else IDLE_S):
                idle.append((origin, peer, seat))
        idle.sort(key=lambda entry: entry[:2], reverse=True)  # stable: of equals the newest stays first
        return [seat for _, _, seat in idle]

    def _pausing(self, accounts: _Accounts, asking: Seat, now: float) -> Iterator[Seat]:
        """Who pauses, of peers that without this seat too have as much as the asking one then has; the richest first,
        and of its seats that which pauses longest."""
        quiet = [(max(s.opened_at, s.used_at or 0.0), s) for s in self._seats if not s.waiting]
        pausing = [(since, seat) for since, seat in quiet if now - since >= PAUSE_S]
        pausing.sort(key=lambda entry: (-accounts.of_peer(entry[1].peer), entry[0]))
        share = accounts.of_peer(asking.peer, asking)
        for _, seat in pausing:
            if accounts.of_peer(seat.peer, seat, -1) >= share:
                yield seat
