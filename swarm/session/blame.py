"""Whose fault a failure is, and what follows for the hop, its peer, and the hop before it."""

from __future__ import annotations

from collections import Counter
from typing import Final

import trio

from swarm.events import Fault
from swarm.routing.bans import PAUSE_S, Bans
from swarm.session.chain import MOST_DOUBLINGS, Chain
from swarm.session.hop_stream import HopStream

# So many of those whom a hop feeds may fail over it, until we carry what it sends them and so see it ourselves, ...
ACCUSED_BRIDGED: Final = 2
# ... and until it is replaced.
ACCUSED_REPLACED: Final = 4
# A hop that was too slow is left alone for this long where others serve what it does: its load may have passed then.
SLOW_REST_S: Final = 30.0


class Blame:
    """Gives hops of a session up, and bans their peers for what is theirs."""

    def __init__(self, chain: Chain, bans: Bans) -> None:
        self._chain = chain
        self._bans = bans
        self._full: Counter[str] = Counter()  # how often each peer had no room to go on

    def lose(self, hop: HopStream, reason: str, *, honest: bool, fault: Fault | None = None) -> None:
        """A hop failed: end it and ban its peer."""
        if hop.failure is None and hop in self._chain.hops:
            self._bans.ban(hop.peer, trio.current_time(), honest=honest)
        hop.fail(reason, fault or ("lost" if honest else "broke_rules"))
        self._chain.notify()

    def lose_over_input(self, hop: HopStream, reason: str) -> None:
        """A hop got wrong what it was sent, or says that it was sent something wrong."""
        if hop.fed_by_us:
            self.lose(hop, reason, honest=False)
        else:
            self.doubt(hop, reason)

    def doubt(self, hop: HopStream, reason: str, fault: Fault = "misled") -> None:
        """A hop failed in a way that the hop before it may have brought about.

        Neither is banned for long on the word of the other. The one that failed is replaced; where that happens
        again, we carry what passes between them; where even that does not help, the one before is replaced.
        """
        before = self._chain.before(hop)
        if hop.failure is None and before is not None:
            before.accuse()
            if before.accused == ACCUSED_REPLACED:
                self.lose(before, "those whom it feeds fail", honest=True)
        self.lose(hop, reason, honest=True, fault=fault)

    def leave_full(self, hop: HopStream, reason: str, retry_after_s: float) -> None:
        """A hop has no room to go on: it is asked again after a while, each time a longer one."""
        self._full[hop.peer] += 1
        seconds = max(retry_after_s, PAUSE_S) * 2.0 ** min(self._full[hop.peer] - 1, MOST_DOUBLINGS)
        self._bans.pause(hop.peer, trio.current_time(), seconds)
        hop.fail(reason, "full")
        self._chain.notify()

    def leave_slow(self, hop: HopStream, reason: str, *, honest: bool) -> None:
        """A hop that answers does not get on. That it answers is no sign that it would if it were asked again."""
        self._chain.note_slow(hop.peer)
        if honest and not hop.fed_by_us:
            self.doubt(hop, reason, "slow")
        else:
            self.lose(hop, reason, honest=honest, fault="slow")
        self._bans.pause(hop.peer, trio.current_time(), SLOW_REST_S, alone_s=PAUSE_S)
