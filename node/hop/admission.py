"""Who has a session here, and who gives way to whom. Pure: counts, holds nothing.

All that a session holds is one reservation: tokens (its KV cache and journal), which grow with it page by page, and
buffer bytes (what may be in motion: frames, steps that wait, answers), made when it opens. It is charged to the node,
to its origin and to its peer, each of which has a limit. Where a limit binds, those who do not use their seat give
way to whoever asks for room: first who has computed nothing yet, then who has been idle, then who pauses, of peers
that have more than who asks; never who computes or has steps waiting. Who has less never gives way early to who has
more, however often that one asks.

Where there is no more room no session is opened while those that are open may still grow. One that grows then waits
in a line: first those of origins and peers with the fewest sessions, then the oldest. Where nobody is left who gets
on, the last in line has to go (its client begins anew, here or elsewhere), so that those before it come to their end;
and nobody waits for long. `now` is in seconds, on any clock that does not jump.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final

from node.hop.seats import Accounts, Excess, Held, Room, Seat

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
# Others who compute may come to their end: the last in line waits for that so long, ...
GROW_WAIT_S: Final = 2.0
# ... and goes sooner where nobody computes; the next one not before its room has come to those before it.
GROW_YIELD_S: Final = 0.5
# A step that waits is not answered meanwhile: nobody waits longer, before its client thinks that the node is stuck.
GROW_MOST_S: Final = 4.0


@dataclass(slots=True)
class _Wanting:
    """A seat that waits to grow, and the limit it met when it asked last."""

    since: float
    excess: Excess | None = None


class Admission:
    """The seats taken, and the decision about one more, or one that grows."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self._seats: dict[Seat, None] = {}  # in order of opening
        self._line: dict[Seat, _Wanting] = {}
        self._yielded_at = float("-inf")

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
        gone = self._room_for(seat, now)
        if isinstance(gone, Excess):
            raise gone.error()
        for other in gone:
            self.release(other)
        seat.opened_at = now
        self._seats[seat] = None
        return gone

    def release(self, seat: Seat) -> None:
        """Give a seat back. Safe to call twice."""
        self._seats.pop(seat, None)
        self._line.pop(seat, None)

    def grow(self, seat: Seat, tokens: int, now: float) -> list[Seat]:
        """Have a seat hold so many tokens; those that have lost theirs to it.

        Raises: CacheFull; then it waits in line, until it asks again and is granted it, or is given back.
        """
        if tokens <= seat.tokens or seat not in self._seats:
            self._line.pop(seat, None)
            return []
        wanting = self._line.setdefault(seat, _Wanting(now))
        wanting.excess = self._before_it(seat)
        gone: list[Seat] | Excess = wanting.excess or []
        if wanting.excess is None:
            more = Seat(seat.peer, seat.origin, tokens - seat.tokens, 0, sessions=0)
            gone = self._room_for(more, now, keep=seat)
        if isinstance(gone, Excess):
            wanting.excess = gone
            raise gone.error()
        for other in gone:
            self.release(other)
        seat.tokens = tokens
        del self._line[seat]
        return gone

    def leave_line(self, seat: Seat) -> None:
        """It waits no more."""
        self._line.pop(seat, None)

    def must_yield(self, seat: Seat, now: float) -> bool:
        """Whether a seat that waits to grow has to go, so that those before it get on: it is to be given back."""
        wanting = self._line.get(seat)
        if wanting is None or wanting.excess is None:
            return False
        waited_s = now - wanting.since
        if waited_s >= GROW_MOST_S:
            return True
        if min(waited_s, now - self._yielded_at) < GROW_YIELD_S:
            return False
        excess = wanting.excess
        rivals = [other for other in self._line if excess.counts(other)]
        if seat is not max(rivals, key=self._ranks(rivals)):
            return False
        charged = [other for other in self._seats if excess.counts(other)]
        if waited_s < GROW_WAIT_S and (len(rivals) == 1 or any(self._gets_on(each, now) for each in charged)):
            return False
        self._yielded_at = now
        return True

    def offer(self, buffer_bytes: Callable[[int], int], now: float) -> int:
        """The most tokens that a newcomer from elsewhere would get; `buffer_bytes` is what such a session needs."""

        def is_refused(tokens: int) -> bool:
            return self._would_go(Seat("", "", tokens, buffer_bytes(tokens)), now) is None

        return bisect_right(range(1, self.room.of_peer.tokens + 1), False, key=is_refused)

    def is_owed(self, seat: Seat, now: float) -> bool:
        """Whether others will have to give way for it, but for those who step within PAUSE_S from now."""
        gone = self._would_go(seat, now + PAUSE_S)
        return gone is not None and all(other.peer != seat.peer for other in gone)

    # --- the line

    def _before_it(self, seat: Seat) -> Excess | None:
        """The limit that somebody waits for who comes before a seat and is charged to it too."""
        waiting = {
            other: wanting.excess for other, wanting in self._line.items() if wanting.excess is not None
        }
        rank = self._ranks([seat, *waiting])
        before = (excess for other, excess in waiting.items() if rank(other) < rank(seat))
        return next((excess for excess in before if excess.counts(seat)), None)

    def _ranks(self, seats: list[Seat]) -> Callable[[Seat], tuple[int, int, int]]:
        """The order of the line: few sessions of one origin, then of one peer, then long since opened."""
        accounts, order = Accounts(self.room, self._seats), {seat: at for at, seat in enumerate(self._seats)}
        ranks = {seat: (*accounts.sessions_beside(seat), order[seat]) for seat in seats}
        return ranks.__getitem__

    def _gets_on(self, seat: Seat, now: float) -> bool:
        """Whether a session computes, or has just now, and so may come to its end."""
        if seat in self._line:
            return False
        return bool(seat.waiting) or now - max(seat.opened_at, seat.used_at or 0.0) < PAUSE_S

    # --- who gives way

    def _would_go(self, asking: Seat, now: float) -> list[Seat] | None:
        gone = self._room_for(asking, now)
        return None if isinstance(gone, Excess) else gone

    def _room_for(self, asking: Seat, now: float, keep: Seat | None = None) -> list[Seat] | Excess:
        """Who has to go, never `keep`: in order, and nobody whose going is not needed. Or the limit in the way."""
        accounts = Accounts(self.room, self._seats)
        excess = accounts.excess(asking)
        if excess is None:
            return []
        gone: list[Seat] = []
        for seat in chain(self._giving_way(accounts, asking, now), self._pausing(accounts, asking, now)):
            if excess.counts(seat) and seat is not keep and seat not in gone:
                gone.append(seat)
                accounts.add(seat, -1)
                excess = accounts.excess(asking)
                if excess is None:
                    break
        else:
            return excess
        needed = []
        for seat in reversed(gone):  # who went for one limit may stay where those after it went for another
            accounts.add(seat)
            if accounts.excess(asking) is not None:
                accounts.add(seat, -1)
                needed.append(seat)
        return needed[::-1]

    def _giving_way(self, accounts: Accounts, asking: Seat, now: float) -> Iterator[Seat]:
        """Who may lose its seat, first who shall lose it first: the new, then the idle."""
        idle = self._idle(accounts, asking, now)  # before the new go: how crowded an origin is counts them
        yield from self._new(accounts, asking, now)
        yield from idle

    def _new(self, accounts: Accounts, asking: Seat, now: float) -> Iterator[Seat]:
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

    def _idle(self, accounts: Accounts, asking: Seat, now: float) -> list[Seat]:
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

    def _pausing(self, accounts: Accounts, asking: Seat, now: float) -> Iterator[Seat]:
        """Who pauses, of peers that without this seat too have as much as the asking one then has; the richest first,
        and of its seats that which pauses longest."""
        quiet = [(max(s.opened_at, s.used_at or 0.0), s) for s in self._seats if not s.waiting]
        pausing = [(since, seat) for since, seat in quiet if now - since >= PAUSE_S]
        pausing.sort(key=lambda entry: (-accounts.of_peer(entry[1].peer), entry[0]))
        share = accounts.of_peer(asking.peer, asking)
        for _, seat in pausing:
            if accounts.of_peer(seat.peer, seat, -1) >= share:
                yield seat
