"""Sequences side by side in one session: the same as sessions of their own, in one step, whatever fails meanwhile."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import aclosing

import numpy as np
import pytest
import trio
import trio.testing

from node.compute.call import run_alone
from protocol.candidates import Candidates, Want
from protocol.errors import LocalProtocolError
from swarm.branches import Branches
from swarm.decoding import Ask, Together
from swarm.events import Bridged, Rerouted
from swarm.session.lanes import LaneStep, NotCarried
from swarm.session.session import Session
from tests.node.fakes import FakeEngine, token_rows
from tests.sim.test_session import DOUBLE, FAULTS, LONG, PROMPT
from tests.sim.test_strategies import CASES, drive, reference
from tests.sim.world import ALL, World, greedy, greedy_reference, swarm_of

WANT = Want(top=3)


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Time passes when everybody waits."""
    return trio.testing.MockClock(autojump_threshold=0)


def expected(tokens: list[int], want: Want = WANT) -> Candidates:
    """What the unsplit model gives after these tokens."""
    engine = FakeEngine(ALL)
    found = run_alone(engine, engine.new_cache(ALL), 0, token_rows(tokens), want)
    assert isinstance(found, Candidates)
    return found


def same(found: Candidates, other: Candidates) -> bool:
    """Whether two say the same, bit for bit."""
    return all(
        np.array_equal(getattr(found, name), getattr(other, name))
        for name in ("ids", "logits", "lse", "asked")
    )


class Walk:
    """Random asks of several branches, and what each holds after them."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.held: dict[int, list[int]] = {0: list(PROMPT)}
        self._begins = {0: 0}
        self._name = 0

    def asks(self) -> Together:
        """Some go on, some go back a little, some begin, some are dropped; each with a want of its own."""
        rng, held = self._rng, self.held
        dropped = [branch for branch in held if branch and rng.random() < 0.05 * len(held)]
        for branch in dropped:
            del held[branch], self._begins[branch]
        asks, before = list[Ask](), {branch: list(tokens) for branch, tokens in held.items()}
        for branch in before:
            if rng.random() < 0.8:
                position = max(self._begins[branch], len(before[branch]) - rng.choice([0, 0, 0, 1, 2]))
                asks.append(self._ask(branch, None, position, before[branch]))
        for parent in before:
            if len(before[parent]) > self._begins[parent] and rng.random() < 1.5 / len(held):
                self._name += 1
                position = rng.randint(self._begins[parent] + 1, len(before[parent]))
                self._begins[self._name] = position
                asks.append(self._ask(self._name, parent, position, before[parent]))
        return Together(tuple(asks or [self._ask(0, None, len(before[0]), before[0])]), tuple(dropped))

    def _ask(self, branch: int, parent: int | None, position: int, before: list[int]) -> Ask:
        rng = self._rng
        tokens = tuple(rng.randrange(16) for _ in range(rng.choice([1, 1, 2])))
        self.held[branch] = [*before[:position], *tokens]
        want = Want(top=rng.choice([3, 3, 3, 0]), ids=tuple(rng.sample(range(16), rng.randint(0, 2))))
        return Ask(tokens, position, want, branch, parent)


async def walk(session: Session, seed: int, steps: int, before: Callable[[int], None]) -> None:
    """Ask for `steps` of a walk's, and hold each answer against the unsplit model's."""
    await session.step(PROMPT)
    way = Walk(seed)
    async with aclosing(Branches(session)) as branches:
        for number in range(steps):
            said = way.asks()
            before(number)
            found = await branches.answer(said)
            assert isinstance(found, list)
            for ask, each in zip(said.asks, found, strict=True):
                assert same(each, expected(way.held[ask.branch], ask.want))
    assert session.tokens == way.held[0]
    assert await greedy(session, [5], 3) == greedy_reference([*way.held[0], 5], 3)


@pytest.mark.parametrize(("seed", "direct"), [(0, True), (1, True), (2, True), (3, False)])
async def test_each_gives_what_a_session_of_its_own_would(
    seed: int, direct: bool, clock: trio.testing.MockClock
) -> None:
    """Whatever goes on, goes back, begins and ends; and afterwards the session goes on with its own."""
    async with swarm_of((0, 3), (3, 6), (6, 8)) as world:
        await walk(await world.session(direct=direct), seed, 12, lambda number: None)
        await trio.sleep(1)
        assert not world.events
        assert not world.bans.noted


@pytest.mark.parametrize("victim", [0, 1, 3])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_a_hop_fails_under_them(
    fault: Callable[[World, int], None], victim: int, clock: trio.testing.MockClock
) -> None:
    """Its replacement is filled with all that stands, by the hop before it or by the client."""
    async with swarm_of(*DOUBLE, slow=[4, 5, 6, 7]) as world:

        def before(number: int) -> None:
            if number == 5:
                fault(world, victim)

        await walk(await world.session(), victim, 8, before)
        assert any(isinstance(event, Rerouted) for event in world.events)


@pytest.mark.parametrize("name", ["beams", "early", "best"])
@pytest.mark.parametrize("at", [1, 2, 5])
async def test_a_link_is_cut_under_them(name: str, at: int, clock: trio.testing.MockClock) -> None:
    """A client carries one sequence: each goes on in a session of its own, and the answer is the same."""
    case = CASES[name]
    async with swarm_of((0, 4), (4, 8)) as world:

        def before(number: int) -> None:
            if number == at:
                world.network.cut(world.nodes[0].peer, world.nodes[1].peer)

        assert await drive(await world.session(), case, before) == reference(case)
        assert any(isinstance(event, Bridged) for event in world.events)
        await trio.sleep(1)
        assert [len(node.hop) for node in world.nodes] == [1, 1]


async def test_they_are_computed_in_one_batch_and_only_once(clock: trio.testing.MockClock) -> None:
    """One step of four sequences is one batch at each hop; nobody opens anything for them."""
    async with swarm_of((0, 4), (4, 8)) as world:
        session = await world.session(max_tokens=400)
        await session.step(LONG)
        for node in world.nodes:
            node.engine.steps.clear()
        at, steps = len(LONG), []
        for lane in range(1, 4):
            steps.append(LaneStep(lane, 0, at, (lane,), WANT))
        await session.step_lanes([LaneStep(0, None, at, (7,), WANT), *steps])
        await session.step_lanes([LaneStep(lane, None, at + 1, (9,), WANT) for lane in range(4)])
        for node in world.nodes:
            assert node.engine.batches[-2:] == [4, 4]
            assert sum(rows for _, rows in node.engine.steps) == 8
            assert len(node.hop) == 1


async def test_what_a_session_does_not_hold_side_by_side(clock: trio.testing.MockClock) -> None:
    """Going back before a lane began; lanes of nobody; more of them than a hop takes; two steps at once."""
    async with swarm_of((0, 8), step_s=0.1) as world:
        session = await world.session()
        await session.step(PROMPT)
        at = len(PROMPT)
        await session.step_lanes([LaneStep(1, 0, at, (3,), WANT)])
        for wrong in (
            LaneStep(1, None, at - 1, (3,), WANT),
            LaneStep(2, 9, 1, (3,), WANT),
            LaneStep(2, 1, at, (3,), WANT),
        ):
            with pytest.raises(NotCarried):
                await session.step_lanes([wrong])
        with pytest.raises(NotCarried):
            await session.step_lanes([LaneStep(lane, 0, at, (3,), WANT) for lane in range(2, 70)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.step, [1])
            await trio.sleep(0.05)
            with pytest.raises(LocalProtocolError):
                await session.step_lanes([LaneStep(1, None, at, (3,), WANT)])
        assert await greedy(session, [2], 2) == greedy_reference([*PROMPT, 1, 2], 2)


async def test_branches_that_go_back_before_they_began_go_apart(clock: trio.testing.MockClock) -> None:
    """What lanes cannot, sessions of their own can."""
    async with swarm_of((0, 4), (4, 8)) as world:
        session = await world.session()
        await session.step(PROMPT)
        at = len(PROMPT)
        async with aclosing(Branches(session)) as branches:
            await branches.answer(Together((Ask((5,), at, WANT, 1, 0), Ask((6,), at, WANT))))
            apart = await branches.answer(Together((Ask((7,), 3, WANT, 1), Ask((8,), at + 1, WANT, 2, 0))))
            assert isinstance(apart, list)
            assert same(apart[0], expected([*PROMPT[:3], 7]))
            assert same(apart[1], expected([*PROMPT, 6, 8]))
        await trio.sleep(1)
        assert [len(node.hop) for node in world.nodes] == [1, 1]


async def test_what_is_given_up_leaves_nothing(clock: trio.testing.MockClock) -> None:
    """Lanes that a step began which nobody waited for end with the next step; others of their names begin anew."""
    async with swarm_of((0, 4), (4, 8)) as world:
        session = await world.session()
        await session.step(PROMPT)
        at = len(PROMPT)
        for _ in range(2):
            async with aclosing(Branches(session)) as branches:
                with trio.move_on_after(0.005):
                    await branches.answer(Together((Ask((5,), at, WANT, 1, 0), Ask((6,), at, WANT, 2, 0))))
                found = await branches.answer(Ask((4,), at, WANT, 1, 0))
                assert isinstance(found, Candidates)
                assert same(found, expected([*PROMPT, 4]))
            assert await greedy(session, [3], 2) == greedy_reference([*PROMPT, 3], 2)
            assert await session.step(PROMPT[-1:], position=at - 1)
            for node in world.nodes:
                assert [cache.closed for cache in node.engine.caches].count(False) == 1
