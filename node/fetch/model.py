"""A model that a node has from its swarm: chosen, its small files taken, its weights settled and fetched."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from node import events
from node.events import Notify
from node.fetch.fetching import Fetching, Holder
from node.fetch.holders import Holders, runs
from node.store.cache import Cache
from node.store.files import FetchedFiles
from node.store.stage import INVENTORY, WHOLE, InUse, StageFile
from protocol import limits
from protocol.choice import choose_model
from protocol.errors import ConfigError, NoRoute, RemoteProtocolError
from protocol.files import read_small
from protocol.inventory import Inventory, parse_inventory
from protocol.model import Manifest, Span, describe_stages
from protocol.records import Announcement
from protocol.talk.modelfiles import model_files
from protocol.transport.base import Transport
from protocol.weights import Pin, Trust

# Rounds of asking for what the weights consist of, before it is said that nobody gives them.
_ROUNDS: Final = 5
_ROUND_S: Final = 2.0
# Another node on this machine that fetches the same is looked at again after this.
_AGAIN_S: Final = 1.0
# How often it is told how far it has got.
_TOLD_EVERY_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Swarm:
    """What a node that has joined knows of its swarm."""

    transport: Transport
    others: Callable[[], Sequence[Announcement]]  # what those say that were met
    origin: Callable[[str], str | None]  # the block of addresses where a peer was met
    doors: Collection[str]  # peers that the user named


class SwarmModel:
    """One model of the swarm, as this node may serve it."""

    def __init__(
        self, said: Announcement, swarm: Swarm, cache: Cache, pin: Pin | None, notify: Notify
    ) -> None:
        """Use `find`."""
        self.name = said.model
        self.digest = said.digest
        self._swarm = swarm
        self._cache = cache
        self._notify = notify
        self._rng = random.Random()
        self._holders = Holders(swarm.transport, swarm.others, said.digest, said.stages)
        self._trust = Trust(said.stages, pin)
        self._in_use: list[StageFile] = []
        self._files: tuple[Manifest, dict[str, bytes]] | None = None
        self.weights: dict[int, bytes] = {}  # the digest that counts of each stage that somebody gives

    @classmethod
    async def find(
        cls, swarm: Swarm, name: str | None, cache: Cache, pin: Pin | None, notify: Notify
    ) -> SwarmModel:
        """The model that is called `name`, or else the door's, with its small files and its weights' digests.

        Raises: ConfigError, naming the models there are; NoRoute, if there are none, or nobody gives its files.
        """
        model = cls(choose_model(swarm.others(), name, swarm.doors, ""), swarm, cache, pin, notify)
        nodes = [said for said in swarm.others() if said.digest == model.digest]
        manifest, contents = await model_files(
            swarm.transport, nodes, model.digest, cache.model_folder(model.digest).parent
        )
        model._files = manifest, contents
        await trio.to_thread.run_sync(cache.keep_files, model.name, manifest, contents)
        await model._settle()
        return model

    @property
    def manifest(self) -> Manifest:
        """What the nodes of this model agree on."""
        assert self._files is not None
        return self._files[0]

    def files(self) -> FetchedFiles:
        """The checkpoint as far as it is here."""
        assert self._files is not None
        folder = self._cache.model_folder(self.digest)
        stages = {file.stage: (file.inventory, file.stored()) for file in self._in_use if not file.missing}
        return FetchedFiles(self.name, folder, *self._files, stages)

    def lacking(self, stages: Span) -> str:
        """In words, which of these stages nobody gives; "" if there are none."""
        holes = runs(stage for stage in stages if stage not in self.weights)
        return " and ".join(describe_stages(hole, self.manifest.blocks) for hole in holes)

    async def fetch(self, span: Span) -> FetchedFiles:
        """The weights of a span, as a checkpoint.

        Raises: NoRoute, if nobody gives them; ConfigError, if there is no room for them on this disk.
        """
        inventories = await self._inventories(span)
        folder = partial(self._cache.stage, self.digest)
        paths = {stage: folder(stage, self.weights[stage]) for stage in span}
        sizes = {stage: inventories[stage].size for stage in span}
        here = {stage: self._cache.size(paths[stage]) for stage in span}
        new_bytes = sum(max(0, sizes[stage] - here[stage]) for stage in span)
        keep = [path(INVENTORY) for path in paths.values()]
        gone = await trio.to_thread.run_sync(self._cache.make_room, new_bytes, keep)
        if gone:
            self._notify(events.Noted(f"weights of {len(gone)} layers were removed to make room for others"))
        for stage in span:
            opened = await self._open(partial(StageFile.open, paths[stage], inventories[stage]), stage)
            self._in_use.append(opened)
        await self._fetch(span)
        return self.files()

    # --- inside

    async def _settle(self) -> None:
        """Ask who holds what, and see which weights count. Raises: ConfigError, if they are not what was pinned."""
        await self._holders.ask()
        given = frozenset[bytes]().union(*(holder.stages for holder in self._holders.held()))
        verdict = self._trust.judge(self._holders.witnesses(self._swarm.origin), self._swarm.doors)
        if verdict.lost:
            raise ConfigError(f"nothing that nodes announce of {self.name} is the weights {verdict.pin}")
        if told := verdict.describe(self.manifest.blocks):
            self._notify(events.Warned(told.split(": ", 1)[-1]))
        self.weights = {
            stage: digest
            for stage, digest in verdict.chosen.items()
            if digest in given or self._cache.stage(self.digest, stage, digest)(WHOLE).exists()
        }

    async def _inventories(self, span: Span) -> dict[int, Inventory]:
        found: dict[bytes, Inventory] = {}
        for stage in span:
            digest = self.weights[stage]
            path = self._cache.stage(self.digest, stage, digest)(INVENTORY)
            inventory = await trio.to_thread.run_sync(_read_inventory, path, digest)
            if inventory is not None:
                found[digest] = inventory
        for _ in range(_ROUNDS):
            missing = {self.weights[stage] for stage in span} - found.keys()
            if not missing:
                return {stage: found[self.weights[stage]] for stage in span}
            found |= await self._holders.inventories(missing)
            if not missing <= found.keys():
                await trio.sleep(_ROUND_S)
                await self._holders.ask()
        raise NoRoute(
            f"nobody gives the weights of {describe_stages(span, self.manifest.blocks)} of {self.name}"
        )

    async def _open(self, opening: Callable[[], StageFile], stage: int) -> StageFile:
        told = False
        while True:
            try:
                return await trio.to_thread.run_sync(opening)
            except InUse:
                if not told:
                    told = True
                    what = describe_stages(Span(stage, stage + 1), self.manifest.blocks)
                    self._notify(events.Noted(f"another node on this machine fetches {what}; waiting for it"))
                await trio.sleep(_AGAIN_S)

    async def _fetch(self, span: Span) -> None:
        fetching = Fetching(self._swarm.transport, self._in_use, self._rng, self._left)
        began = trio.current_time()
        size_bytes = sum(file.inventory.size for file in self._in_use)
        stages = describe_stages(span, self.manifest.blocks)

        async def tell() -> None:
            while True:
                left_bytes = fetching.missing_bytes
                self._notify(events.Fetching(self.name, stages, size_bytes, left_bytes, fetching.peers))
                await trio.sleep(_TOLD_EVERY_S)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            await fetching.run(self._find)
            nursery.cancel_scope.cancel()
        seconds = trio.current_time() - began
        self._notify(events.Fetched(self.name, stages, fetching.fetched_bytes, seconds, len(fetching.givers)))

    async def _find(self) -> list[Holder]:
        await self._holders.ask()
        return self._holders.held()

    def _left(self, peer: str, why: str) -> None:
        self._notify(events.Noted(f"nothing more is fetched from {peer}: {why}"))


def _read_inventory(path: Path, digest: bytes) -> Inventory | None:
    """What is kept of an inventory, if it is the right one. Blocks."""
    try:
        return parse_inventory(read_small(path, limits.INVENTORY_BYTES + 1), digest)
    except (OSError, RemoteProtocolError):
        return None
