"""A hop and the one behind it: breakage, relinking, replay, and carrying on through the client."""

from __future__ import annotations

import pytest
import trio

from node.hop.sender import LINK_FAILED
from protocol.candidates import HIDDEN, NOTHING, Want
from protocol.messages import Ack, Error, LinkDown, NextHop, Output, Ping, Pong, Relink
from protocol.model import Span
from tests.node.conftest import Node, Swarm
from tests.node.fakes import (
    STAGES,
    Client,
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

FRONT, BACK = Span(0, 4), Span(4, STAGES)
LAST = Want("candidates", top=3)
EVERY = Want("candidates", every=True, top=3)
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


class Pair:
    """A front hop linked to a back hop, with a client at both."""

    def __init__(self, swarm: Swarm, front: Node, back: Node, first: Client, second: Client) -> None:
        self.swarm = swarm
        self.front = front
        self.back = back
        self.first = first
        self.second = second

    @classmethod
    async def made(cls, swarm: Swarm) -> Pair:
        """Both open, nothing stepped."""
        front, back = await swarm.node(FRONT), await swarm.node(BACK)
        second = await opened(await swarm.client(back), BACK)
        first = await opened(await swarm.client(front), FRONT, next=back.as_next(second))
        return cls(swarm, front, back, first, second)

    async def run(self, count: int) -> None:
        """Token by token; the outputs are right."""
        for number in range(count):
            await self.first.step(number, number, token_rows([TOKENS[number]]), LAST)
            assert ids_of(await self.second.expect(Output)) == [expected_ids(TOKENS)[number]]
            await self.second.expect(Ack)
            await self.first.expect(Ack)

    async def lose_the_back(self) -> None:
        """Kill it; the client of the front is told."""
        self.swarm.network.kill(self.back.transport.peer)
        down = await self.first.expect(LinkDown)
        assert down.next == self.second.session
        assert down.reason


@pytest.fixture
async def pair(swarm: Swarm) -> Pair:
    """A linked pair."""
    return await Pair.made(swarm)


async def test_a_replacement_is_filled_by_the_hop_before(pair: Pair) -> None:
    """The dead hop's work is rebuilt from the journal; the front computes nothing twice; the answer goes on."""
    await pair.run(3)
    await pair.lose_the_back()
    await pair.first.step(3, 3, token_rows([TOKENS[3]]), LAST)  # computed and kept, though nobody is behind
    await pair.first.expect(Ack)
    heir = await pair.swarm.node(BACK)
    third = await opened(await pair.swarm.client(heir), BACK)
    await pair.first.send(Relink(heir.as_next(third), False, 2, STAGES))
    await pair.first.step(4, 4, token_rows([TOKENS[4]]), LAST)
    messages = await third.gather(acked(4))
    outputs = [(m.number, ids_of(m)) for m in messages if isinstance(m, Output)]
    assert outputs == [(n, [expected_ids(TOKENS)[n]]) for n in (2, 3, 4)]
    assert heir.engine.steps == [(0, 2), (2, 1), (3, 1), (4, 1)]
    assert pair.front.engine.steps == [(n, 1) for n in range(5)]


async def test_a_replacement_in_two_parts(pair: Pair) -> None:
    """Fills stop where the last replacement ends; nobody behind it is disturbed."""
    await pair.run(3)
    await pair.lose_the_back()
    middle, end = await pair.swarm.node(Span(4, 6)), await pair.swarm.node(Span(6, STAGES))
    fourth = await opened(await pair.swarm.client(end), Span(6, STAGES))
    third = await opened(await pair.swarm.client(middle), Span(4, 6), next=end.as_next(fourth))
    await pair.first.send(Relink(middle.as_next(third), False, 2, STAGES))
    await fourth.expect(Ack)
    assert ids_of(await fourth.expect(Output)) == [expected_ids(TOKENS)[2]]
    assert (middle.engine.steps, end.engine.steps) == ([(0, 2), (2, 1)], [(0, 2), (2, 1)])


async def test_a_relink_to_a_hop_that_is_up_to_date(pair: Pair) -> None:
    """What it has had it does not answer or compute again; what comes next it does."""
    await pair.run(3)
    await pair.first.send(Relink(pair.back.as_next(pair.second), False, 2, FRONT.stop))
    await pair.first.step(3, 3, token_rows([TOKENS[3]]), LAST)
    assert (await pair.second.expect(Output)).number == 3
    assert pair.back.engine.steps == [(0, 1), (1, 1), (2, 1), (3, 1)]


async def test_the_client_takes_the_boundary_over(pair: Pair) -> None:
    """Relink with no next, bridged: the whole journal comes first, then every result, whatever is wanted."""
    await pair.run(3)
    await pair.lose_the_back()
    await pair.first.send(Relink(None, True, 3, STAGES))
    await pair.first.step(3, 3, token_rows(TOKENS[3:5]), LAST)
    outputs = [m for m in await pair.first.gather(acked(3)) if isinstance(m, Output)]
    assert [(m.number, m.position) for m in outputs] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert [row for m in outputs for row in hidden_of(m)] == hidden_rows(TOKENS[:5], 4).numpy().tolist()


@pytest.mark.slow
async def test_the_client_takes_the_rest_over(pair: Pair) -> None:
    """Relink with no next, not bridged: outputs come from `live_from` on, as their steps wanted."""
    first = pair.first
    await pair.lose_the_back()
    await first.step(0, 0, token_rows(TOKENS[:3]), NOTHING)
    await first.step(1, 3, token_rows(TOKENS[3:5]), Want("hidden"))
    await first.step(2, 5, token_rows(TOKENS[5:7]), HIDDEN)
    await first.gather(acked(2))
    await first.send(Relink(None, False, 1, STAGES))
    assert (await first.expect(Output)).position == 4
    assert hidden_of(await first.expect(Output)) == hidden_rows(TOKENS, 4).numpy().tolist()[5:7]


async def test_outputs_come_again_from_the_head(swarm: Swarm) -> None:
    """Relink to a client whose reader missed some: those kept are sent again, none computed."""
    node = await swarm.node(Span(0, STAGES))
    client = await opened(await swarm.client(node), Span(0, STAGES))
    for number in range(4):
        await client.step(number, number, token_rows([TOKENS[number]]), LAST)
    await client.gather(acked(3))
    await client.send(Relink(None, False, 2, 0))
    assert [(await client.expect(Output)).number for _ in range(2)] == [2, 3]
    assert len(node.engine.steps) == 4


@pytest.mark.slow
async def test_a_next_hop_that_cannot_be_reached(swarm: Swarm) -> None:
    """LinkDown, with a reason; the session goes on, and steps are computed and kept."""
    front, ghost = await swarm.node(FRONT), await swarm.transport()
    swarm.network.kill(ghost.peer)
    client = await swarm.client(front)
    target = NextHop(ghost.peer, bytes(16))
    await opened(client, FRONT, next=target)
    assert (await client.expect(LinkDown)).next == bytes(16)
    await client.step(0, 0, token_rows(TOKENS), LAST)
    await client.expect(Ack)
    await client.send(Relink(None, True, 0, STAGES))
    assert hidden_of(await client.expect(Output)) == hidden_rows(TOKENS, 4).numpy().tolist()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["self", "rubbish"])
async def test_a_next_hop_that_makes_no_sense(swarm: Swarm, target: str) -> None:
    """Whatever a client names, it is the link that fails."""
    front = await swarm.node(FRONT)
    peer = front.transport.peer if target == "self" else "rubbish"
    client = await opened(await swarm.client(front), FRONT, next=NextHop(peer, bytes(16)))
    await client.expect(LinkDown)
    await client.send(Ping(1))
    await client.expect(Pong)


async def test_a_next_hop_that_knows_no_such_session(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client hears that the link is down, and not why."""
    monkeypatch.setattr("protocol.limits.ATTACH_WAIT_S", 0.02)
    front, back = await swarm.node(FRONT), await swarm.node(BACK)
    target = NextHop(back.transport.peer, bytes(16))
    client = await opened(await swarm.client(front), FRONT, next=target)
    assert (await client.expect(LinkDown)).reason == LINK_FAILED


async def test_a_next_hop_whose_session_ends(pair: Pair) -> None:
    """The front's client hears that the link is down."""
    await pair.run(1)
    pair.second.channel.stream.reset()
    assert (await pair.first.expect(LinkDown)).next == pair.second.session


@pytest.mark.slow
async def test_relink_while_the_next_hop_hangs(swarm: Swarm) -> None:
    """A sender stuck in a hop that reads nothing is freed by Relink, and loses nothing."""
    front, stuck = await swarm.node(FRONT), await swarm.node(BACK, executor=ManualExecutor())
    second = await opened(await swarm.client(stuck), BACK, max_tokens=8)
    first = await opened(await swarm.client(front), FRONT, next=stuck.as_next(second), max_tokens=1000)
    attached = await swarm.client(stuck)
    await attached.attach(second.session)  # so that the front's own has arrived, and is replaced: LinkDown
    await first.expect(LinkDown)
    await first.send(Relink(stuck.as_next(second), False, 0, STAGES))
    swarm.network.pause(stuck.transport.peer)
    for number in range(60):  # more than a stream's window of hidden states
        await first.step(number, 0, token_rows([1] * 500), NOTHING)
    await first.step(60, 0, token_rows(TOKENS[:7]), NOTHING)
    await first.send(Ping(0))
    await first.gather(lambda m: isinstance(m, Pong))
    heir = await swarm.node(BACK)
    third = await opened(await swarm.client(heir), BACK)
    await first.send(Relink(heir.as_next(third), False, 61, STAGES))
    await first.step(61, 7, token_rows(TOKENS[7:]), LAST)
    outputs = [m for m in await third.gather(acked(61)) if isinstance(m, Output)]
    assert [ids_of(m) for m in outputs] == [[expected_ids(TOKENS)[7]]]
    await first.gather(acked(61))


async def test_many_relinks_end_where_the_last_says(pair: Pair) -> None:
    """Each supersedes the one before, however fast they come."""
    await pair.run(2)
    ghost = NextHop("rubbish", bytes(16))
    for _ in range(5):
        await pair.first.send(Relink(ghost, False, 0, STAGES))
    heir = await pair.swarm.node(BACK)
    third = await opened(await pair.swarm.client(heir), BACK)
    await pair.first.send(Relink(heir.as_next(third), False, 1, STAGES))
    assert ids_of((await third.gather(lambda m: isinstance(m, Output)))[-1]) == [expected_ids(TOKENS)[1]]


async def test_a_bad_step_behind_names_the_hop_before(pair: Pair) -> None:
    """The back ends its session with bad_hidden, the front's client hears of the link only."""
    pair.front.engine.spoil = False
    await pair.run(1)
    await pair.second.step(1, 9, hidden_rows(TOKENS[:1], 4), LAST)
    assert (await pair.second.expect(Error)).code == "bad_step"
    assert (await pair.first.expect(LinkDown)).next == pair.second.session
    await eventually(lambda: len(pair.back.hop) == 0)
    assert len(pair.front.hop) == 1


async def test_a_client_that_reads_nothing_is_held_back(swarm: Swarm) -> None:
    """What its outputs would take waits in the hop within bounds; another session is served meanwhile."""
    node = await swarm.node(FRONT)
    client = await opened(await swarm.client(node), FRONT, bridged=True, max_tokens=600)
    with trio.move_on_after(0.3) as flood:
        for number in range(1000):
            await client.step(number, 0, token_rows([1] * 500), NOTHING)
    assert flood.cancelled_caught
    assert len(node.engine.steps) < 200
    other = await opened(await swarm.client(node), FRONT)
    await other.step(0, 0, token_rows(TOKENS), HIDDEN)
    await other.expect(Output)
