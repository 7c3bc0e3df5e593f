"""What sessions hold at a node, together, by origin and by peer, and how much that may be. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from node.compute.interfaces import GROWTH_TOKENS
from protocol import limits
from protocol.errors import CacheFull

# An origin never has everything: whoever comes from elsewhere finds a quarter free.
ORIGIN_SHARE: Final = 0.75
# Of the tokens and the buffers a peer has at most half, so that a second one finds room beside it.
PEER_SHARE: Final = 0.5
# But on a small node a lone user has a whole session, as long as a chat opens it.
USABLE_TOKENS: Final = 4096
# So much of each share is for sessions that grow, as far as they may: where no more is left, none is opened.
GROWTH_SHARE: Final = 0.125


@dataclass(slots=True)
class Held:
    """Amounts that sessions hold together, or may hold."""

    tokens: int = 0
    buffer_bytes: int = 0
    sessions: int = 0
    growth: int = 0  # tokens that they may yet come to hold

    def add(self, seat: Seat, times: int = 1) -> None:
        """One more session, or one less with `times` -1."""
        self.tokens += times * seat.tokens
        self.buffer_bytes += times * seat.buffer_bytes
        self.sessions += times * seat.sessions
        self.growth += times * seat.growth

    def excess(self, seat: Seat, limit: Held) -> str | None:
        """What there would be too much of with `seat` besides, or None. A new one leaves room for others to grow."""
        if self.sessions + seat.sessions > limit.sessions:
            return f"{limit.sessions} sessions"
        kept = 0
        if seat.sessions:
            kept = min(max(GROWTH_TOKENS, int(limit.tokens * GROWTH_SHARE)), self.growth + seat.growth)
        if self.tokens + seat.tokens + kept > limit.tokens:
            return f"{limit.tokens} tokens"
        if self.buffer_bytes + seat.buffer_bytes > limit.buffer_bytes:
            return f"{limit.buffer_bytes} bytes of buffers"
        return None

    def fraction(self, limit: Held, seat: Seat | None = None, times: int = 1) -> float:
        """How much of the limit this is, of whatever it is most; or would be with `seat` besides, or less."""
        tokens, buffer_bytes, sessions = self.tokens, self.buffer_bytes, self.sessions
        if seat is not None:
            tokens, buffer_bytes = tokens + times * seat.tokens, buffer_bytes + times * seat.buffer_bytes
            sessions += times * seat.sessions
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
    """One session's reservation, and whether it is used: the session keeps `waiting` and `used_at`."""

    peer: str
    origin: str
    tokens: int  # that it holds now
    buffer_bytes: int
    opened_at: float = 0.0
    waiting: int = 0  # steps that wait or are computed
    used_at: float | None = None  # when it last computed a step
    most: int = 0  # tokens that it may come to hold, if more than now
    sessions: int = 1  # 0: what one that there is asks for besides

    @property
    def growth(self) -> int:
        """Tokens that it may yet come to hold."""
        return max(0, self.most - self.tokens)


class Accounts:
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

    def excess(self, asking: Seat) -> Excess | None:
        """The first limit that would be exceeded with `asking` in."""
        none = Held()
        if what := self._of_peer.get(asking.peer, none).excess(asking, self._most_of_peer):
            return Excess("you have", what, peer=asking.peer)
        if what := self._of_origin.get(asking.origin, none).excess(asking, self._most_of_origin):
            return Excess("those where you come from have", what, origin=asking.origin)
        if what := self._all.excess(asking, self._most):
            return Excess("others have", what)
        return None

    def sessions_beside(self, seat: Seat) -> tuple[int, int]:
        """How many there are of a seat's origin, and of its peer."""
        return self._of_origin[seat.origin].sessions, self._of_peer[seat.peer].sessions

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
class Excess:
    """A limit, whose it is, and what there would be too much of."""

    whose: str
    what: str
    peer: str | None = None
    origin: str | None = None

    def error(self) -> CacheFull:
        """In words."""
        return CacheFull(f"{self.whose} all there is for now: {self.what}")

    def counts(self, seat: Seat) -> bool:
        """Whether a seat is charged to it."""
        return self.peer in (None, seat.peer) and self.origin in (None, seat.origin)
