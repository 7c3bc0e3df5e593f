"""Nodes that announce other weights than the honest ones, over a whole swarm in memory."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
import trio
import trio.testing

from protocol import identity as identities
from protocol.errors import NoRoute
from protocol.model import Span, weights_digest
from protocol.transport.background import background_tasks
from protocol.transport.memory import Network
from protocol.weights import Pin, Trust
from swarm.events import Event, Noticed
from swarm.routing.route import Need
from swarm.routing.view import View
from tests.node.fakes import MANIFEST, STAGES
from tests.sim.world import ALL, FakeNode, NotedBans, World, greedy, greedy_reference, start_node

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
OURS, THEIRS = b"weights!", b"tampered"
PIN = Pin(weights_digest([OURS] * STAGES).hex())


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Time passes when everybody waits."""
    return trio.testing.MockClock(autojump_threshold=0)


@dataclass(frozen=True)
class Lot:
    """Nodes to start: their span, their host (default: a block of their own), and whether they lie."""

    span: tuple[int, int] = (0, 8)
    host: str | None = None
    lies: bool = False
    away_s: float = 0.01  # one way


@dataclass
class Store:
    """Keeps in memory what a client has used."""

    kept: dict[int, bytes] = field(default_factory=dict)

    def load(self, model: bytes) -> dict[int, bytes]:
        """See `swarm.routing.weightstore.WeightStore`."""
        return dict(self.kept)

    def save(self, model: bytes, stages: Mapping[int, bytes], anew: bool) -> None:
        """See `swarm.routing.weightstore.WeightStore`."""
        self.kept = dict(stages) if anew else {**stages, **self.kept}


@asynccontextmanager
async def swarm_with(lots: Sequence[Lot], door: int = 0, trust: Trust | None = None) -> AsyncIterator[World]:
    """A swarm of these nodes and a client that came in through one of them."""
    far: dict[str, float] = {}
    network = Network(rng=random.Random(1), latency_s=lambda a, b: max(far.get(a, 0.01), far.get(b, 0.01)))
    nodes: list[FakeNode] = []
    async with AsyncExitStack() as stack:
        for lot in lots:
            me = identities.generate()
            far[me.peer] = lot.away_s
            node = await start_node(
                stack, network, Span(*lot.span), lambda: nodes, identity=me, host=lot.host
            )
            if lot.lies:
                node.weights = dict.fromkeys(range(STAGES), THEIRS)
            nodes.append(node)
        client = await stack.enter_async_context(network.transport(identities.generate().key, listen=False))
        nursery = await stack.enter_async_context(background_tasks())
        events: list[Event] = []
        bans = NotedBans()
        view = View(client, nursery, random.Random(2), notify=events.append, bans=bans)
        world = World(network, nodes, view, bans, events)
        if trust is not None:
            world.view.trusts[MANIFEST.digest] = trust
        await world.view.enter([nodes[door].transport.addrs[0]])
        await world.view.measure(MANIFEST.digest, ALL)
        yield world


def liars(world: World) -> set[str]:
    """Their peer ids."""
    return {node.peer for node in world.nodes if node.weights}


async def answers_honestly(world: World) -> None:
    """A session answers right, without any liar."""
    session = await world.session()
    assert await greedy(session, PROMPT, 3) == greedy_reference(PROMPT, 3)
    assert not liars(world) & set(session.route.peers)
    await session.aclose()


HONEST = [Lot((0, 4)), Lot((0, 4)), Lot((4, 8)), Lot((4, 8))]


async def test_invented_identities_do_not_turn_a_swarm(clock: trio.testing.MockClock) -> None:
    """Ten identities with real listeners in one block are not the majority, and the user hears of them once."""
    crowd = [Lot(host=f"192.0.2.{n + 1}", lies=True) for n in range(10)]
    async with swarm_with([*HONEST, *crowd], door=4) as world:
        await answers_honestly(world)
        await answers_honestly(world)
        noticed = [event.text for event in world.events if isinstance(event, Noticed)]
        assert len(noticed) == 1
        assert "10 nodes at 1 place" in noticed[0]
        assert "--weights" in noticed[0]


@pytest.mark.slow
async def test_on_one_machine_the_door_counts(clock: trio.testing.MockClock) -> None:
    """Where all are in one block, the node through which the client came in counts more than a crowd."""
    crowd = [Lot(host="127.0.0.1", lies=True) for _ in range(10)]
    async with swarm_with([*crowd, Lot(host="127.0.0.1")], door=10) as world:
        await answers_honestly(world)


async def test_records_of_nobody_have_no_say(clock: trio.testing.MockClock) -> None:
    """Announcements whose nodes do not answer change nothing, in whatever blocks they claim to be."""
    ghosts = [Lot(lies=True) for _ in range(10)]
    async with swarm_with([*HONEST, *ghosts]) as world:
        for node in world.nodes[len(HONEST) :]:
            world.network.kill(node.peer)
        async with background_tasks() as nursery:
            view = View(world.view.transport, nursery, random.Random(3))
            await view.enter([world.nodes[0].transport.addrs[0]])
            await view.measure(MANIFEST.digest, ALL)
            world.view = view
            await answers_honestly(world)


async def test_the_nearest_are_not_right_for_that(clock: trio.testing.MockClock) -> None:
    """Liars next door answer first; those who say otherwise are heard before anything is decided."""
    near = [Lot(host="192.0.2.1", lies=True, away_s=0.001), Lot(host="192.0.2.2", lies=True, away_s=0.001)]
    far = [Lot(away_s=0.1), Lot(away_s=0.1)]
    async with swarm_with([*near, *far]) as world:
        await answers_honestly(world)


async def test_a_session_is_not_turned_in_the_middle(clock: trio.testing.MockClock) -> None:
    """Liars in many blocks come while an answer is being written, and a node dies: the weights stay the same."""
    async with (
        swarm_with([Lot((0, 4)), Lot((4, 8)), Lot((4, 8))], door=0) as world,
        AsyncExitStack() as stack,
    ):
        session = await world.session()
        begin = await greedy(session, PROMPT, 5)
        for _ in range(5):
            liar = await start_node(stack, world.network, ALL, lambda: world.nodes)
            liar.weights = dict.fromkeys(range(STAGES), THEIRS)
            world.nodes.append(liar)
        await world.view.refresh()
        await world.view.refresh()
        assert liars(world) <= world.view.rtt_ms.keys()
        world.network.kill(session.route.peers[1])
        assert begin + await greedy(session, begin[-1:], 5) == greedy_reference(PROMPT, 10)
        assert not liars(world) & set(session.route.peers)
        assert any(isinstance(event, Noticed) and "used before" in event.text for event in world.events)


async def test_what_was_used_before_is_not_silently_changed(clock: trio.testing.MockClock) -> None:
    """Only nodes with other weights than remembered are left: no route, and one line says why and what to do."""
    trust = Trust(STAGES, used=dict.fromkeys(range(STAGES), OURS))
    async with swarm_with([Lot(lies=True), Lot(lies=True)], trust=trust) as world:
        with pytest.raises(NoRoute, match=r"this client has used before.*--weights new") as error:
            await world.session()
        assert "\n" not in str(error.value)


async def test_a_pin_leaves_out_everybody_else(clock: trio.testing.MockClock) -> None:
    """Against liars in more blocks than honest nodes, one of them the door."""
    crowd = [Lot(lies=True) for _ in range(6)]
    async with swarm_with([*crowd, Lot((0, 4)), Lot((4, 8))], trust=Trust(STAGES, PIN)) as world:
        await answers_honestly(world)
        assert world.view.verdict(MANIFEST.digest).whole(STAGES) == weights_digest([OURS] * STAGES)


async def test_a_pin_that_nobody_serves(clock: trio.testing.MockClock) -> None:
    """One line says so."""
    async with swarm_with([Lot(lies=True)], trust=Trust(STAGES, PIN)) as world:
        with pytest.raises(NoRoute, match=f"no set of weights here is {PIN}"):
            await world.session()


async def test_who_keeps_changing_does_not_fill_the_screen(clock: trio.testing.MockClock) -> None:
    """A liar with a new story at every look is told of a few times."""
    async with swarm_with([*HONEST, Lot(lies=True)]) as world:
        for change in range(40):
            world.nodes[-1].weights = {3: change.to_bytes(8, "big")}
            await world.view.refresh()
            world.view.plan(MANIFEST.digest, Need(ALL, MANIFEST.blocks, 1))
        assert 0 < sum(isinstance(event, Noticed) for event in world.events) <= 8


async def test_a_node_of_another_size_is_not_of_the_model(clock: trio.testing.MockClock) -> None:
    """One that announces more stages than the manifest has neither counts nor serves."""
    async with swarm_with([Lot(), Lot()], trust=Trust(STAGES)) as world:
        honest, odd = world.nodes
        announcement = odd.announcement
        odd.announcement = lambda: replace(announcement(), blocks=MANIFEST.blocks + 1)  # type: ignore[method-assign]
        await world.view.refresh()
        assert [node.peer for node in world.view.nodes(MANIFEST.digest)] == [honest.peer]
