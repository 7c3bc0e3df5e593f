"""Sessions over a swarm in memory: the answer is that of the unsplit model, whatever fails on the way."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
import trio.testing

from node.hop.seats import Seat
from protocol import identity as identities
from protocol.candidates import Candidates, Want
from protocol.errors import ConfigError, NoRoute
from protocol.messages import Error
from protocol.model import Span
from protocol.transport.background import background_tasks
from swarm.events import Bridged, Rerouted
from swarm.routing.route import Need
from swarm.routing.view import View
from tests.node.fakes import MANIFEST
from tests.sim.world import ALL, World, greedy, greedy_reference, start_node, swarm_of
from tests.support.waiting import eventually

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
LONG = [(7 * i + 3) % 32 for i in range(300)]  # several prefill chunks


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Time passes when everybody waits."""
    return trio.testing.MockClock(autojump_threshold=0)


SPLITS = [[(0, 8)], [(0, 4), (4, 8)], [(0, 2), (2, 4), (4, 6), (6, 8)], [(0, 5), (3, 8)]]


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("spans", SPLITS)
async def test_split_equals_whole(
    spans: list[tuple[int, int]], direct: bool, clock: trio.testing.MockClock
) -> None:
    """Over any split, from hop to hop or through the client, the tokens are those of the unsplit model."""
    async with swarm_of(*spans) as world:
        session = await world.session(max_tokens=400, direct=direct)
        assert await greedy(session, LONG, 12) == greedy_reference(LONG, 12)
        await session.aclose()


async def test_no_hop_computes_twice(clock: trio.testing.MockClock) -> None:
    """Undisturbed, every position is computed once by every hop."""
    async with swarm_of((0, 4), (4, 8)) as world:
        session = await world.session()
        await greedy(session, PROMPT, 5)
        for node in world.nodes:
            assert [position for position, _ in node.engine.steps] == [0, 8, 9, 10, 11]


async def test_rollback(clock: trio.testing.MockClock) -> None:
    """A step at an earlier position continues from there."""
    async with swarm_of((0, 4), (4, 8)) as world:
        session = await world.session()
        await session.step([*PROMPT, 7, 7, 7])
        candidates = await session.step([11, 12], position=len(PROMPT))
        assert candidates is not None
        assert int(candidates.ids[0, 0]) == greedy_reference([*PROMPT, 11, 12], 1)[0]
        assert session.tokens == [*PROMPT, 11, 12]


async def test_closed_sessions_give_their_caches_back(clock: trio.testing.MockClock) -> None:
    """After the end of a session its hops hold nothing of it."""
    async with swarm_of((0, 4), (4, 8)) as world:
        session = await world.session()
        await greedy(session, PROMPT, 2)
        await session.aclose()
        await trio.sleep(1)
        assert [len(node.hop) for node in world.nodes] == [0, 0]


def break_by_kill(world: World, index: int) -> None:
    world.network.kill(world.nodes[index].peer)


def break_by_power_cut(world: World, index: int) -> None:
    world.network.kill(world.nodes[index].peer, silently=True)


def break_by_stop(world: World, index: int) -> None:
    world.network.pause(world.nodes[index].peer)


def break_by_error(world: World, index: int) -> None:
    world.nodes[index].engine.error = RuntimeError("out of memory")


def break_by_nan(world: World, index: int) -> None:
    world.nodes[index].engine.spoil = True


def break_by_refusal(world: World, index: int) -> None:
    """It leaves its sessions and refuses new ones, but its announcement stands."""
    hop = world.nodes[index].hop
    hop._draining = True
    for session in list(hop._sessions.values()):
        session.fail(Error("leaving", "this node is leaving", elsewhere=True))


def break_by_closing(world: World, index: int) -> None:
    """It ends the streams without a word."""
    for session in list(world.nodes[index].hop._sessions.values()):
        session._client.stream.reset()


FAULTS = [
    break_by_kill,
    break_by_power_cut,
    break_by_stop,
    break_by_error,
    break_by_nan,
    break_by_refusal,
    break_by_closing,
]
# each stage twice; the second four only stand by
DOUBLE = [(0, 2), (2, 4), (4, 6), (6, 8), (0, 3), (2, 5), (4, 7), (5, 8)]


@pytest.mark.parametrize("victim", range(4))
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_a_hop_that_fails_while_decoding(fault, victim: int, clock: trio.testing.MockClock) -> None:  # type: ignore[no-untyped-def]
    """A hop fails between two tokens: the answer goes on, token for token."""
    async with swarm_of(*DOUBLE, slow=[4, 5, 6, 7]) as world:
        session = await world.session()
        begin = await greedy(session, PROMPT, 5)
        fault(world, victim)
        rest = await greedy(session, begin[-1:], 7)
        assert begin + rest == greedy_reference(PROMPT, 12)
        assert any(isinstance(event, Rerouted) for event in world.events)


@pytest.mark.parametrize("victim", range(4))
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_a_hop_that_fails_in_prefill(fault, victim: int, clock: trio.testing.MockClock) -> None:  # type: ignore[no-untyped-def]
    """A hop fails while the chunks of a prompt are on their way: the answer is that of the unsplit model."""
    async with swarm_of(*DOUBLE, slow=[4, 5, 6, 7], step_s=0.05) as world:
        session = await world.session(max_tokens=400)
        found: list[int] = []

        async def answer() -> None:
            found.extend(await greedy(session, LONG, 4))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            await trio.sleep(0.12)
            fault(world, victim)
        assert found == greedy_reference(LONG, 4)
        assert any(isinstance(event, Rerouted) for event in world.events)


async def test_two_neighbours_die_together(clock: trio.testing.MockClock) -> None:
    """The keeper of a journal dies with the hop behind it: the hop before it, or the client, replays."""
    async with swarm_of(*DOUBLE, slow=[4, 5, 6, 7]) as world:
        session = await world.session()
        begin = await greedy(session, PROMPT, 5)
        break_by_kill(world, 1)
        break_by_kill(world, 2)
        assert begin + await greedy(session, begin[-1:], 5) == greedy_reference(PROMPT, 10)


async def test_all_hops_die(clock: trio.testing.MockClock) -> None:
    """Every hop dies: the client fills all replacements from the tokens."""
    async with swarm_of(*DOUBLE, slow=[4, 5, 6, 7]) as world:
        session = await world.session()
        begin = await greedy(session, PROMPT, 5)
        for victim in range(4):
            break_by_kill(world, victim)
        assert begin + await greedy(session, begin[-1:], 5) == greedy_reference(PROMPT, 10)


async def test_healthy_hops_do_not_compute_again(clock: trio.testing.MockClock) -> None:
    """Recovery fills the replacement from the journal before it; hops that live compute each position once."""
    async with swarm_of(*DOUBLE, slow=[4, 5, 6, 7]) as world:
        session = await world.session()
        begin = await greedy(session, PROMPT, 5)
        break_by_kill(world, 1)
        await greedy(session, begin[-1:], 5)
        for index in (0, 2, 3):
            positions = [
                p
                for position, rows in world.nodes[index].engine.steps
                for p in range(position, position + rows)
            ]
            assert sorted(positions) == sorted(set(positions))


async def test_link_cut_is_bridged(clock: trio.testing.MockClock) -> None:
    """Two hops that cannot reach each other, but can reach the client, work together through it."""
    async with swarm_of((0, 4), (4, 8)) as world:
        a, b = world.nodes
        world.network.cut(a.peer, b.peer)
        session = await world.session(max_tokens=400)
        assert await greedy(session, LONG, 6) == greedy_reference(LONG, 6)
        assert [type(event) for event in world.events] == [Bridged]


async def test_link_cut_in_mid_answer(clock: trio.testing.MockClock) -> None:
    """The link between two hops goes silent while decoding: the client carries what they send each other."""
    async with swarm_of((0, 4), (4, 8)) as world:
        session = await world.session()
        begin = await greedy(session, PROMPT, 5)
        world.network.cut(world.nodes[0].peer, world.nodes[1].peer)
        assert begin + await greedy(session, begin[-1:], 5) == greedy_reference(PROMPT, 10)
        assert any(isinstance(event, Bridged) for event in world.events)


async def test_a_bridged_hop_dies(clock: trio.testing.MockClock) -> None:
    """The hop behind a bridged boundary dies: the client fills its replacement from the journal it keeps."""
    async with swarm_of((0, 4), (4, 8), (4, 8), slow=[2]) as world:
        first, second, third = world.nodes
        world.network.cut(first.peer, second.peer)
        world.network.cut(first.peer, third.peer)
        session = await world.session()
        begin = await greedy(session, PROMPT, 5)
        world.network.kill(second.peer)
        assert begin + await greedy(session, begin[-1:], 5) == greedy_reference(PROMPT, 10)


def nothing_at_all(found: Candidates) -> None:
    """What a hop returns that wants to spare itself the head."""
    return None


def unknown_token(found: Candidates) -> Candidates:
    """The right candidates, moved out of the vocabulary."""
    return Candidates(found.ids + 1000, found.logits, found.lse, found.asked)


def too_few(found: Candidates) -> Candidates:
    """Fewer than were asked for."""
    return Candidates(found.ids[:, :1], found.logits[:, :1], found.lse, found.asked)


@pytest.mark.parametrize("spoil", [nothing_at_all, unknown_token, too_few])
async def test_a_head_that_answers_nonsense(
    spoil: Callable[[Candidates], Candidates | None], clock: trio.testing.MockClock
) -> None:
    """Candidates that cannot be are noticed when they come; another head answers instead."""
    async with swarm_of((0, 4), (4, 8), (4, 8), slow=[2]) as world:
        session = await world.session()
        engine = world.nodes[1].engine
        honest = engine.run

        def lying(*args: Any) -> Any:
            return [spoil(found) if isinstance(found, Candidates) else found for found in honest(*args)]

        engine.run = lying  # type: ignore[method-assign, assignment]
        candidates = await session.step(PROMPT, want=Want(top=5))
        assert candidates is not None
        assert int(candidates.ids[0, 0]) == greedy_reference(PROMPT, 1)[0]
        assert session.route.peers == (world.nodes[0].peer, world.nodes[2].peer)


async def test_two_hops_at_one_node(clock: trio.testing.MockClock) -> None:
    """A replacement at the node that serves the next hop already is linked to it there, not through the client."""
    async with swarm_of((0, 4), (4, 8), (0, 8), slow=[2]) as world:
        session = await world.session()
        begin = await greedy(session, PROMPT, 3)
        break_by_kill(world, 1)
        begin += await greedy(session, begin[-1:], 3)
        break_by_kill(world, 0)
        assert begin + await greedy(session, begin[-1:], 4) == greedy_reference(PROMPT, 10)
        assert session.route.peers == (world.nodes[2].peer,)
        assert not any(isinstance(event, Bridged) for event in world.events)


async def test_nobody_else_serves(clock: trio.testing.MockClock) -> None:
    """The only node of some layers dies: within 10 s one line says which layers, and the command to serve them."""
    async with swarm_of((0, 4), (4, 8)) as world:
        session = await world.session()
        begin = await greedy(session, PROMPT, 5)
        break_by_kill(world, 1)
        before = trio.current_time()
        with pytest.raises(
            NoRoute, match=r"nobody serves layers 3:6 \+ head.*swarm node .* --layers 3:6"
        ) as error:
            await session.step(begin[-1:])
        assert trio.current_time() - before < 10
        assert "\n" not in str(error.value)
        assert error.value.missing == ((4, 8),)


@pytest.mark.parametrize("seconds", [1.0, 60.0])
async def test_who_has_no_room_for_now_is_asked_once_more(
    seconds: float, clock: trio.testing.MockClock
) -> None:
    """Also without time to wait: room that is there a moment later is had, and else it fails soon."""
    async with swarm_of((0, 8)) as world, trio.open_nursery() as nursery:
        budget = world.nodes[0].hop._budget
        others = [Seat(f"p{number}", f"o{number}", 1024, 1) for number in range(4)]
        for seat in others:
            budget.take(seat, trio.current_time())
            seat.waiting = 1

        async def leave() -> None:
            await trio.sleep(seconds)
            budget.release(others[0])

        nursery.start_soon(leave)
        with trio.fail_after(10):
            if seconds < 10:
                session = await world.session()
                assert await greedy(session, PROMPT, 5) == greedy_reference(PROMPT, 5)
            else:
                with pytest.raises(NoRoute, match="others have all there is for now"):
                    await world.session()
        nursery.cancel_scope.cancel()


async def test_session_goes_on_after_no_route(clock: trio.testing.MockClock) -> None:
    """A node comes back within the time to wait, with an empty cache: the session goes on."""
    async with swarm_of((0, 4), (4, 8)) as world:
        session = await world.session(wait_s=30)
        begin = await greedy(session, PROMPT, 5)
        world.network.pause(world.nodes[1].peer)

        async def come_back() -> None:
            await trio.sleep(8)
            world.network.resume(world.nodes[1].peer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come_back)
            rest = await greedy(session, begin[-1:], 5)
        assert begin + rest == greedy_reference(PROMPT, 10)


async def test_a_session_that_gave_way_while_it_idled_goes_on(clock: trio.testing.MockClock) -> None:
    """Its seats went to others meanwhile; when it is used again and they have gone, it is opened and filled anew."""
    async with swarm_of((0, 4), (4, 8)) as world:
        session = await world.session()
        begin = await greedy(session, PROMPT, 5)
        await trio.sleep(300)
        others = [await world.session(max_tokens=1000) for _ in range(8)]
        for other in others:
            await other.step(LONG[:257])
        await eventually(lambda: all(hop.failure for hop in session.hops), 5)
        for other in others:
            await other.aclose()
        await trio.sleep(1)
        assert begin + await greedy(session, begin[-1:], 5) == greedy_reference(PROMPT, 10)


async def test_regression_a_step_that_was_given_up_is_tried_again(clock: trio.testing.MockClock) -> None:
    """After NoRoute the session is sound: the same step succeeds when the node is back, and nobody is blamed."""
    async with swarm_of((0, 4), (4, 8)) as world:
        session = await world.session()
        begin = await greedy(session, PROMPT, 5)
        world.network.pause(world.nodes[1].peer)
        with pytest.raises(NoRoute):
            await session.step(begin[-1:])
        world.network.resume(world.nodes[1].peer)
        assert begin + await greedy(session, begin[-1:], 5) == greedy_reference(PROMPT, 10)
        assert len(session.reroutes) == 1


async def test_regression_a_node_that_is_starting_is_not_asked_to_serve(
    clock: trio.testing.MockClock,
) -> None:
    """A node that was killed answers for the map long before it serves: it is not banned for that meanwhile."""
    async with swarm_of((0, 4), (4, 8)) as world:
        session = await world.session(wait_s=60)
        begin = await greedy(session, PROMPT, 5)
        dead = world.nodes.pop()
        world.network.kill(dead.peer)

        async def go_on() -> None:
            begin.extend(await greedy(session, begin[-1:], 5))

        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            nursery.start_soon(go_on)
            await trio.sleep(5)
            node = await start_node(
                stack, world.network, Span(4, 8), lambda: world.nodes, identity=dead.identity, loading=True
            )
            await trio.sleep(20)
            node.hop.serve()
            world.nodes.append(node)
            await eventually(lambda: len(begin) == 10, 5)
        assert begin == greedy_reference(PROMPT, 10)


async def test_regression_who_answered_is_preferred(clock: trio.testing.MockClock) -> None:
    """A node that is silent from the start costs a new client nothing, however fast it says it is."""
    async with swarm_of((0, 8), (0, 8), slow=[0]) as world:
        world.network.pause(world.nodes[1].peer)
        async with (
            world.network.transport(identities.generate().key, listen=False) as transport,
            background_tasks() as nursery,
        ):
            view = View(transport, nursery, random.Random(3))
            await view.enter([world.nodes[0].transport.addrs[0]])
            before = trio.current_time()
            await view.measure(MANIFEST.digest, ALL)
            assert trio.current_time() - before < 0.5
            assert view.plan(MANIFEST.digest, Need(ALL, MANIFEST.blocks, 1)).peers == (world.nodes[0].peer,)


async def test_the_only_node_closes_its_streams(clock: trio.testing.MockClock) -> None:
    """With no other node to go to, a node that closed the stream but answers is used again."""
    async with swarm_of((0, 4), (4, 8)) as world:
        session = await world.session()
        begin = await greedy(session, PROMPT, 5)
        break_by_closing(world, 1)
        assert begin + await greedy(session, begin[-1:], 5) == greedy_reference(PROMPT, 10)


async def test_a_node_that_always_fails_does_not_hold_us_for_ever(clock: trio.testing.MockClock) -> None:
    """The only node of some layers fails every step: the session says so in the end."""
    async with swarm_of((0, 4), (4, 8)) as world:
        session = await world.session()
        world.nodes[1].engine.error = RuntimeError("broken")
        with trio.fail_after(30), pytest.raises(NoRoute):
            await session.step(PROMPT)


async def test_bad_steps_are_refused_here(clock: trio.testing.MockClock) -> None:
    """What cannot be is refused before anything is sent, and the session goes on."""
    async with swarm_of((0, 8)) as world:
        session = await world.session(max_tokens=10)
        for tokens, position in [([], None), ([99], None), ([-1], None), ([1], 5), ([1] * 11, None)]:
            with pytest.raises(ConfigError):
                await session.step(tokens, position=position)
        assert await greedy(session, PROMPT, 2) == greedy_reference(PROMPT, 2)


async def test_weights_that_disagree_are_left_out(clock: trio.testing.MockClock) -> None:
    """A node with other bytes for a block than most is not on the route."""
    async with swarm_of((0, 8), (0, 8), (0, 8)) as world:
        odd = world.nodes[1]
        odd.weights = {3: b"tampered"}
        await world.view.refresh()
        session = await world.session()
        assert odd.peer not in session.route.peers
        assert all(node.peer != odd.peer for node in world.view.nodes(odd.announcement().digest))


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("seed", range(20))
async def test_chaos(seed: int, direct: bool, clock: trio.testing.MockClock) -> None:
    """Faults of every kind at random times and places, a node of each stage always left: the answer stands."""
    rng = random.Random(seed)
    async with swarm_of(*DOUBLE, (0, 8), slow=[4, 5, 6, 7, 8], step_s=0.01) as world:
        session = await world.session(max_tokens=400, direct=direct)
        found: list[int] = []

        async def answer() -> None:
            found.extend(await greedy(session, LONG, 20))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            for victim in rng.sample(range(8), rng.randint(1, 8)):
                await trio.sleep(rng.uniform(0, 0.4))
                rng.choice(FAULTS)(world, victim)
        assert found == greedy_reference(LONG, 20)
