"""Who has which weights of a model to give: what nodes announce that they serve, and what they say when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import trio

from node.fetch.fetching import Holder
from protocol.errors import PeerUnavailable, RemoteProtocolError
from protocol.inventory import Inventory
from protocol.model import Span
from protocol.records import Announcement
from protocol.talk.weights import ask_holdings, ask_inventory, open_weights
from protocol.transport.base import Transport
from protocol.weights import Witness

# Nodes of the model that are asked what they hold, and how many at once.
ASKED: Final = 64
ASKED_AT_ONCE: Final = 16
# A node is asked again after this: it may have fetched or read more.
FRESH_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class _Said:
    stages: Mapping[int, bytes]
    at: float


class Holders:
    """What nodes of one model have; `others` gives the announcements of those that were met."""

    def __init__(
        self,
        transport: Transport,
        others: Callable[[], Sequence[Announcement]],
        model: bytes,
        stages: int,
    ) -> None:
        self._transport = transport
        self._others = others
        self._model = model
        self._stages = stages
        self._said: dict[str, _Said] = {}

    def nodes(self) -> list[Announcement]:
        """Those of the model."""
        return [said for said in self._others() if said.digest == self._model and said.stages == self._stages]

    async def ask(self) -> None:
        """Ask those who were not asked lately what they hold; who does not answer holds what it serves."""
        now, limiter = trio.current_time(), trio.CapacityLimiter(ASKED_AT_ONCE)
        nodes = [said for said in self.nodes() if self._is_stale(said.peer, now)][:ASKED]

        async def one(said: Announcement) -> None:
            async with limiter:
                stages: dict[int, bytes] = {}
                try:
                    async with await open_weights(self._transport, said.peer, said.addrs) as channel:
                        stages = await ask_holdings(channel, self._model, self._stages)
                except (PeerUnavailable, RemoteProtocolError):
                    pass  # it shares nothing, or is not to be reached: then it gives nothing either
                self._said[said.peer] = _Said(stages, trio.current_time())

        async with trio.open_nursery() as nursery:
            for said in nodes:
                nursery.start_soon(one, said)

    def held(self) -> list[Holder]:
        """Who gives what, as far as they were asked."""
        found = []
        for node in self.nodes():
            said = self._said.get(node.peer)
            if said is not None and said.stages:
                found.append(Holder(node.peer, node.addrs, frozenset(said.stages.values())))
        return found

    def witnesses(self, origin: Callable[[str], str | None]) -> list[Witness]:
        """What each node says the weights are, those that it serves and those that it holds."""
        found: list[Witness] = []
        for node in self.nodes():
            said = self._said.get(node.peer)
            stages = dict(said.stages) if said is not None else {}
            stages.update(zip(node.span, node.weights, strict=True))
            for run in runs(stages):
                digests = tuple(stages[stage] for stage in run)
                found.append(Witness(node.peer, origin(node.peer) or "", run, digests))
        return found

    async def inventories(self, digests: Iterable[bytes]) -> dict[bytes, Inventory]:
        """Of these stages, from whoever gives them; of some none, if nobody does now."""
        missing, found = set(digests), dict[bytes, Inventory]()
        for holder in self.held():
            wanted = sorted(missing & holder.stages)
            if not wanted:
                continue
            try:
                async with await open_weights(self._transport, holder.peer, holder.addrs) as channel:
                    for digest in wanted:
                        found[digest] = await ask_inventory(channel, digest)
                        missing.discard(digest)
            except (PeerUnavailable, RemoteProtocolError):
                continue  # another one may have them
        return found

    def _is_stale(self, peer: str, now: float) -> bool:
        said = self._said.get(peer)
        return said is None or now - said.at >= FRESH_S


def runs(stages: Iterable[int]) -> list[Span]:
    """The ranges that these stages make."""
    found = []
    for _, group in groupby(enumerate(sorted(stages)), lambda pair: pair[1] - pair[0]):
        run = [stage for _, stage in group]
        found.append(Span(run[0], run[-1] + 1))
    return found
