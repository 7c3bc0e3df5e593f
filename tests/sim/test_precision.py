"""Swarms whose nodes compute in several ways: who is asked, who replaces whom, and what the user hears of it."""

from __future__ import annotations

import pytest
import trio

from protocol.errors import NoRoute
from protocol.model import Span
from protocol.numerics import Numerics, parse_numerics
from swarm.events import Altered
from swarm.routing.precision import parse_precisions
from swarm.session.mender import changes
from tests.sim.world import World, greedy, greedy_reference, swarm_of

PROMPT = [3, 1, 4, 1, 5]
F32, INT8, INT4 = (parse_numerics(word) for word in ("f32", "int8/1", "int4/1"))


@pytest.fixture
def clock(autojump_clock: trio.testing.MockClock) -> trio.testing.MockClock:
    """Time passes when everybody waits."""
    return autojump_clock


def altered(world: World) -> list[Altered]:
    """What the user heard of stages that are computed otherwise."""
    return [event for event in world.events if isinstance(event, Altered)]


async def test_only_what_is_asked_for_is_used(clock: trio.testing.MockClock) -> None:
    """However slow it is beside the rest."""
    async with swarm_of((0, 8), (0, 4), (4, 8), slow=[1, 2], numerics={0: INT8}) as world:
        assert world.view.precisions.taken is None
        session = await world.session()
        assert [hop.planned.numerics for hop in session.hops] == [INT8]
        world.view.precisions = parse_precisions("exact")
        session = await world.session()
        assert await greedy(session, PROMPT, 3) == greedy_reference(PROMPT, 3)
        assert [hop.planned.numerics for hop in session.hops] == [F32, F32]


async def test_where_nobody_computes_so_the_error_says_who_else_does(clock: trio.testing.MockClock) -> None:
    """And what to run, in one line."""
    async with swarm_of((0, 8), (0, 4), numerics={0: INT4}) as world:
        world.view.precisions = parse_precisions("f32")
        with pytest.raises(NoRoute) as error:
            await world.session()
        assert error.value.missing == ((4, 8),)
        line = str(error.value)
        assert "\n" not in line
        assert (
            "in the precision asked for, f32: there is int4/1 at 1 node, which --precision any takes" in line
        )
        assert line.endswith("--layers 3:6 --dtype f32 --join ADDRESS")


async def test_a_hop_is_replaced_by_its_kind(clock: trio.testing.MockClock) -> None:
    """Though another kind would be faster by far; nothing is computed otherwise, so nothing is told."""
    numerics = {0: INT8, 1: INT8, 3: INT8}
    async with swarm_of((0, 4), (4, 8), (4, 8), (4, 8), slow=[3], numerics=numerics) as world:
        session = await world.session()
        begin = await greedy(session, PROMPT, 5)
        assert session.route.peers == (world.nodes[0].peer, world.nodes[1].peer)
        world.network.kill(world.nodes[1].peer)
        assert begin + await greedy(session, begin[-1:], 5) == greedy_reference(PROMPT, 10)
        assert session.route.peers == (world.nodes[0].peer, world.nodes[3].peer)
        assert altered(world) == []


async def test_where_nobody_of_its_kind_is_left_the_user_hears_of_it(clock: trio.testing.MockClock) -> None:
    """The answer goes on from the journal, and an event says which stages are computed how from then on."""
    async with swarm_of((0, 4), (4, 8), (3, 8), slow=[2], numerics={0: INT8, 1: INT8, 2: INT4}) as world:
        session = await world.session()
        begin = await greedy(session, PROMPT, 5)
        world.network.kill(world.nodes[1].peer)
        assert begin + await greedy(session, begin[-1:], 5) == greedy_reference(PROMPT, 10)
        told = Altered(session.id, Span(4, 8), INT8, INT4)
        assert altered(world) == [told]
        assert told in session.events


async def test_a_session_of_one_kind_ends_rather_than_change(clock: trio.testing.MockClock) -> None:
    """Who names numerics gets them to the end, or an error that says what there is."""
    async with swarm_of((0, 4), (4, 8), (4, 8), numerics={0: INT8, 1: INT8}) as world:
        world.view.precisions = parse_precisions("int8/1")
        session = await world.session()
        begin = await greedy(session, PROMPT, 5)
        world.network.kill(world.nodes[1].peer)
        with pytest.raises(
            NoRoute, match=r"there is f32 at 1 node.*--layers 3:6 --quant int8 --join ADDRESS"
        ):
            await session.step(begin[-1:])


async def test_a_node_begun_anew_in_other_numerics_is_found_out_as_it_opens(
    clock: trio.testing.MockClock,
) -> None:
    """Its earlier word holds for up to a minute: it is not taken by it, and is blamed for nothing."""
    async with swarm_of((0, 8), (0, 8), slow=[1]) as world:
        world.view.precisions = parse_precisions("exact")
        world.nodes[0].engine.numerics = INT8
        session = await world.session()
        assert session.route.peers == (world.nodes[1].peer,)
        assert [(banned.peer, banned.honest) for banned in world.bans.noted] == [(world.nodes[0].peer, True)]


async def test_before_the_first_step_nothing_binds(clock: trio.testing.MockClock) -> None:
    """What fails before anything was computed is replaced by whoever is quickest, and that is no news."""
    numerics = {0: INT8, 1: INT8, 3: INT8}
    async with swarm_of((0, 4), (4, 8), (4, 8), (4, 8), slow=[3], numerics=numerics) as world:
        session = await world.session()
        world.network.kill(world.nodes[1].peer)
        assert await greedy(session, PROMPT, 5) == greedy_reference(PROMPT, 5)
        assert session.route.peers == (world.nodes[0].peer, world.nodes[2].peer)
        assert altered(world) == []


@pytest.mark.parametrize(("kind", "used"), [(INT8, 3), (INT4, 2)])
async def test_what_a_fork_lacks_is_replaced_by_its_kind(
    kind: Numerics, used: int, clock: trio.testing.MockClock
) -> None:
    """That of the session that it was forked from; if nobody is of it, by whoever is quickest, which is told."""
    numerics = {0: INT8, 1: INT8, 3: kind}
    async with swarm_of((0, 4), (4, 8), (4, 8), (4, 8), slow=[3], numerics=numerics) as world:
        session = await world.session()
        begin = await greedy(session, PROMPT, 5)
        world.network.kill(world.nodes[1].peer)
        fork = await session.fork()
        assert fork.route.peers == (world.nodes[0].peer, world.nodes[used].peer)
        assert begin + await greedy(fork, begin[-1:], 5) == greedy_reference(PROMPT, 10)
        told = [] if kind == INT8 else [Altered(fork.id, Span(4, 8), INT8, F32)]
        assert [event for event in fork.events if isinstance(event, Altered)] == told


def test_what_changed_is_told_in_whole_spans() -> None:
    """One for each run of stages that went from one way to another; what is new or gone is no change."""
    before = {0: INT8, 1: INT8, 2: INT4, 3: INT4, 4: F32, 5: F32}
    after = {1: F32, 2: F32, 3: F32, 4: F32, 5: INT8, 6: INT8}
    assert changes(before, after) == [
        (Span(1, 2), INT8, F32),
        (Span(2, 4), INT4, F32),
        (Span(5, 6), F32, INT8),
    ]
