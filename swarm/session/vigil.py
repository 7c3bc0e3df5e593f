"""Looks at a session's hops while a step is out, and acts on what it sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from swarm.session.blame import Blame
from swarm.session.chain import Chain
from swarm.session.watch import GiveUp, Probe, Slow, Unlinked, Watch

WATCH_EVERY_S: Final = 0.25


class Vigil:
    """Pings hops that are silent while a step is out; gives up those that stay silent.

    waiting_since: since when a step is out, if one is.
    """

    def __init__(
        self, chain: Chain, blame: Blame, nursery: trio.Nursery, waiting_since: Callable[[], float | None]
    ) -> None:
        self._chain = chain
        self._blame = blame
        self._nursery = nursery
        self._waiting_since = waiting_since
        self._watch = Watch(chain.journal)
        self._scope = trio.CancelScope()

    def end(self) -> None:
        """The session is over."""
        self._scope.cancel()

    async def run(self) -> None:
        """Until the end. A machine too busy to run this in time is too busy to judge others: their time then begins
        anew."""
        judged_from = 0.0
        with self._scope:
            while True:
                began = trio.current_time()
                await trio.sleep(WATCH_EVERY_S)
                now = trio.current_time()
                if now - began > 2 * WATCH_EVERY_S:
                    judged_from = now
                since = self._waiting_since()
                if since is not None:
                    self._act_on_silence(max(since, judged_from))

    def _act_on_silence(self, since: float) -> None:
        hops = self._chain.hops
        for verdict in self._watch.look([hop.watched for hop in hops], trio.current_time(), since):
            hop = hops[verdict.hop]
            match verdict:
                case Probe():
                    self._nursery.start_soon(hop.ping)
                case GiveUp(reason=reason, honest=honest):
                    self._blame.lose(hop, reason, honest=honest)
                case Slow(reason=reason, honest=honest):
                    self._blame.leave_slow(hop, reason, honest=honest)
                case Unlinked():
                    self._chain.cut(hop, "what it sends on does not arrive")
