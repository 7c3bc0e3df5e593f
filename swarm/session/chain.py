"""The open hops of a session, in order, and what passes between them.

Theory of operation
-------------------
A boundary is where one hop's output becomes the next one's input. What crosses it are steps: rows at a position,
under a number that only grows. Whoever sends over a boundary keeps its *journal*, the rows that still stand by the
steps that brought them. `journal` here is that of the boundary before the first hop. Every step is in it first, so
it says of every other boundary which steps stand and how many rows each has.

Three counts of steps, each the highest number plus one: `sent`; `done`, which the last hop says are through; and
`settled`, which every living hop says it has computed and sent on. settled <= done <= sent. (The last hop may lie:
then `done` runs ahead of `settled`, which is why nothing is thrown away by `done`.)

*The splice* puts new hops, whose caches are empty, in the place of a gap. Whoever keeps the journal of the boundary
before the gap (the living hop there, or we) sends all of it: steps below `settled` as fills, in large chunks, of
which no output comes and which end at the last new hop, since every hop behind has computed them; the others as
they were, with what they asked for. These pass the new hops and go on to the living ones, who compute those that
they lack and no others. Hops that died while they were being filled hold nothing, so they belong to the gap.

*No token can be wrong by this*, because a hop's cache follows from its boundary's journal alone: a step cuts the
cache to its position before it appends its rows, and numbers come in order, each computed once. So all steps, or
all that still stands of them in chunks, or a part twice, leave the same cache. A new hop is thus a hop that was
slow; the output of a step is taken once, under its number, from the last hop only (`inbox`), and only as what was
asked for (`outputs`). What a hop lies about is no better and no worse for the splice.

*Lanes* change nothing of this: a step brings rows to several sequences at once, and begins and ends some, and what a
hop holds still follows from the steps before. What still stands of them is on the paths of the lanes that are there
(`protocol/journal`). But what we carry ourselves is one lane: where a boundary is to be bridged while there are
others, whoever asks hears of it (`NotCarried`) and gives each a session of its own.

*A bridge* makes us the sender of a boundary between two hops: `carry`. The first replays its journal to us, and
then returns every step. How much of that the second has by the direct link nobody can tell, so all of it goes into
our journal of this boundary, and on go the steps that the second has not said it received; if they are on their way
to it already, the number makes them nothing. Of steps below `settled` several may come as one, as a fill; a later
one comes alone, for with it goes what it asks for. Rows that were gone back over meanwhile are cut off: the first
hop may not have heard of it yet.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from protocol.candidates import NOTHING, Want
from protocol.errors import Malformed
from protocol.journal import Journal
from protocol.messages import Output, Step
from protocol.model import Span
from protocol.numerics import Numerics
from swarm.session.hop_stream import HopStream
from swarm.session.outputs import Misfit, check_hidden, fit_rows
from swarm.session.recovery import Gap, Place, find_gaps

# Patience doubles for a peer that was too slow; this often reaches the longest that `watch` waits from its shortest.
MOST_DOUBLINGS: Final = 5
# Each step has an ack and an output at most, each time it is sent.
SAID_OF_A_STEP: Final = 2


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What a session is about."""

    digest: bytes
    blocks: int
    vocab_size: int
    hidden_size: int
    wanted: Span  # the stages that hops run
    max_tokens: int
    wait_s: float = 0.0  # how long to wait for somebody to serve stages that nobody serves
    direct: bool = True  # hops send to each other; else everything passes through the client
    reuse: bool = True  # hops may take what they computed for others, and keep for others what they compute


class Chain:
    """A session's hops and boundaries; `id` is the session's, for its user. Begins without hops."""

    def __init__(self, spec: SessionSpec, journal: Journal | None = None) -> None:
        """journal: what it begins with, all of which is through; without: nothing."""
        self.spec = spec
        self.id = secrets.token_hex(8)
        self.journal = journal or Journal(spec.max_tokens)
        self._hops: list[HopStream] = []
        # Of hops that could not be forked, by the stage they begin at.
        self._lost_feeds: dict[int, Journal] = {}
        self._forked_numerics: Mapping[int, Numerics] = {}  # of all stages, where they were forked
        self._done = self.sent
        self._rounds = 1  # how often hops may have been sent the same steps
        self._slow: Counter[str] = Counter()  # how often each peer was too slow
        self._stuck = False  # a hop said that it goes back, and could not
        self._changed = trio.Event()

    @property
    def hops(self) -> tuple[HopStream, ...]:
        """The hops as they are now; those that failed stay until they are replaced."""
        return tuple(self._hops)

    @property
    def last(self) -> HopStream | None:
        """The hop whose outputs are the session's."""
        return self._hops[-1] if self._hops else None

    @property
    def broken(self) -> bool:
        """Whether there is something to mend."""
        return not self._hops or any(hop.failure or hop.link_down for hop in self._hops)

    @property
    def carries(self) -> bool:
        """Whether anything passes between two hops by way of the client, or has to."""
        return not self.spec.direct or any(hop.feed is not None for hop in self._hops[1:])

    @property
    def numerics(self) -> dict[int, Numerics]:
        """What stages were computed in so far, also by hops that failed; empty until a step is through."""
        if not self.done:
            return {}
        hops = (hop.planned for hop in self._hops)
        of_hops = {stage: hop.numerics for hop in hops if hop.numerics is not None for stage in hop.span}
        return {**self._forked_numerics, **of_hops}

    @property
    def goes_back(self) -> bool:
        """Whether a step may stand before the end: all hops say that they go back, and none has failed to."""
        return not self._stuck and all(hop.goes_back for hop in self._hops)

    @property
    def sent(self) -> int:
        """Steps sent, the highest number plus one."""
        return self.journal.last_number + 1

    @property
    def done(self) -> int:
        """Steps that the last hop says are through."""
        return self._done

    @property
    def settled(self) -> int:
        """Steps that every hop says are through, itself included: fewer than `done` if the last one lies."""
        living = [hop for hop in self._hops if hop.failure is None]
        return min([self._done, *(max(hop.claims.acked, hop.filled_at) for hop in living)])

    @property
    def most_said(self) -> int:
        """The acks and outputs that a hop may have sent by now."""
        return SAID_OF_A_STEP * self.sent * self._rounds

    def before(self, hop: HopStream) -> HopStream | None:
        """The hop before `hop`, or None if that is the client (or `hop` is no longer of the session)."""
        index = self._hops.index(hop) if hop in self._hops else 0
        return self._hops[index - 1] if index else None

    def behind(self, hop: HopStream) -> HopStream | None:
        """The hop behind `hop`, or None if that is the client (or `hop` is no longer of the session)."""
        index = self._hops.index(hop) + 1 if hop in self._hops else len(self._hops)
        return self._hops[index] if index < len(self._hops) else None

    def gaps(self) -> list[Gap]:
        """What is to be replaced, left to right."""
        places = [Place(hop.span, hop.failure is None, hop.filled) for hop in self._hops]
        return find_gaps(self.spec.wanted, places)

    def behind_gap(self, gap: Gap) -> HopStream | None:
        """The living hop behind a gap, if there is one."""
        return self._hops[gap.last] if gap.last < len(self._hops) else None

    def before_gap(self, gap: Gap) -> HopStream | None:
        """The living hop before a gap, if there is one."""
        return self._hops[gap.first - 1] if gap.first else None

    # -- what passes

    def send(self, step: Step) -> None:
        """Note a step, and send it to the first hop if there is one."""
        self.journal.take(step)
        if self._hops:
            self._hops[0].post(step)

    def carry(self, hop: HopStream, output: Output, want: Want) -> None:
        """Take the result of a step that wants `want` over a boundary that we bridge: the rows its journal lacks.

        Raises: Misfit, if they are others; Malformed, if they cannot be, or we bridge nothing there.
        """
        behind = self.behind(hop)
        if hop.bridged_from is None or behind is None or behind.feed is None:
            raise Malformed("returned what was to go to the next hop")
        hidden = check_hidden(output, self.spec.hidden_size, hop.dtype)
        lacking = self.journal.between(behind.feed.last_number, output.number)
        if lacking:  # else it was answered again, or rolled back meanwhile
            fill = output.number < self.settled
            if len(lacking) > 1 and not fill:
                raise Misfit(f"passed over the hidden states of step {lacking[0].number}")
            rows = fit_rows(lacking, output.position, hidden)
            wanted, fill_until = (NOTHING, behind.fill_until) if fill else (want, None)
            step = Step(output.number, output.position, rows, wanted, fill_until)
            behind.feed.take(step)
            if output.number >= behind.claims.received:  # else it came before the boundary was bridged
                behind.post(step)
        hop.claims.deliver(output.number, len(hidden.data), trio.current_time())

    def advance(self, done: int) -> None:
        """Every step below `done` is through."""
        if done > self._done:
            self._done = done
            self.notify()

    # -- what changes

    def begin_with(
        self, hops: Sequence[HopStream], lost_feeds: Mapping[int, Journal], numerics: Mapping[int, Numerics]
    ) -> None:
        """Have hops that were forked from another session's; where some are missing there is a gap.

        lost_feeds: of those that are missing and were fed by the client, what they were fed, by their first stage.
        numerics: what the other session's stages were computed in.
        """
        self._hops, self._lost_feeds, self._forked_numerics = list(hops), dict(lost_feeds), numerics

    def splice(self, gap: Gap, opened: list[HopStream]) -> list[HopStream]:
        """Put new hops in a gap, to be filled by whoever fed the first of those they replace; returns these."""
        behind, dead = self.behind_gap(gap), self._hops[gap.first : gap.last]
        feed = self._feed_of(gap, dead)
        for hop in dead:
            hop.fail("was being filled by a hop that died")
        settled = self.settled
        self._hops[gap.first : gap.last] = opened
        if feed is not None:
            opened[0].take_feed(feed)
        if not self.spec.direct:
            for hop in opened[1:]:
                hop.take_feed(Journal(self.spec.max_tokens))
        elif behind is not None:
            behind.leave_feed()
        for hop in opened:
            hop.begin_fill(settled, opened[-1].span.stop, 1 << min(self._slow[hop.peer], MOST_DOUBLINGS))
        self._rounds += 1
        return dead

    def _feed_of(self, gap: Gap, dead: Sequence[HopStream]) -> Journal | None:
        """What the client has fed into a gap, if it does."""
        lost = self._lost_feeds.pop(gap.stages.start, None)
        if gap.first == 0:
            return self.journal
        return dead[0].feed if dead and dead[0].span.start == gap.stages.start else lost

    def bridge(self, before: HopStream, behind: HopStream, fed_from: int) -> None:
        """Carry from now on what passes between two neighbours; `fed_from` steps may have passed directly."""
        behind.take_feed(Journal(self.spec.max_tokens), fed_from)
        before.bridge(self.sent, self.settled)
        self._rounds += 1

    def cut(self, hop: HopStream, reason: str) -> None:
        """A hop cannot reach the next one."""
        hop.cut_off(reason)
        self.notify()

    def note_stuck(self) -> None:
        """A hop could not go back, whatever it said before: from now on none is asked to."""
        self._stuck = True

    def note_slow(self, peer: str) -> None:
        """A peer was too slow: it is given more time the next time."""
        self._slow[peer] += 1

    def release(self) -> list[HopStream]:
        """The session is over: the hops that are to be closed."""
        hops, self._hops = self._hops, []
        return hops

    def notify(self) -> None:
        """Wake whoever waits for a change."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait_changed(self) -> None:
        """Until something happens to the chain."""
        await self._changed.wait()
