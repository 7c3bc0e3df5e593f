"""What a stranger may make a hop hold, send and do."""

from __future__ import annotations

import contextlib
import gc
import logging
import secrets
import weakref
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import trio
import trio.testing

from node.hop.admission import NEW_S
from node.hop.sender import LINK_FAILED
from node.hop.steps import Shape
from protocol import limits
from protocol.candidates import HIDDEN, NOTHING, Want
from protocol.errors import Lost
from protocol.messages import (
    Ack,
    Attach,
    Close,
    Error,
    LinkDown,
    NextHop,
    Opened,
    Output,
    Ping,
    Pong,
    Refused,
    Relink,
)
from protocol.model import Span
from protocol.tensors import from_numpy
from tests.node.conftest import Node, Swarm
from tests.node.fakes import (
    MANIFEST,
    STAGES,
    Client,
    ManualExecutor,
    acked,
    hidden_rows,
    opened,
    token_rows,
)
from tests.support.waiting import eventually

WHOLE = Span(0, STAGES)
FRONT, MIDDLE, BACK = Span(0, 4), Span(2, 6), Span(4, STAGES)
LAST = Want("candidates", top=3)
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Time passes when everybody waits."""
    return trio.testing.MockClock(autojump_threshold=0)


# --- chains end


@pytest.mark.parametrize("size", [1, 2, 3])
async def test_hops_cannot_be_linked_in_a_ring(size: int, swarm: Swarm) -> None:
    """Of any length, also of one: the link that would close it is refused, and a step is computed once by each."""
    nodes = [await swarm.node(MIDDLE) for _ in range(size)]
    clients = [await swarm.client(node) for node in nodes]
    for number, client in enumerate(clients):
        after = (number + 1) % size
        await opened(client, MIDDLE, next=NextHop(nodes[after].transport.peer, clients[after].session))
    for client in clients:
        await client.expect(LinkDown)
    await clients[0].step(0, 0, hidden_rows(TOKENS, 2), HIDDEN)
    await clients[0].expect(Ack)
    again = nodes[1 % size].as_next(clients[1 % size])
    await clients[0].send(Relink(again, False, 0, STAGES))
    assert (await clients[0].expect(LinkDown)).reason == LINK_FAILED
    assert [len(node.engine.steps) for node in nodes] == [1] + [0] * (size - 1)


async def test_a_stream_of_another_stage_is_not_attached(swarm: Swarm) -> None:
    """A session takes steps only from a hop that ends where it begins."""
    node = await swarm.node(BACK)
    client = await opened(await swarm.client(node), BACK)
    for stage in (0, 3, 5, STAGES):
        stranger = await swarm.client(node)
        await stranger.send(Attach(client.session, stage))
        assert (await stranger.expect(Error)).code == "bad_stage"


async def test_replays_are_paced(swarm: Swarm, clock: trio.testing.MockClock) -> None:
    """A client that has its journal sent again and again gets some at once, then one in a while."""
    node = await swarm.node(FRONT)
    client = await opened(await swarm.client(node), FRONT, max_tokens=len(TOKENS))
    await client.step(0, 0, token_rows(TOKENS), NOTHING)
    await client.expect(Ack)
    began = trio.current_time()
    for _ in range(limits.REPLAYS_BURST + 2):
        await client.send(Relink(None, True, 0, STAGES))
        with trio.fail_after(10 * limits.REPLAY_EVERY_S):
            assert isinstance(await client.channel.receive(), Output)
    assert trio.current_time() - began >= 1.9 * limits.REPLAY_EVERY_S


async def test_relinks_are_paced(swarm: Swarm, clock: trio.testing.MockClock) -> None:
    """More of them than failures are likely wait their turn, and nothing is dialled for them meanwhile."""
    node = await swarm.node(FRONT)
    client = await opened(await swarm.client(node), FRONT)
    began = trio.current_time()
    for number in range(limits.RELINKS_BURST + 10):
        await client.send(Relink(NextHop("rubbish", bytes(16)), False, number, STAGES))
    await client.send(Ping(1))
    with trio.fail_after(100):
        while not isinstance(await client.channel.receive(), Pong):
            pass
    assert trio.current_time() - began >= 9 / limits.RELINKS_PER_S


# --- who is dialled


async def test_nobody_is_dialled_who_was_not_met(swarm: Swarm) -> None:
    """A client names whom it likes: without a connection or a proven address no packet goes there."""
    front, victim = await swarm.node(FRONT), await swarm.node(BACK)
    del swarm.met[victim.transport.peer]
    client = await swarm.client(front)
    await opened(client, FRONT, next=NextHop(victim.transport.peer, secrets.token_bytes(16)))
    assert (await client.expect(LinkDown)).reason == LINK_FAILED
    assert front.transport.place_of(victim.transport.peer) is None


async def test_over_a_connection_that_there_is_no_address_is_needed(swarm: Swarm) -> None:
    """Two nodes that have gossiped are linked."""
    front, back = await swarm.node(FRONT), await swarm.node(BACK)
    del swarm.met[back.transport.peer]
    await back.transport.connect(front.transport.addrs[0])
    second = await opened(await swarm.client(back), BACK)
    first = await opened(await swarm.client(front), FRONT, next=back.as_next(second))
    await first.step(0, 0, token_rows(TOKENS), LAST)
    await second.expect(Output)


@pytest.mark.parametrize("how", ["gone", "silent", "not serving"])
async def test_how_a_dial_fails_is_not_told(how: str, swarm: Swarm, clock: trio.testing.MockClock) -> None:
    """Neither in words nor by the time it takes."""
    front, ghost = await swarm.node(FRONT), await swarm.transport()
    if how == "gone":
        swarm.network.kill(ghost.peer)
    elif how == "silent":
        swarm.network.pause(ghost.peer)
    client = await swarm.client(front)
    await opened(client, FRONT, next=NextHop(ghost.peer, bytes(16)))
    began = trio.current_time()
    assert (await client.channel.expect(LinkDown, 10)).reason == LINK_FAILED
    if how != "not serving":
        assert trio.current_time() - began == pytest.approx(limits.LINK_TIMEOUT_S)


async def test_one_client_asks_for_so_many_links(swarm: Swarm, clock: trio.testing.MockClock) -> None:
    """Over all its sessions; the next ones are down at once, and nobody hears of them."""
    front, back = await swarm.node(FRONT, kv_tokens=10_000), await swarm.node(BACK)
    asked = 0

    async def count(_: object) -> None:
        nonlocal asked
        asked += 1

    back.transport.serve("/swarm/session/1", count)
    peer = await swarm.transport()
    for number in range(limits.LINKS_BURST + 8):
        client = await Client.to(peer, front.transport)
        client.session = number.to_bytes(16, "big")
        await opened(client, FRONT, next=NextHop(back.transport.peer, bytes(16)))
        await client.channel.expect(LinkDown, 10)
    assert limits.LINKS_BURST <= asked <= limits.LINKS_BURST + 2


# --- what is held


async def test_frames_are_as_large_as_the_session(swarm: Swarm) -> None:
    """Before it opens a stream is read a few KiB far; afterwards as far as its rows need."""
    node = await swarm.node(BACK)
    early = await swarm.client(node)
    early.channel._state = None
    await early.channel.stream.send((limits.FIRST_FRAME_BYTES + 1).to_bytes(4, "big"))
    assert (await early.expect(Error)).code == "malformed"
    client = await opened(await swarm.client(node), BACK, max_tokens=4)
    most = Shape(BACK, MANIFEST, "f32", 4).frame_bytes
    assert most < 40_000
    await client.channel.stream.send((most + 1).to_bytes(4, "big"))
    assert (await client.expect(Error)).code == "malformed"


async def test_a_session_reserves_what_it_may_have_in_motion(swarm: Swarm) -> None:
    """Sessions whose tokens are few are refused all the same once their buffers would be too many."""
    node = await swarm.node(WHOLE, kv_tokens=100_000)
    shape = Shape(WHOLE, MANIFEST, "f32", 1)
    node.budget.room = type(node.budget.room)(100_000, 10 * shape.buffer_bytes)
    peer, granted = await swarm.transport(), 0
    for _ in range(8):
        client = await Client.to(peer, node.transport)
        await client.open(WHOLE, max_tokens=1)
        granted += isinstance(await client.channel.receive(), Opened)
    assert granted == 5
    assert node.hop.offer() > 0
    assert not isinstance(await (await asked(await swarm.client(node))).channel.receive(), Refused)


async def asked(client: Client, span: Span = WHOLE) -> Client:
    """One that has said Open."""
    await client.open(span, max_tokens=1)
    return client


async def test_answers_that_wait_hold_steps_back(swarm: Swarm) -> None:
    """A client that reads nothing is computed for only as far as its answers have room."""
    executor = ManualExecutor()
    node = await swarm.node(WHOLE, executor=executor)
    client = await opened(await swarm.client(node), WHOLE)
    want = Want("candidates", top=1, ids=(1,) * 4000)
    held = Shape(WHOLE, MANIFEST, "f32", 64)
    for number in range(20):
        await client.step(number, 0, token_rows([1]), want)
    most = held.answer_bytes // (44 * 4000)
    await eventually(lambda: len(node.hop.scheduler) + len(executor.queue) == most)
    executor.release()
    assert len([m for m in await client.gather(acked(19)) if isinstance(m, Output)]) == 20


@pytest.mark.slow
async def test_a_client_that_takes_nothing_is_let_go(swarm: Swarm, clock: trio.testing.MockClock) -> None:
    """Its results wait for a while, then its seat is somebody else's."""
    node = await swarm.node(FRONT)
    client = await opened(await swarm.client(node), FRONT, bridged=True, max_tokens=600)
    with pytest.raises(Lost), trio.fail_after(10 * limits.TAKE_WITHIN_S):  # noqa: PT012 - which one is not known
        for number in range(1000):
            await client.step(number, 0, token_rows([1] * 500), NOTHING)
    await eventually(lambda: len(node.hop) == 0 and is_free(node))


@pytest.mark.slow
async def test_a_next_hop_that_takes_nothing_is_let_go(swarm: Swarm, clock: trio.testing.MockClock) -> None:
    """The link is down then, and the client is heard again, if only its leaving."""
    front, stuck = await swarm.node(FRONT), await swarm.transport()

    async def read_nothing(_: object) -> None:
        await trio.sleep_forever()

    stuck.serve("/swarm/session/1", read_nothing)
    client = await opened(
        await swarm.client(front), FRONT, next=NextHop(stuck.peer, bytes(16)), max_tokens=600
    )

    async def feed() -> None:
        for number in range(1000):
            await client.step(number, 0, token_rows([1] * 500), NOTHING)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        with trio.fail_after(10 * limits.TAKE_WITHIN_S):
            while not isinstance(await client.channel.receive(), LinkDown):
                pass
        nursery.cancel_scope.cancel()
    client.channel.stream.reset()
    await eventually(lambda: len(front.hop) == 0)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Memory is given back by counting references alone."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("end", ["close", "reset", "bad step", "bad rows", "bad output", "engine"])
async def test_nothing_of_a_session_waits_for_a_collection(
    end: str, swarm: Swarm, no_collector: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Its cache, its journal's rows and its frames are gone when it is over."""
    caplog.set_level(logging.CRITICAL, "node.hop.session")  # what pytest records has the tracebacks
    front, back = await swarm.node(FRONT), await swarm.node(BACK)
    second = await opened(await swarm.client(back), BACK)
    first = await opened(await swarm.client(front), FRONT, next=back.as_next(second))
    await first.step(0, 0, token_rows(TOKENS), LAST)
    await second.gather(acked(0))
    await first.gather(acked(0))
    watched = [ref for node in (front, back) for ref in kept_by(node)]
    assert len(watched) == 9
    for node, client in ((front, first), (back, second)):
        if end == "close":
            await client.send(Close())
        elif end == "reset":
            client.channel.stream.reset()
        elif end == "bad step":
            await client.step(1, 99, token_rows([1]), LAST)
        else:
            node.engine.spoil = end == "bad output"
            node.engine.error = ZeroDivisionError("deliberate") if end == "engine" else None
            value = np.nan if end == "bad rows" else 1.0
            rows = token_rows([-1 if end == "bad rows" else 1])
            hidden = from_numpy(np.full((1, 8), value, np.float32))
            await client.step(1, 8, rows if client is first else hidden, LAST)
            await client.gather(lambda message: isinstance(message, Error))
        await eventually(partial(is_free, node))
        node.engine.error = None
    await eventually(lambda: not any(ref() is not None for ref in watched))


def is_free(node: Node) -> bool:
    """Whether nothing is reserved there."""
    return node.budget.free == node.budget.total


def kept_by(node: Node) -> list[weakref.ref[object]]:
    """What the one session of a node has in memory."""
    (session,) = node.hop._sessions.values()
    cache = node.engine.caches.pop()
    reader = session._client._reader
    journal = session._sender._journal
    found: list[object] = [session, session._sender, cache, reader]
    if journal is not None:
        found.append(journal)
    return [weakref.ref(thing) for thing in found]


# --- slots


async def test_a_flood_of_sessions_does_not_lock_the_node(swarm: Swarm) -> None:
    """From the same place as an honest client, as many as there are: it opens, steps, and keeps its seat."""
    node = await swarm.node(WHOLE, kv_tokens=40_960)
    peers = [await swarm.transport("192.0.2.1") for _ in range(8)]
    flood = [await Client.to(peers[number % 8], node.transport) for number in range(120)]
    for number, client in enumerate(flood):
        client.session = number.to_bytes(16, "big")
        await opened(client, WHOLE, max_tokens=256)  # the last of them takes what is left to this origin
    honest = await opened(await swarm.client(node, "192.0.2.2"), WHOLE, max_tokens=256)
    await honest.step(0, 0, token_rows(TOKENS), LAST)
    await honest.gather(acked(0))
    assert (await flood[0].expect(Error)) == Error("gave_way", "idle, and others need the room", True)
    for number in range(5):
        more = await Client.to(peers[number], node.transport)
        more.session = secrets.token_bytes(16)
        await opened(more, WHOLE, max_tokens=256)
    await honest.step(1, 8, token_rows([1]), LAST)
    await honest.gather(acked(1))
    assert node.hop.offer() > 0


async def test_sessions_that_step_now_and_then_do_not_keep_a_newcomer_out(
    swarm: Swarm, clock: trio.testing.MockClock
) -> None:
    """Two peers step once a second in all that there is, all together: a third need not ask between their steps."""
    node = await swarm.node(WHOLE, kv_tokens=100_000)
    node.budget.room = type(node.budget.room)(8192)
    peers = [await swarm.transport("192.0.2.1") for _ in range(2)]
    hoard = [await Client.to(peers[number % 2], node.transport) for number in range(24)]
    for number, client in enumerate(hoard):
        client.session = number.to_bytes(16, "big")
        await opened(client, WHOLE, max_tokens=256)
    for second in range(3):
        for client in hoard:
            await client.step(second, second, token_rows([1]), NOTHING)
            await client.gather(acked(second))
        await trio.sleep(1.0 if second < 2 else 0.1)
    honest = await swarm.client(node, "192.0.2.2")
    await opened(honest, WHOLE, max_tokens=600)
    await eventually(lambda: sum(client.session not in node.hop._sessions for client in hoard) == 3)


async def test_sessions_are_not_opened_without_end(swarm: Swarm, clock: trio.testing.MockClock) -> None:
    """Beyond a burst one peer opens them at a rate; another peer is not charged for them."""
    node, peer = await swarm.node(WHOLE), await swarm.transport()
    count, answer = 0, None
    while not isinstance(answer, Refused):
        client = await Client.to(peer, node.transport)
        client.session = secrets.token_bytes(16)
        await client.open(WHOLE, max_tokens=1)
        answer = await client.channel.receive()
        count += 1
        client.channel.stream.reset()
        await eventually(lambda: len(node.hop) == 0)
    assert limits.OPENS_BURST < count < 1.5 * limits.OPENS_BURST
    await opened(await swarm.client(node), WHOLE)


async def test_who_gave_way_is_told_and_comes_back(swarm: Swarm, clock: trio.testing.MockClock) -> None:
    """An honest client that idles loses its seat only to who needs it."""
    node = await swarm.node(WHOLE)
    idle = await opened(await swarm.client(node), WHOLE, max_tokens=800)
    await idle.step(0, 0, token_rows(TOKENS * 33), LAST)
    await idle.gather(acked(0))
    await trio.sleep(600)
    await idle.send(Ping(1))
    await idle.expect(Pong)
    asking = await swarm.client(node)
    asking.session = bytes(16)
    await opened(asking, WHOLE, max_tokens=800)
    error = await idle.expect(Error)
    assert (error.code, error.elsewhere) == ("gave_way", True)
    await trio.sleep(NEW_S)
    await opened(await swarm.client(node), WHOLE, max_tokens=800)


@pytest.mark.parametrize("first", ["nothing", "attach"])
async def test_streams_that_wait_give_way_to_newer_ones(
    first: str, swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any number of streams that say nothing, or attach to nothing, keep nobody out."""
    monkeypatch.setattr("protocol.limits.NEWCOMERS", 4)
    monkeypatch.setattr("protocol.limits.ATTACH_WAITERS", 4)
    node = await swarm.node(BACK)
    crowd = [await swarm.client(node) for _ in range(12)]
    for client in crowd:
        with contextlib.suppress(Lost):
            if first == "attach":
                await client.attach(secrets.token_bytes(16))
            else:
                await client.channel.stream.send(b"\0")
    client, previous = await swarm.client(node), await swarm.client(node)
    await previous.attach(client.session)
    await previous.step(0, 0, hidden_rows(TOKENS, 4), LAST)
    await opened(client, BACK)
    await client.expect(Output)
    for gone in crowd[:4]:
        with contextlib.suppress(Lost), trio.fail_after(1):
            while await gone.channel.stream.receive():
                pass
