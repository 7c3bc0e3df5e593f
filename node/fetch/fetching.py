"""Fetches the parcels of stages from several holders at once, into their files on this disk."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from node.fetch.orders import Orders
from node.store.stage import StageFile
from protocol.errors import PeerUnavailable, RemoteProtocolError
from protocol.messages import ParcelRequest
from protocol.talk.channel import Channel
from protocol.talk.weights import check_parcel, next_parcel, open_weights
from protocol.transport.base import Transport

logger = logging.getLogger(__name__)

# Holders asked at once: more bring no more over one downlink.
PEERS: Final = 8
# New holders are looked for after this, and those that were left are asked again; sooner when one is lost.
LOOK_EVERY_S: Final = 5.0
# A peer that failed is left alone for this long, twice as long each time.
REST_S: Final = 2.0
REST_MOST_S: Final = 120.0
# How often it is asked who is too slow, and whether something is to be taken over.
WATCH_EVERY_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Holder:
    """A peer that has stages to give, by their digests."""

    peer: str
    addrs: tuple[str, ...]
    stages: frozenset[bytes]


FindHolders = Callable[[], Awaitable[Sequence[Holder]]]


@dataclass(slots=True)
class _Record:
    """How a peer has done in this fetch."""

    failures: int = 0
    again_at: float = float("-inf")
    slow: bool = False
    lied: bool = False


class Fetching:
    """The stages in `files`, until all are whole. `left` is told of each peer that was given up, and why."""

    def __init__(
        self,
        transport: Transport,
        files: Sequence[StageFile],
        rng: random.Random,
        left: Callable[[str, str], None],
    ) -> None:
        self._transport = transport
        self._files = {file.inventory.digest: file for file in files}
        self._rng = rng
        self._left = left
        self._records: dict[str, _Record] = {}
        self._scopes: dict[str, trio.CancelScope] = {}  # of those who are asked now
        self._lost = trio.Event()  # one of them has ended
        self._orders = Orders({}, rng)
        self.fetched_bytes = 0  # also what came twice, or in vain
        self.givers: set[str] = set()

    @property
    def missing_bytes(self) -> int:
        """What has not come."""
        return sum(file.missing_bytes for file in self._files.values())

    @property
    def peers(self) -> int:
        """How many are asked now."""
        return len(self._scopes)

    def lacking(self) -> set[bytes]:
        """Stages, by their digests, that nobody gives who is asked now."""
        return self._orders.lacking()

    async def run(self, find: FindHolders) -> None:
        """Fetch what is missing from the holders that `find` finds, for as long as it takes.

        Raises: ConfigError, if the disk does not take it.
        """
        await trio.to_thread.run_sync(self._copy_what_is_here)
        await self._finish([file for file in self._files.values() if not file.missing])
        sizes = {digest: self._sizes(file) for digest, file in self._files.items() if file.missing}
        self._orders = Orders(sizes, self._rng)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            while not self._orders.done:
                self._lost = trio.Event()
                for holder in self._suited(await find()):
                    nursery.start_soon(self._take_from, holder)
                with trio.move_on_after(LOOK_EVERY_S):
                    await self._lost.wait()
            nursery.cancel_scope.cancel()

    # --- whom to ask

    def _suited(self, holders: Sequence[Holder]) -> list[Holder]:
        """Those to ask from now on, besides those who are asked."""
        now, lacking = trio.current_time(), self._orders.lacking()
        found = []
        for holder in holders:
            record = self._records.get(holder.peer, _Record())
            if holder.peer in self._scopes or record.lied or now < record.again_at:
                continue
            if self._orders.is_wanted(holder.stages) and (not record.slow or holder.stages & lacking):
                found.append(holder)
        self._rng.shuffle(found)
        found.sort(key=lambda holder: not holder.stages & lacking)  # who has what nobody else has comes first
        room = max(0, PEERS - len(self._scopes))
        return found[:room]

    async def _watch(self) -> None:
        """Leave who is too slow, and end when everything is here."""
        while True:
            for peer in self._orders.overdue(trio.current_time()):
                self._records.setdefault(peer, _Record()).slow = True
                self._left(peer, "it is far slower than others")
                self._scopes[peer].cancel()
            await trio.sleep(WATCH_EVERY_S)

    # --- one of them

    async def _take_from(self, holder: Holder) -> None:
        peer, record = holder.peer, self._records.setdefault(holder.peer, _Record())
        if peer in self._scopes:
            return
        self._scopes[peer] = trio.CancelScope()
        try:
            with self._scopes[peer]:
                async with await open_weights(self._transport, peer, holder.addrs) as channel:
                    self._orders.meet(peer, holder.stages)
                    await self._converse(channel, holder)
        except RemoteProtocolError as error:
            record.lied = True
            self._left(peer, str(error))
        except PeerUnavailable as error:
            logger.info("%s gives nothing more: %s", peer, error)
            record.failures += 1
        finally:
            self._orders.leave(peer)
            del self._scopes[peer]
            pause_s = REST_S * 2.0 ** min(record.failures, 16)
            record.again_at = trio.current_time() + min(REST_MOST_S, pause_s)
            self._lost.set()

    async def _converse(self, channel: Channel, holder: Holder) -> None:
        orders, peer = self._orders, holder.peer
        while orders.is_wanted(holder.stages):
            while (parcel := orders.next(peer, trio.current_time())) is not None:
                await channel.send(ParcelRequest(parcel))
            first = orders.first(peer)
            if first is None:  # others are asked for all that this one has
                await trio.sleep(WATCH_EVERY_S)
                continue
            parcel, size = first
            data = await next_parcel(channel, size)
            self.fetched_bytes += len(data)
            with trio.CancelScope(shield=True):  # what has come is not asked for again
                whole = await trio.to_thread.run_sync(partial(self._keep, parcel, data, peer))
                orders.came(peer, trio.current_time())
                self.givers.add(peer)
                await self._finish(whole)
            if orders.done:
                self._lost.set()

    # --- what comes

    def _keep(self, parcel: bytes, data: bytes, peer: str) -> list[StageFile]:
        """Write a parcel wherever it belongs; the files that it makes whole. Blocks.

        Raises: Malformed, ConfigError.
        """
        check_parcel(data, parcel, peer)
        return [file for file in self._files.values() if parcel in file.missing and file.put(parcel, data)]

    def _copy_what_is_here(self) -> None:
        """Parcels that another stage has, as a tied head has those of the embedding. Blocks."""
        for file in self._files.values():
            for other in self._files.values():
                for parcel in [p for p in file.missing if p in other.sizes and p not in other.missing]:
                    data = other.read(parcel)
                    check_parcel(data, parcel, "this machine")
                    file.put(parcel, data)

    async def _finish(self, files: Sequence[StageFile]) -> None:
        for file in files:
            await trio.to_thread.run_sync(file.finish)

    def _sizes(self, file: StageFile) -> dict[bytes, int]:
        missing = sorted(file.missing)
        self._rng.shuffle(missing)  # so that those who fetch at the same time ask for different ones
        return {parcel: file.sizes[parcel] for parcel in missing}
