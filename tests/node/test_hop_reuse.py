"""Sessions that begin alike, at hops with fake engines.

- What was computed for one is not computed for another, whoever asks; the answers are the same.
- From hop to hop known rows are named; all of them come where they are not known.
- A session may keep out of it. Whatever is named wrongly ends the stream that named it, and nothing else.
- Rows that were taken stand in journals like all others. In the end no page is held that nobody needs.
"""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from node.compute.kv import token_bytes_at
from node.compute.prefix import GRAIN, PrefixIndex
from node.compute.scheduler import Budget
from protocol.candidates import HIDDEN, NOTHING, Want
from protocol.messages import (
    SESSION_PROTOCOL,
    Ack,
    Attach,
    Close,
    Error,
    Instead,
    Known,
    LinkDown,
    Message,
    NextHop,
    Output,
    Relink,
    Step,
    Unknown,
)
from protocol.model import Span
from protocol.session import Side, StreamState
from protocol.talk.channel import Channel
from protocol.tensors import Tensor
from protocol.trail import first_mark, marks_of
from protocol.transport.base import Stream
from tests.node.conftest import Node, Swarm
from tests.node.fakes import (
    HIDDEN as WIDTH,
)
from tests.node.fakes import (
    MANIFEST,
    STAGES,
    VOCAB,
    Client,
    FakePage,
    ManualExecutor,
    acked,
    expected_ids,
    hidden_of,
    hidden_rows,
    ids_of,
    opened,
    token_rows,
)
from tests.support.waiting import eventually

WHOLE, FRONT, BACK = Span(0, STAGES), Span(0, 4), Span(4, STAGES)
LAST = Want("candidates", top=3)
ROOM = 1 << 24
MOST = 700


def words(seed: int, count: int) -> list[int]:
    """Some tokens."""
    return random.Random(seed).choices(range(VOCAB), k=count)


PROMPT = words(1, 600)
PROMPT_PAGES = 3


def index_of(node: Node) -> PrefixIndex:
    """What it keeps."""
    index = node.hop.prefixes
    assert index is not None
    return index


async def ask(first: Client, last: Client, tokens: list[int], *, chunk: int = 128) -> list[list[int]]:
    """The answer to a prompt, as it is sent to `first` in chunks and comes from `last`."""
    number = 0
    for number, start in enumerate(range(0, len(tokens), chunk)):
        part = tokens[start : start + chunk]
        want = LAST if start + chunk >= len(tokens) else NOTHING
        await first.step(number, start, token_rows(part), want)
    messages = await last.gather(acked(number))
    [output] = [message for message in messages if isinstance(message, Output)]
    return ids_of(output)


async def leave(node: Node, *clients: Client) -> None:
    """End sessions, and wait until what they leave is there."""
    for client in clients:
        await client.send(Close())
    await eventually(lambda: len(node.hop) == 0 and node.budget.free == node.budget.total)
    await trio.testing.wait_all_tasks_blocked(0.01)


class Pair:
    """A front hop and a back hop, and sessions over both."""

    def __init__(self, swarm: Swarm, front: Node, back: Node) -> None:
        self.swarm = swarm
        self.front = front
        self.back = back

    @classmethod
    async def made(cls, swarm: Swarm, *, back_bytes: int = ROOM) -> Pair:
        """Nodes only."""
        return cls(
            swarm,
            await swarm.node(FRONT, kv_tokens=9000, prefix_bytes=ROOM),
            await swarm.node(BACK, kv_tokens=9000, prefix_bytes=back_bytes),
        )

    async def session(self, *, reuse: bool = True) -> tuple[Client, Client]:
        """Of a client of its own."""
        back, front = await self.swarm.client(self.back), await self.swarm.client(self.front)
        await opened(back, BACK, max_tokens=MOST, reuse=reuse)
        target = self.back.as_next(back)
        await opened(front, FRONT, next=target, max_tokens=MOST, reuse=reuse)
        return front, back

    async def asked(self, tokens: list[int], *, reuse: bool = True) -> list[list[int]]:
        """The answer in a session that then ends."""
        front, back = await self.session(reuse=reuse)
        answer = await ask(front, back, tokens)
        await leave(self.front, front)
        await leave(self.back, back)
        return answer

    def computed(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """What both computed since this was asked last."""
        both = list(self.front.engine.steps), list(self.back.engine.steps)
        self.front.engine.steps.clear()
        self.back.engine.steps.clear()
        return both


async def test_regression_a_step_in_pieces_fills_pages_of_its_own(swarm: Swarm) -> None:
    """They are left once it has been sent on, and are right."""
    pair = await Pair.made(swarm)
    for node in (pair.front, pair.back):
        node.hop.scheduler.budget = Budget(short=100, beside=100, alone=100)
    front, back = await pair.session()
    assert await ask(front, back, PROMPT, chunk=512) == [expected_ids(PROMPT)[-1]]
    await leave(pair.front, front)
    await leave(pair.back, back)
    pair.computed()
    assert await pair.asked(PROMPT) == [expected_ids(PROMPT)[-1]]
    assert pair.computed() == ([(576, 24)], [(576, 24)])


async def test_another_client_asks_the_same(swarm: Swarm) -> None:
    """At every hop only the last grain is computed, which is not whole; the answer is the same."""
    pair = await Pair.made(swarm)
    assert await pair.asked(PROMPT) == [expected_ids(PROMPT)[-1]]
    pair.computed()
    assert await pair.asked(PROMPT) == [expected_ids(PROMPT)[-1]]
    assert pair.computed() == ([(576, 24)], [(576, 24)])


async def test_a_prompt_of_whole_grains(swarm: Swarm) -> None:
    """Of it the last row alone is computed: the next hop finds what is named by the row that comes with it."""
    pair = await Pair.made(swarm)
    await pair.asked(PROMPT)
    pair.computed()
    for length in (512, 320, 32):
        assert await pair.asked(PROMPT[:length]) == [expected_ids(PROMPT[:length])[-1]]
        assert pair.computed() == ([(length - 1, 1)], [(length - 1, 1)])


@pytest.mark.parametrize("common", [3, 31, 256, 300, 512, 599])
async def test_sessions_that_part(swarm: Swarm, common: int) -> None:
    """Computed is what comes after the last grain that is the same."""
    pair = await Pair.made(swarm)
    await pair.asked(PROMPT)
    pair.computed()
    other = [*PROMPT[:common], (PROMPT[common] + 1) % VOCAB, *words(2, 650 - common - 1)]
    assert await pair.asked(other) == [expected_ids(other)[-1]]
    for steps in pair.computed():
        assert steps[0][0] == common - common % GRAIN
        assert sum(rows for _, rows in steps) == len(other) - steps[0][0]


async def test_an_answer_is_left_as_well(swarm: Swarm) -> None:
    """The second turn of a chat, in a new session, finds the first one and its answer, also across pages."""
    pair = await Pair.made(swarm)
    front, back = await pair.session()
    await ask(front, back, PROMPT[:250], chunk=250)
    for number, position in enumerate(range(250, 270), 1):
        await front.step(number, position, token_rows([PROMPT[position]]), LAST)
        await back.gather(acked(number))
    await leave(pair.front, front)
    await leave(pair.back, back)
    pair.computed()
    assert await pair.asked(PROMPT[:300]) == [expected_ids(PROMPT[:300])[-1]]
    assert pair.computed() == ([(256, 44)], [(256, 44)])


async def test_a_page_is_left_as_soon_as_it_is_filled(swarm: Swarm) -> None:
    """While the session that filled it goes on, and goes back."""
    pair = await Pair.made(swarm)
    front, back = await pair.session()
    await ask(front, back, PROMPT[:300])
    await front.step(3, 100, token_rows(PROMPT[100:120]), LAST)
    await back.gather(acked(3))
    pair.computed()
    assert await ask(*await pair.session(), PROMPT) == [expected_ids(PROMPT)[-1]]
    assert pair.computed()[0][0] == (256, 128)


async def test_a_hop_that_does_not_know_gets_all_rows(swarm: Swarm) -> None:
    """The one before computes one row all the same; the answer, and what follows, is right."""
    pair = await Pair.made(swarm, back_bytes=0)
    await pair.asked(PROMPT)
    pair.computed()
    front, back = await pair.session()
    assert await ask(front, back, PROMPT) == [expected_ids(PROMPT)[-1]]
    computed = pair.computed()
    assert computed[0] == [(576, 24)]
    assert sum(rows for _, rows in computed[1]) == 600
    await front.step(9, 600, token_rows([5]), LAST)
    [output, _] = await back.gather(acked(9))
    assert ids_of(output) == [expected_ids([*PROMPT, 5])[-1]]


async def test_who_keeps_out(swarm: Swarm) -> None:
    """It takes nothing and leaves nothing."""
    pair = await Pair.made(swarm)
    assert await pair.asked(PROMPT, reuse=False) == [expected_ids(PROMPT)[-1]]
    assert len(index_of(pair.front)) == len(index_of(pair.back)) == 0
    await pair.asked(PROMPT)
    pair.computed()
    assert await pair.asked(PROMPT, reuse=False) == [expected_ids(PROMPT)[-1]]
    assert all(sum(rows for _, rows in steps) == 600 for steps in pair.computed())


async def test_going_back_after_taking(swarm: Swarm) -> None:
    """What was taken is cut like what was computed; so it is before anything was computed."""
    pair = await Pair.made(swarm)
    await pair.asked(PROMPT)
    for taken in (512, 600):
        front, back = await pair.session()
        await front.step(0, 0, token_rows(PROMPT[:512]), NOTHING)
        if taken == 600:
            await front.step(1, 512, token_rows(PROMPT[512:]), LAST)
            await back.gather(acked(1))
        await front.step(2, 300, token_rows(words(3, 20)), LAST)
        messages = await back.gather(acked(2))
        assert ids_of(messages[-2]) == [expected_ids([*PROMPT[:300], *words(3, 20)])[-1]]
    assert await ask(*await pair.session(), PROMPT) == [expected_ids(PROMPT)[-1]]


async def test_a_bridge_and_a_client_with_both_ends(swarm: Swarm) -> None:
    """Who carries the states itself gets those that were taken; the next hop knows them by their hashes."""
    pair = await Pair.made(swarm)
    await pair.asked(PROMPT[:300])
    pair.computed()
    front = await opened(await swarm.client(pair.front), FRONT, bridged=True, max_tokens=MOST)
    back = await opened(await swarm.client(pair.back), BACK, max_tokens=MOST)
    await front.step(0, 0, token_rows(PROMPT[:300]), LAST)
    states = hidden_of((await front.gather(acked(0)))[0])
    assert states == hidden_rows(PROMPT[:300], 4).numpy().tolist()
    await back.step(0, 0, hidden_rows(PROMPT[:300], 4), LAST)
    [output, _] = await back.gather(acked(0))
    assert ids_of(output) == [expected_ids(PROMPT[:300])[-1]]
    assert pair.computed() == ([(288, 12)], [(288, 12)])
    middle = await opened(await swarm.client(pair.front), FRONT, max_tokens=MOST)
    await middle.step(0, 0, token_rows(PROMPT[:300]), HIDDEN)
    assert hidden_of((await middle.gather(acked(0)))[0]) == states
    assert pair.computed()[0] == [(0, 300)], "all rows were asked about"


async def test_what_was_taken_fills_a_replacement(swarm: Swarm) -> None:
    """It stands in the journal; and what the client asks next goes on from there."""
    pair = await Pair.made(swarm)
    await pair.asked(PROMPT)
    pair.computed()
    front, back = await pair.session()
    await ask(front, back, PROMPT)
    swarm.network.kill(pair.back.transport.peer)
    await front.gather(lambda message: isinstance(message, LinkDown))
    heir = await swarm.node(BACK, kv_tokens=9000, prefix_bytes=ROOM)
    third = await opened(await swarm.client(heir), BACK, max_tokens=MOST)
    await front.send(Relink(heir.as_next(third), False, 5, STAGES))
    await front.step(5, 600, token_rows([7]), LAST)
    messages = await third.gather(acked(5))
    assert ids_of(messages[-2]) == [expected_ids([*PROMPT, 7])[-1]]
    assert pair.front.engine.steps == [(576, 24), (600, 1)]


class Ear:
    """A next hop that writes down what it is told, and says what it likes."""

    def __init__(self) -> None:
        self.heard: list[Message] = []
        self.channel: Channel | None = None

    async def serve(self, stream: Stream) -> None:
        """One stream."""
        async with Channel(stream, state=StreamState(Side.HOP)) as channel:
            self.channel = channel
            while (message := await channel.receive()) is not None:
                self.heard.append(message)

    async def hears(self, count: int) -> list[Message]:
        """The first messages after Attach."""
        await eventually(lambda: len(self.heard) > count)
        assert isinstance(self.heard[0], Attach)
        return self.heard[1:]


async def listening(swarm: Swarm, front: Node) -> tuple[Ear, Client]:
    """A front hop whose next one is an ear."""
    ear, place = Ear(), await swarm.transport()
    place.serve(SESSION_PROTOCOL, ear.serve)
    client = await opened(
        await swarm.client(front), FRONT, next=NextHop(place.peer, bytes(16)), max_tokens=MOST
    )
    return ear, client


async def test_known_rows_are_named(swarm: Swarm) -> None:
    """By marks of what the next hop would get; rows that are computed come with them."""
    pair = await Pair.made(swarm)
    await pair.asked(PROMPT)
    ear, client = await listening(swarm, pair.front)
    await client.step(0, 0, token_rows(PROMPT[:512]), NOTHING)
    await client.step(1, 512, token_rows(PROMPT[512:]), LAST)
    states = hidden_rows(PROMPT, 4)
    marks = list(marks_of(first_mark(MANIFEST.digest, 4), states))
    one, two = await ear.hears(2)
    assert one == Known(0, 0, 512, marks[511], None, NOTHING)
    assert isinstance(two, Known)
    assert (two.number, two.position, two.rows, two.mark, two.want) == (1, 512, 64, marks[575], LAST)
    assert two.inputs is not None
    assert two.inputs.numpy().tolist() == states.numpy().tolist()[576:]


async def test_what_is_not_known_comes_instead(swarm: Swarm) -> None:
    """That step and all after it, once; after that rows are not named any more."""
    pair = await Pair.made(swarm)
    await pair.asked(PROMPT)
    ear, client = await listening(swarm, pair.front)
    await client.step(0, 0, token_rows(PROMPT[:256]), NOTHING)
    await client.step(1, 256, token_rows(PROMPT[256:512]), NOTHING)
    await ear.hears(2)
    assert ear.channel is not None
    await ear.channel.send(Unknown(0))
    instead, one, two = (await ear.hears(5))[2:]
    assert instead == Instead(0)
    assert isinstance(one, Step)
    assert isinstance(two, Step)
    assert [(step.number, step.position, step.want) for step in (one, two)] == [
        (0, 0, NOTHING),
        (1, 256, NOTHING),
    ]
    assert two.inputs.numpy().tolist() == hidden_rows(PROMPT[:512], 4).numpy().tolist()[256:]
    await client.step(2, 512, token_rows(PROMPT[512:]), LAST)
    assert isinstance((await ear.hears(6))[-1], Step)
    await ear.channel.send(Unknown(0))
    await client.gather(lambda message: isinstance(message, LinkDown))


@pytest.mark.parametrize("number", [0, 1, 7])
async def test_a_next_hop_that_lacks_what_was_not_named(swarm: Swarm, number: int) -> None:
    """The link is down; the session goes on."""
    front = await swarm.node(FRONT, kv_tokens=9000, prefix_bytes=ROOM)
    ear, client = await listening(swarm, front)
    await client.step(0, 0, token_rows(PROMPT[:3]), NOTHING)
    await ear.hears(1)
    assert ear.channel is not None
    await ear.channel.send(Unknown(number))
    await client.gather(lambda message: isinstance(message, LinkDown))


def known(
    number: int, position: int, tokens: list[int], inputs: Tensor | None, want: Want = NOTHING
) -> Known:
    """Rows named as the front would name them: all of `tokens` from `position` on."""
    marks = list(marks_of(first_mark(MANIFEST.digest, 4), hidden_rows(tokens, 4)))
    return Known(number, position, len(tokens) - position, marks[-1], inputs, want)


LAST_ROW = hidden_rows(PROMPT[:289], 4).row_slice(288, 289)


@pytest.mark.parametrize(
    "bad",
    [
        [Known(0, 0, 256, known(0, 0, PROMPT[:288], None).mark, None, NOTHING)],
        [Known(0, 0, 0, bytes(32), None, NOTHING)],
        [known(0, 0, PROMPT[:288], None, LAST)],
        [known(0, 0, PROMPT[:288], LAST_ROW, Want("candidates", every=True))],
        [known(0, 0, PROMPT[:480], hidden_rows(PROMPT[:100], 4))],
        [known(0, 0, PROMPT[:288], Tensor("f32", (1, WIDTH + 1), bytes(4 * WIDTH + 4)))],
        [known(0, 0, PROMPT[:288], Tensor("i32", (1,), bytes(4)))],
        [Known(0, MOST, 1, bytes(32), None, NOTHING)],
        [known(0, 0, PROMPT[:256], None), known(1, 256, [*words(9, 256), *PROMPT[256:288]], None)],
        [Instead(0)],
        [Known(0, 0, 1, bytes(32), None, NOTHING), Instead(1)],
    ],
    ids=lambda _: "bad",
)
async def test_rows_that_are_named_wrongly(swarm: Swarm, bad: list[Message]) -> None:
    """End the stream that named them, and change nothing: the session takes the right ones on another."""
    pair = await Pair.made(swarm)
    await pair.asked(PROMPT)
    other = [*words(9, 256), *PROMPT[256:288]]
    await pair.asked(other)
    pair.computed()
    back = await opened(await swarm.client(pair.back), BACK, max_tokens=MOST)
    liar, feeder = await swarm.client(pair.back), await swarm.client(pair.back)
    await liar.attach(back.session)
    for message in bad:
        await liar.send(message)
    said = await liar.gather(lambda message: isinstance(message, Error))
    assert isinstance(said[-1], Error)
    assert said[-1].code == "malformed"
    await feeder.attach(back.session)
    number = 0
    if isinstance(bad[0], Known) and len(bad) == 2 and isinstance(bad[1], Known):
        number = 1  # the first of the two was right
        await feeder.send(known(1, 256, PROMPT[:288], LAST_ROW, LAST))
    else:
        await feeder.send(known(0, 0, PROMPT[:288], LAST_ROW, LAST))
    messages = await back.gather(acked(number))
    assert ids_of(messages[-2]) == [expected_ids(PROMPT[:289])[-1]]
    assert pair.computed() == ([], [(288, 1)])


async def test_rows_are_named_too_late(swarm: Swarm) -> None:
    """Once a session computes, or has gone another way, it knows nothing by name; all rows come and it goes on."""
    pair = await Pair.made(swarm)
    await pair.asked(PROMPT)
    back = await opened(await swarm.client(pair.back), BACK, max_tokens=MOST)
    feeder = await swarm.client(pair.back)
    await feeder.attach(back.session)
    await feeder.step(0, 0, hidden_rows(words(5, 10), 4), NOTHING)
    await feeder.send(known(1, 0, PROMPT[:288], None))
    await feeder.step(2, 288, LAST_ROW, LAST)
    assert await feeder.expect(Unknown) == Unknown(1)
    await feeder.send(Instead(1))
    await feeder.step(1, 0, hidden_rows(PROMPT[:288], 4), NOTHING)
    await feeder.step(2, 288, LAST_ROW, LAST)
    messages = await back.gather(acked(2))
    assert ids_of(messages[-2]) == [expected_ids(PROMPT[:289])[-1]]


async def test_in_the_end_nothing_is_held(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    """However sessions end: as they take, as they compute, before what they filled was left."""
    made: list[FakePage] = []

    class Noted(FakePage):
        """Written down."""

        def __init__(self, states: dict[int, list[object]]) -> None:
            super().__init__(states)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr("tests.node.fakes.FakePage", Noted)
    executor = ManualExecutor()
    node = await swarm.node(WHOLE, kv_tokens=9000, prefix_bytes=ROOM, executor=executor)
    executor.release()
    client = await opened(await swarm.client(node), WHOLE, max_tokens=MOST)
    await ask(client, client, PROMPT)
    await client.send(Close())
    taking, computing = [await opened(await swarm.client(node), WHOLE, max_tokens=MOST) for _ in range(2)]
    await taking.step(0, 0, token_rows(PROMPT[:320]), NOTHING)
    await taking.expect(Ack)
    await computing.step(0, 0, token_rows(words(7, 400)), NOTHING)
    await computing.expect(Ack)
    executor.held = True
    await computing.step(1, 400, token_rows([1]), NOTHING)
    await eventually(lambda: bool(executor.queue))
    for each in (taking, computing):
        await each.send(Close())
    await eventually(lambda: len(node.hop) == 0)
    executor.release()
    index_of(node).shrink(0)
    executor.release()
    assert made
    assert all(page.released == 1 for page in made)
    assert index_of(node).nbytes == 0


async def test_what_is_kept_gives_way_to_sessions(swarm: Swarm) -> None:
    """It has no more than the memory of the tokens that no seat holds; with room again, more is kept."""
    node = await swarm.node(WHOLE, kv_tokens=1024, prefix_bytes=ROOM)
    index, token = index_of(node), token_bytes_at(node.engine)
    client = await opened(await swarm.client(node), WHOLE, max_tokens=MOST)
    await ask(client, client, PROMPT)
    await leave(node, client)
    kept = len(index)
    assert kept >= PROMPT_PAGES
    sizes, clients = [index.nbytes], []
    while node.budget.free:
        clients.append(await opened(await swarm.client(node), WHOLE, max_tokens=256))
        sizes.append(index.nbytes)
        assert index.nbytes <= node.budget.free * token
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 0
    await leave(node, *clients)
    client = await opened(await swarm.client(node), WHOLE, max_tokens=MOST)
    await ask(client, client, PROMPT)
    await leave(node, client)
    assert len(index) == kept
