"""Several answers at once on one client: each has its own text, figures and events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

import pytest
import trio
import trio.testing

from protocol.errors import LocalProtocolError
from protocol.model import Span
from protocol.transport.background import background_tasks
from swarm.client import Client, Model
from swarm.events import OnEvent, Waiting
from swarm.generation import Generation
from swarm.routing.route import Hop, Route
from swarm.text.masks import mask_process
from swarm.text.process import TextProcess
from swarm.text.text import load_text
from tests.node.fakes import BLOCKS, MANIFEST
from tests.sim.world import FakeNode, World, greedy_reference, swarm_of
from tests.support.waiting import eventually
from tests.swarm.tokenizers import model_files

NEW = 12
EOS = {1, 2}
# Of ids that the fake model knows: digits, and what it answers.
CHAT = "{% for m in messages %}<|assistant|>{{ m.content }}{% endfor %}<|assistant|>"


def prompt_without_end(first: int) -> list[int]:
    """A prompt whose answer goes on for NEW tokens; each begins with another token."""
    prompts = ([first, second, 7, 9] for second in range(3, 32))
    return next(prompt for prompt in prompts if not EOS & set(greedy_reference(prompt, NEW)))


@asynccontextmanager
async def client_in(
    world: World,
    wait_s: float = 0.0,
    on_event: OnEvent | None = None,
    *,
    direct: bool = True,
    texts: TextProcess | None = None,
) -> AsyncIterator[Client]:
    """The world's client, with a tokenizer; what happens is told to the world if not to somebody else."""
    async with background_tasks() as nursery:
        masks = None if texts is not None else mask_process()
        texts = texts or TextProcess()
        nursery.start_soon(texts.run)
        if masks is not None:
            nursery.start_soon(masks.run)
        text = await load_text(texts, model_files(tokenizer_config={"chat_template": CHAT}), masks)
        model = Model("fake", MANIFEST.digest, MANIFEST)
        yield Client(
            world.view,
            model,
            text,
            None,
            on_event or world.events.append,
            wait_s=wait_s,
            direct=direct,
            reuse=True,
        )


def along(*nodes: FakeNode) -> Route:
    """The route over these nodes."""
    hops = [Hop(node.peer, node.transport.addrs, node.engine.span, 1.0) for node in nodes]
    return Route(tuple(hops), BLOCKS, float(len(hops)))


async def take(generation: Generation, count: int) -> list[int]:
    """The next tokens that show."""
    return [(await generation.__anext__()).tokens[-1].id for _ in range(count)]


async def finish(generation: Generation) -> None:
    """The rest of it."""
    async for _ in generation:
        pass


async def check(client: Client, generation: Generation, prompt: Sequence[int]) -> None:
    """It is the answer of the unsplit model, and its figures are its own."""
    answer, expected = generation.answer, greedy_reference(prompt, NEW)
    assert list(answer.tokens) == expected
    assert answer.text == await client.text.decode(expected)
    assert (answer.finish_reason, answer.prompt_tokens) == ("length", len(prompt))
    assert 0 < answer.ttft_s < answer.seconds


async def test_answers_at_once_keep_apart() -> None:
    """A node dies in the middle of three answers: two used it and are told of it, the third is not."""
    prompts = [prompt_without_end(first) for first in (3, 4, 5)]
    async with (
        swarm_of((0, 4), (4, 8), (0, 4), (4, 8), slow=[2, 3]) as world,
        client_in(world) as client,
        client.session(along(*world.nodes[2:])) as apart,
    ):
        first, second = (client.generate(prompt, max_new_tokens=NEW) for prompt in prompts[:2])
        third = client.generate(prompts[2], max_new_tokens=NEW, session=apart)
        answers = [first, second, third]
        for generation in [*answers, *reversed(answers)]:
            await take(generation, 2)
        dead, spare = world.nodes[1].peer, world.nodes[3].peer
        world.network.kill(dead)
        async with trio.open_nursery() as nursery:
            for generation in answers:
                nursery.start_soon(finish, generation)
        for generation, prompt in zip(answers, prompts, strict=True):
            await check(client, generation, prompt)
        for generation in (first, second):
            [moved] = generation.answer.reroutes
            assert (moved.lost, moved.replacements) == (dead, (spare,))
            assert generation.events == (moved,)
            assert generation.answer.route.peers == (world.nodes[0].peer, spare)
            assert [event for event in world.events if event.session == moved.session] == [moved]
        assert len(world.events) == 2
        assert third.events == third.answer.reroutes == ()
        assert third.answer.route == along(*world.nodes[2:])


async def test_turns_of_one_session_have_their_own_events() -> None:
    """What happened in one turn of a conversation is not told of the next; the session's id is that of both."""
    async with (
        swarm_of((0, 8), (0, 8), slow=[1]) as world,
        client_in(world) as client,
        client.conversation(max_new_tokens=NEW) as talk,
    ):
        first, second = talk.say("1"), talk.say("2")
        async with aclosing(first):
            await take(first, 1)
            world.network.kill(world.nodes[0].peer)
            await take(first, 2)
        assert first.answer.finish_reason == "cancelled"
        assert [message["content"] for message in talk.messages] == ["1", first.answer.text]
        await finish(second)
        assert [moved.lost for moved in first.answer.reroutes] == [world.nodes[0].peer]
        assert second.answer.tokens
        assert not second.events
        assert second.answer.route.peers == (world.nodes[1].peer,)


async def test_an_answer_that_never_began_has_its_events() -> None:
    """Nobody serves the model: it tells that it waits, and is stopped before it has a route or a text."""
    async with swarm_of((0, 4)) as world, client_in(world, wait_s=3600) as client:
        generation = client.generate([3, 4, 5])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(finish, generation)
            await eventually(lambda: len(world.events) > 1, 10)
            nursery.cancel_scope.cancel()
        assert generation.events == (world.events[0],)
        [waiting] = generation.events
        assert isinstance(waiting, Waiting)
        assert waiting.session is not None
        assert waiting.missing == ((4, 8),)
        answer = generation.answer
        assert (answer.text, answer.tokens, answer.finish_reason) == ("", (), "cancelled")
        assert answer.route.hops == ()


async def test_one_session_holds_one_answer_at_a_time() -> None:
    """A second answer in a session whose step is out is refused; the first goes on."""
    prompt = prompt_without_end(3)
    async with (
        swarm_of((0, 8), step_s=0.01) as world,
        client_in(world) as client,
        client.session() as session,
    ):
        generation = client.generate(prompt, max_new_tokens=NEW, session=session)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(finish, generation)
            await trio.testing.wait_all_tasks_blocked(0.001)
            with pytest.raises(LocalProtocolError, match="one step at a time"):
                await session.step([1])
        await check(client, generation, prompt)
        assert session.route.hops[0].span == Span(0, 8)
