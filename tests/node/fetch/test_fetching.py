"""Stages fetched from honest peers, and from others beside them, over the memory network."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from node.fetch.fetching import Fetching, Holder
from node.presence.giver import Giver
from node.presence.shelf import Shelf
from node.presence.upload import Upload
from node.store.stage import StageFile
from protocol import limits
from protocol.errors import ConfigError
from protocol.messages import WEIGHTS_PROTOCOL, ParcelReply, ParcelRequest
from protocol.talk.channel import Channel
from protocol.transport.base import Stream
from protocol.transport.memory.transport import MemoryTransport
from tests.node.conftest import Swarm
from tests.node.fetch.conftest import MIB, Stage, make_stage

MODEL = bytes(32)


class Kitchen:
    """Peers that give stages, one that fetches, and what it said of the others."""

    def __init__(self, swarm: Swarm, folder: Path, *stages: Stage) -> None:
        self.swarm = swarm
        self.folder = folder
        self.stages = stages
        self.left: dict[str, str] = {}
        self.givers: dict[str, Giver] = {}

    async def giver(self, *stages: Stage, bytes_per_s: float = 1e9) -> Holder:
        """An honest peer that holds these, or all."""
        node = await self.swarm.transport()
        shelf = Shelf(MODEL, len(self.stages))
        for number, stage in enumerate(stages or self.stages):
            with stage.whole(self.folder / node.peer, number) as file:
                starts = {name: (path, tensor.start) for name, (path, tensor) in file.stored().items()}
            shelf.put(number, stage.inventory, starts)
        self.givers[node.peer] = Giver(shelf, Upload(bytes_per_s))
        self.givers[node.peer].serve(node)
        return self._holder(node, stages or self.stages)

    async def cheat(self, answer: Sequence[bytes] | None) -> Holder:
        """A peer that answers each request for a parcel with the next of these; None: never."""
        node = await self.swarm.transport()

        async def handle(stream: Stream) -> None:
            async with Channel(stream) as channel:
                for data in answer or ():
                    assert isinstance(await channel.receive(), ParcelRequest)
                    await channel.send(ParcelReply(data))
                await trio.sleep_forever()

        node.serve(WEIGHTS_PROTOCOL, handle)
        return self._holder(node, self.stages)

    def _holder(self, node: MemoryTransport, stages: Sequence[Stage]) -> Holder:
        return Holder(node.peer, node.addrs, frozenset(stage.digest for stage in stages))

    def files(self) -> list[StageFile]:
        """What is to be fetched, as far as it is here."""
        return [stage.file(self.folder / "own", number) for number, stage in enumerate(self.stages)]

    async def fetch(self, *holders: Holder, files: Sequence[StageFile] = ()) -> Fetching:
        """Everything, from these."""
        opened = files or self.files()

        async def find() -> Sequence[Holder]:
            return holders

        rng = random.Random(1)
        fetching = Fetching(await self.swarm.transport(), opened, rng, self.left.__setitem__)
        with trio.fail_after(30):
            await fetching.run(find)
        for file in opened:
            file.close()
        return fetching

    def assert_whole(self) -> None:
        """Everything is on our disk, byte for byte, under its name."""
        for file in self.files():
            assert not file.missing
            assert file.path.exists()
            file.close()


@pytest.fixture
def kitchen(swarm: Swarm, tmp_path: Path) -> Kitchen:
    """Two stages."""
    one = make_stage({"a": 3 * MIB + 1, "b": 17, "c": 2 * MIB}, seed=1)
    two = make_stage({"d": 4 * MIB, "e": 0, "f": 100}, seed=2)
    return Kitchen(swarm, tmp_path, one, two)


async def test_from_one_peer(kitchen: Kitchen) -> None:
    """Every byte once."""
    fetching = await kitchen.fetch(await kitchen.giver())
    kitchen.assert_whole()
    assert fetching.fetched_bytes == sum(stage.inventory.size for stage in kitchen.stages)
    assert not kitchen.left


async def test_from_several_at_once(kitchen: Kitchen) -> None:
    """Who gives at one rate each is asked for a like share, and nothing comes twice."""
    holders = [await kitchen.giver(bytes_per_s=3e6) for _ in range(3)]
    fetching = await kitchen.fetch(*holders)
    kitchen.assert_whole()
    size = sum(stage.inventory.size for stage in kitchen.stages)
    assert fetching.fetched_bytes <= 1.2 * size
    given = [kitchen.givers[holder.peer].given_bytes for holder in holders]
    assert min(given) >= size / 6


async def test_each_has_a_part(kitchen: Kitchen) -> None:
    """Peers that hold one stage each give it."""
    one, two = kitchen.stages
    await kitchen.fetch(await kitchen.giver(one), await kitchen.giver(two))
    kitchen.assert_whole()


async def test_a_wrong_parcel(kitchen: Kitchen) -> None:
    """That peer is left for good, and the parcel comes from another one."""
    liar = await kitchen.cheat([bytes(MIB)] * 50)
    fetching = await kitchen.fetch(liar, await kitchen.giver())
    kitchen.assert_whole()
    assert set(kitchen.left) == {liar.peer}
    size = sum(stage.inventory.size for stage in kitchen.stages)
    assert fetching.fetched_bytes <= size + MIB


@pytest.mark.parametrize("answer", [b"", b"x", bytes(limits.PARCEL_BYTES)])
async def test_parcels_of_other_sizes(kitchen: Kitchen, answer: bytes) -> None:
    """The same."""
    liar = await kitchen.cheat([answer] * 50)
    await kitchen.fetch(liar, await kitchen.giver())
    kitchen.assert_whole()
    assert set(kitchen.left) == {liar.peer}


async def test_who_gives_nothing_is_left(kitchen: Kitchen) -> None:
    """As soon as another one shows what can be expected: its parcels come from there."""
    silent = await kitchen.cheat(None)
    await kitchen.fetch(silent, await kitchen.giver())
    kitchen.assert_whole()


async def test_who_gives_a_trickle_is_left(kitchen: Kitchen) -> None:
    """The same, of one that gives now and then."""
    trickle = await kitchen.giver(bytes_per_s=2e4)
    await kitchen.fetch(trickle, await kitchen.giver())
    kitchen.assert_whole()


async def test_peers_that_go_and_come(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who ends the stream is asked again, after a rest."""
    monkeypatch.setattr("node.fetch.fetching.REST_S", 0.01)
    monkeypatch.setattr("node.fetch.fetching.LOOK_EVERY_S", 0.05)
    node = await kitchen.swarm.transport()
    honest = await kitchen.giver()
    refused = 0

    async def handle(stream: Stream) -> None:
        nonlocal refused
        refused += 1
        if refused < 2:
            stream.reset()
            return
        await kitchen.givers[honest.peer].handle(stream)

    node.serve(WEIGHTS_PROTOCOL, handle)
    await kitchen.fetch(Holder(node.peer, node.addrs, honest.stages))
    kitchen.assert_whole()
    assert refused == 2


async def test_what_is_here_is_not_fetched(kitchen: Kitchen) -> None:
    """Taken up after an end in the middle: the rest alone comes."""
    files = kitchen.files()
    parcel = max(files[0].missing, key=lambda parcel: files[0].sizes[parcel])
    files[0].put(parcel, kitchen.stages[0].parcels[parcel])
    for file in files:
        file.close()
    size = sum(stage.inventory.size for stage in kitchen.stages)
    fetching = await kitchen.fetch(await kitchen.giver())
    kitchen.assert_whole()
    assert fetching.fetched_bytes == size - MIB


async def test_a_parcel_of_two_stages_comes_once(swarm: Swarm, tmp_path: Path) -> None:
    """As the embedding of a tied head; also where one of the two has been here before."""
    one = make_stage({"embedding": 2 * MIB}, seed=1)
    both = make_stage({"embedding": 2 * MIB, "norm": 9}, seed=1)
    kitchen = Kitchen(swarm, tmp_path, one, both)
    fetching = await kitchen.fetch(await kitchen.giver())
    kitchen.assert_whole()
    assert fetching.fetched_bytes == both.inventory.size
    later = Kitchen(swarm, tmp_path / "later", one, both)
    one.whole(later.folder / "own", 0).close()
    fetching = await later.fetch(await later.giver())
    later.assert_whole()
    assert fetching.fetched_bytes == 9


async def test_a_disk_that_takes_no_more(kitchen: Kitchen) -> None:
    """Ends the fetch in one line."""
    files = kitchen.files()
    files[1].close()  # as if the system refused to write

    holder = await kitchen.giver()
    with pytest.raises(ExceptionGroup) as raised:
        await kitchen.fetch(holder, files=files)
    assert raised.group_contains(ConfigError, match="weights cannot be kept")
    files[0].close()
