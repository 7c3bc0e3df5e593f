"""Several prompts at once: as each alone, in their order or as they come; what befalls one is no other's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing

import pytest

from protocol.errors import ConfigError
from swarm.answers import Answered, Prompt, Several
from swarm.decoding import BeamSearch
from tests.sim.test_answers import NEW, client_in
from tests.sim.test_room import set_room
from tests.sim.world import World, greedy_reference, swarm_of
from tests.support.waiting import eventually

PROMPTS: list[list[int]] = [[3 + first % 7, *[7] * (first % 5), first, 9] for first in range(3, 23)]
HOW = [Several(4), Several(20), Several(4, ordered=False), Several(4, routes=2)]


def check(answered: Answered, prompts: Sequence[Prompt] = PROMPTS) -> None:
    """It is what the unsplit model gives for this prompt."""
    assert answered.error is None
    prompt = prompts[answered.number]
    assert answered.prompt == prompt
    assert not isinstance(prompt, str)
    found = list(answered.answer.tokens)
    assert found == greedy_reference(prompt, NEW)[: len(found)]
    assert len(found) == NEW or answered.answer.finish_reason == "eos"


async def nothing_is_left(world: World) -> None:
    """No node holds a session."""
    await eventually(lambda: not any(len(node.hop) for node in world.nodes))


@pytest.mark.parametrize("how", HOW, ids=str)
async def test_each_is_answered_as_alone(how: Several) -> None:
    """Ragged prompts; in order where that is asked, over routes apart where there are any, and nothing is left."""
    async with swarm_of((0, 4), (4, 8), (0, 8), latency_s=0.001) as world, client_in(world) as client:
        answers = client.generate(PROMPTS, several=how, max_new_tokens=NEW)
        assert len(answers) == len(PROMPTS)
        found, routes = [], set()
        async for answered in answers:
            check(answered)
            found.append(answered.number)
            routes.add(answered.answer.route.peers)
        assert sorted(found) == list(range(len(PROMPTS)))
        assert found == sorted(found) or not how.ordered
        assert len(routes) == how.routes
        await nothing_is_left(world)


async def test_one_that_fails_takes_no_other_with_it() -> None:
    """A prompt without tokens, one that is too long and one of no vocabulary are told in their place."""
    prompts: list[list[int]] = [PROMPTS[0], [], PROMPTS[1], [5] * 2000, PROMPTS[2], [31, 32], PROMPTS[3]]
    async with swarm_of((0, 8), latency_s=0.001) as world, client_in(world) as client:
        found = [each async for each in client.generate(prompts, max_new_tokens=NEW)]
        for answered in found:
            if answered.number % 2:
                assert isinstance(answered.error, ConfigError)
                assert not answered.answer.tokens
            else:
                check(answered, prompts)
        assert [each.number for each in found] == list(range(len(prompts)))
        await nothing_is_left(world)


async def test_no_more_are_under_way_than_there_is_room_for() -> None:
    """A node with room for one at a time: all prompts are answered all the same, and those that wait do not fail."""
    prompts = [[3 + number % 9, *[number % 13] * 600] for number in range(3)]
    async with swarm_of((0, 8), step_s=0.001, latency_s=0.001) as world, client_in(world) as client:
        set_room(world, 1024)
        answers = client.generate(prompts, several=Several(3), max_new_tokens=NEW)
        for number, answered in enumerate([each async for each in answers]):
            assert answered.number == number
            check(answered, prompts)
        await nothing_is_left(world)


async def test_whoever_leaves_leaves_nothing() -> None:
    """After one answer, in the middle of others; and no more was begun than the lead allows."""
    async with swarm_of((0, 4), (4, 8), latency_s=0.001) as world, client_in(world) as client:
        answers = client.generate(PROMPTS, several=Several(4), max_new_tokens=NEW)
        async with aclosing(answers):
            check(await answers.__anext__())
            assert any(len(node.hop) for node in world.nodes)
        await nothing_is_left(world)
        with pytest.raises(StopAsyncIteration):
            await answers.__anext__()


async def test_a_slow_reader_is_waited_for() -> None:
    """Nothing is begun that is more than a lead before what was taken."""
    begun: list[int] = []

    def note(_: str, tokens: Sequence[int]) -> bool:
        begun.append(len(tokens))
        return True

    async with swarm_of((0, 8), latency_s=0.001) as world, client_in(world) as client:
        answers = client.generate(PROMPTS, several=Several(1), max_new_tokens=NEW, until=note)
        async with aclosing(answers):
            await answers.__anext__()
            await nothing_is_left(world)
            assert len(begun) == 9  # a lead of eight behind the one that was taken


async def test_what_a_function_of_the_request_raises_is_raised() -> None:
    """It is no prompt's error: the loop hears of it, and nothing is left."""

    def fails(text: str, tokens: Sequence[int]) -> bool:
        raise ZeroDivisionError

    async with swarm_of((0, 8), latency_s=0.001) as world, client_in(world) as client:
        with pytest.raises(ZeroDivisionError):
            async for _ in client.generate(PROMPTS, until=fails):
                pass
        await nothing_is_left(world)


async def test_branches_count_as_sessions() -> None:
    """Many prompts with many beams each find a seat: fewer are under way at once."""
    prompts = PROMPTS[:6]
    async with swarm_of((0, 8), latency_s=0.001) as world, client_in(world) as client:
        ways = [Several(1), Several(64)]
        found = [
            [
                each.answer.tokens
                async for each in client.generate(
                    prompts, several=how, strategy=BeamSearch(6), max_new_tokens=6
                )
            ]
            for how in ways
        ]
        assert found[0] == found[1]
        await nothing_is_left(world)


async def test_what_cannot_be_is_said_at_once() -> None:
    """A session for several prompts; none at once; more routes than seats."""
    async with (
        swarm_of((0, 8), latency_s=0.001) as world,
        client_in(world) as client,
        client.session() as session,
    ):
        with pytest.raises(ConfigError, match="session"):
            client.generate(PROMPTS, session=session)  # type: ignore[arg-type]
        for at_once, routes in ((0, 1), (65, 1), (1, 0)):
            with pytest.raises(ConfigError, match="from 1"):
                Several(at_once, routes=routes)
