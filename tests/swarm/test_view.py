"""The client's view: who counts, which model is meant, what time it is; over the network in memory."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from protocol import identity as identities
from protocol import limits
from protocol.errors import ConfigError, NoRoute
from protocol.identity import Identity
from protocol.messages import MAP_PROTOCOL, MapReply, MapRequest
from protocol.model import Span
from protocol.numerics import Numerics
from protocol.records import Announcement, sign_record
from protocol.talk.channel import Channel
from protocol.transport.background import background_tasks
from protocol.transport.base import Stream
from protocol.transport.memory import Network
from swarm.entry import Options, enter
from swarm.routing.probes import PROBE_ROUND_S
from swarm.routing.route import Need
from swarm.routing.view import View
from swarm.session.search import RETRY_EVERY_S

ALL = Span(0, 8)
HONEST, OTHER = bytes.fromhex("e5f3cdc4") + bytes(28), bytes.fromhex("0badcafe") + bytes(28)
ALIKE = HONEST[:6] + b"\1" * 26  # twelve digits alike


def said_by(identity: Identity, addrs: Sequence[str], now: float, **changes: object) -> Announcement:
    """A sound announcement of a node of the whole model, with changes."""
    said = Announcement(
        identity.peer, tuple(addrs), "tiny", HONEST, 6, 8, ALL, "f32", Numerics("f32"), (bytes(8),) * 8, "serving",
        1.0, 1.0, 1.0, 0.0, 4096, 4096, (), int(now * 1e6), now, now + limits.RECORD_LIFE_S,
    )  # fmt: skip
    return replace(said, **changes)  # type: ignore[arg-type]


class Stage:
    """Nodes that hand out their own record and what else they were told to; `off_s` is how late their clocks are."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.network = Network(rng=random.Random(5), latency_s=0.01)
        self.asked = 0
        self._nursery = nursery

    async def node(self, *others: bytes, off_s: float = 0.0, **changes: object) -> tuple[str, bytes]:
        """Its address and its record."""
        made, here = trio.open_memory_channel[tuple[str, bytes]](1)

        async def run() -> None:
            me = identities.generate()
            async with self.network.transport(me.key) as transport:

                def own() -> bytes:
                    return sign_record(me, said_by(me, transport.addrs, time.time() - off_s, **changes)).data

                async def serve_map(stream: Stream) -> None:
                    self.asked += 1
                    async with Channel(stream) as channel:
                        await channel.expect(MapRequest, limits.CONTROL_TIMEOUT_S)
                        await channel.send(MapReply((own(), *others)))

                transport.serve(MAP_PROTOCOL, serve_map)
                made.send_nowait((transport.addrs[0], own()))
                await trio.sleep_forever()

        self._nursery.start_soon(run)
        return await here.receive()

    @asynccontextmanager
    async def view(self, *doors: str) -> AsyncIterator[View]:
        """A client that has entered."""
        async with (
            self.network.transport(identities.generate().key, listen=False) as transport,
            background_tasks() as nursery,
        ):
            view = View(transport, nursery, random.Random(4))
            await view.enter(doors)
            yield view


@pytest.fixture
def stage(nursery: trio.Nursery) -> Stage:
    """An empty one, in virtual time if the test itself asks for the clock, as pytest-trio wants it."""
    return Stage(nursery)


def ghosts(count: int, **changes: object) -> tuple[bytes, ...]:
    """Records of nobody, each somewhere else."""
    words = []
    for n in range(count):
        me = identities.generate()
        place = f"/ip4/192.0.{n >> 8}.{n & 255}/udp/9/quic-v1"
        words.append(sign_record(me, said_by(me, [place], time.time(), **changes)).data)
    return tuple(words)


async def test_a_node_counts_once_it_has_answered(autojump_clock: MockClock, stage: Stage) -> None:
    """However many claim to serve all, and whatever they say of their speed."""
    _, spare = await stage.node(decode_ms=0.1)
    door, _ = await stage.node(*ghosts(200, decode_ms=0.0), spare, span=Span(0, 4), weights=(bytes(8),) * 4)
    async with stage.view(door) as view:
        assert [a.peer for a in view.nodes(HONEST)] == [door.rpartition("/")[2]]
        with pytest.raises(NoRoute):
            view.plan(HONEST, Need(ALL, 6, 1))
        with trio.fail_after(60):
            while len(view.nodes(HONEST)) < 2:
                await view.refresh()
                await trio.sleep(RETRY_EVERY_S)
        view.plan(HONEST, Need(ALL, 6, 1))


async def test_who_is_being_asked_already_is_waited_for(autojump_clock: MockClock, stage: Stage) -> None:
    """A spare node that was asked in the background is there for the next who needs one."""
    _, spare = await stage.node()
    door, _ = await stage.node(spare)
    async with stage.view(door) as view:
        await view.measure(HONEST, ALL)  # the door suffices
        assert len(view.nodes(HONEST)) == 1
        await view.refresh()
        assert len(view.nodes(HONEST)) == 2


async def test_regression_sessions_that_wait_share_what_nodes_say(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """A node is asked once in the while that they state, however many look; but anew if it has failed since.

    Dozens that waited for the same node asked it so often that it answered none, and so none of them came to it.
    """
    door, _ = await stage.node()
    async with stage.view(door) as view:
        await trio.sleep(1.0)
        stage.asked = 0

        async def look() -> None:
            for _ in range(6):
                await view.refresh(lately_s=1.0)
                await trio.sleep(0.5)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(look)
                await trio.sleep(0.01)
        assert 2 <= stage.asked <= 4
        [node] = view.nodes(HONEST)
        view.bans.ban(node.peer, trio.current_time(), honest=True)
        assert not view.nodes(HONEST)
        await view.refresh(lately_s=1.0)
        assert view.nodes(HONEST)


async def test_regression_a_door_that_came_second_has_not_been_heard(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """What it said was let go as the first had answered: who asks soon after asks it, whatever was shared lately."""
    spare_door, spare = await stage.node()
    door, _ = await stage.node(spare)
    for _ in range(5):
        async with stage.view(door, spare_door) as view:
            await view.refresh(lately_s=1.0)
            assert len(view.nodes(HONEST)) == 2


async def test_dead_records_do_not_hold_a_client_up(
    autojump_clock: MockClock, stage: Stage, tmp_path: Path
) -> None:
    """Four thousand of them: without waiting it fails after a moment, with what is missing."""
    dead = ghosts(200)  # each of them known to nobody else, so twenty times as many take no longer
    door, _ = await stage.node(*dead)
    async with stage.network.transport(identities.generate().key, listen=False) as transport:
        began = trio.current_time()
        with pytest.raises(NoRoute, match="hands over"):
            async with enter(transport, [door], Options(cache=tmp_path)):
                pass
        assert trio.current_time() - began < 3 * PROBE_ROUND_S


async def test_the_doors_model_is_the_one_meant(autojump_clock: MockClock, stage: Stage) -> None:
    """By default; and for a name or for digits that others have taken too."""
    _, evil = await stage.node(digest=ALIKE)
    _, other = await stage.node(digest=OTHER, model="other")
    door, _ = await stage.node(evil, other)
    async with stage.view(door) as view:
        await view.refresh()
        assert len(view.answered()) == 3
        for name in (None, "tiny", "e5f3cdc4", HONEST.hex()):
            assert view.choose_model(name).digest == HONEST
        assert view.choose_model("other").digest == OTHER
        assert view.choose_model(ALIKE.hex()[:14]).digest == ALIKE


async def test_an_unknown_model_is_named_with_those_there_are(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """Also those that the door does not serve."""
    _, other = await stage.node(digest=OTHER, model="other")
    door, _ = await stage.node(other)
    async with stage.view(door) as view:
        await view.look_for("third")
        with pytest.raises(ConfigError, match=r"'third'.*other \(0badcafe\), tiny \(e5f3cdc4\)"):
            view.choose_model("third")


async def test_models_that_begin_alike_are_told_apart(autojump_clock: MockClock, stage: Stage) -> None:
    """Where the door serves neither: the error shows as many digits as it takes."""
    _, one = await stage.node(digest=ALIKE)
    _, two = await stage.node()
    door, _ = await stage.node(one, two, digest=OTHER, model="other")
    async with stage.view(door) as view:
        with pytest.raises(ConfigError, match="nobody serves the model 'tiny'; this swarm serves other"):
            view.choose_model("tiny")
        await view.look_for("tiny")
        await view.refresh()
        for name in ("tiny", "e5f3cdc4"):
            with pytest.raises(
                ConfigError, match=r"e5f3cdc400000\), tiny \(e5f3cdc400000|e5f3cdc400000\d*\), tiny"
            ):
                view.choose_model(name)
        assert view.choose_model(HONEST.hex()[:16]).digest == HONEST


async def test_a_model_that_only_records_speak_of_is_none(autojump_clock: MockClock, stage: Stage) -> None:
    """Nobody can be made to choose what nobody serves."""
    door, _ = await stage.node(*ghosts(20, digest=ALIKE, model="evil"))
    async with stage.view(door) as view:
        await view.look_for("evil")
        with pytest.raises(ConfigError, match="nobody serves the model 'evil'"):
            view.choose_model("evil")
        assert view.choose_model("e5f3cdc4").digest == HONEST


@pytest.mark.parametrize("off_s", [-300.0, 100.0, 100_000.0])
async def test_a_client_whose_clock_is_wrong_works(
    autojump_clock: MockClock, stage: Stage, off_s: float
) -> None:
    """All nodes it meets are off by the same, so it is itself; it says so."""
    _, spare = await stage.node(off_s=off_s)
    door, _ = await stage.node(spare, off_s=off_s, span=Span(0, 4), weights=(bytes(8),) * 4)
    async with stage.view(door) as view:
        await view.measure(HONEST, ALL)
        assert len(view.plan(HONEST, Need(ALL, 6, 1)).peers) in (1, 2)
        assert view.complaint().startswith("this machine's clock is about")


async def test_a_node_whose_clock_is_wrong_is_named(autojump_clock: MockClock, stage: Stage) -> None:
    """It shifts nothing, and its record does not count."""
    liar, late = await stage.node(off_s=500)
    door, _ = await stage.node(late)
    async with stage.view(door) as view:
        await view.refresh()
        assert view.complaint() == ""
    async with stage.view(liar, door) as view:
        await view.refresh()
    async with (
        stage.network.transport(identities.generate().key, listen=False) as transport,
        background_tasks() as n,
    ):
        view = View(transport, n, random.Random(6))
        await view.enter([door])
        await view.enter([liar])
        assert [a.peer for a in view.answered()] == [door.rpartition("/")[2]]
        assert view.complaint().startswith(
            f"the clock of node {liar.rpartition('/')[2]} is about 488 s behind"
        )
