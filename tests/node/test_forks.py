"""Sessions at a hop that begin with what others have: when, of whom, and at what price."""

from __future__ import annotations

import random
import secrets

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from node.hop.forks import REMEMBERED, History
from protocol import limits
from protocol.candidates import NOTHING, Want
from protocol.messages import Close, Fork, Open, Opened, Output, Ping, Pong, Refused
from protocol.model import Span
from protocol.transport.memory.transport import MemoryTransport
from tests.node.conftest import Node, Swarm
from tests.node.fakes import (
    MANIFEST,
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

WHOLE = Span(0, STAGES)
FRONT, BACK = Span(0, 4), Span(4, STAGES)
LAST = Want("candidates", top=3)
EVERY = Want("hidden", every=True)
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Time passes when everybody waits."""
    return trio.testing.MockClock(autojump_threshold=0)


async def first_session(peer: MemoryTransport, node: Node, span: Span = WHOLE) -> Client:
    """A session of `peer` with the tokens in it, by one step."""
    client = await opened(await Client.to(peer, node.transport), span)
    rows = token_rows(TOKENS) if span.start == 0 else hidden_rows(TOKENS, span.start)
    await client.step(0, 0, rows, NOTHING)
    await client.gather(acked(0))
    return client


async def asked(peer: MemoryTransport, node: Node, fork: Fork, span: Span = WHOLE) -> Client:
    """A stream of `peer` on which a fork was asked for."""
    client = await Client.to(peer, node.transport)
    client.session = secrets.token_bytes(16)
    await client.send(Open(client.session, MANIFEST.digest, span, 64, None, False, fork))
    return client


async def test_a_fork_has_cache_and_numbers(swarm: Swarm) -> None:
    """It goes on behind the position, says what it has received, and takes no step of a lower number."""
    node, peer = await swarm.node(WHOLE), await swarm.transport()
    first = await first_session(peer, node)
    fork = await asked(peer, node, Fork(first.session, 5, 1))
    await fork.expect(Opened)
    await fork.send(Ping(1))
    assert await fork.expect(Pong) == Pong(1, 1, 1)
    await fork.step(0, 0, token_rows([7]), LAST)
    await fork.step(1, 5, token_rows([30]), LAST)
    heard = await fork.gather(acked(1))
    assert [ids_of(m)[-1] for m in heard if isinstance(m, Output)] == [expected_ids([*TOKENS[:5], 30])[-1]]
    await first.step(1, 8, token_rows([2]), LAST)
    assert ids_of(await first.expect(Output))[-1] == expected_ids([*TOKENS, 2])[-1]


async def test_a_fork_has_the_journal(swarm: Swarm) -> None:
    """A step that is repeated from it gives nothing; what a relink asks for comes from it."""
    node, peer = await swarm.node(FRONT), await swarm.transport()
    first = await first_session(peer, node, FRONT)
    fork = await asked(peer, node, Fork(first.session, 5, 1), FRONT)
    await fork.expect(Opened)
    session = node.hop._sessions[fork.session]
    journal = session._sender._journal
    assert journal is not None
    assert journal.entries[-1].rows.numpy().tolist() == hidden_rows(TOKENS, 4).numpy()[:5].tolist()
    await fork.step(1, 5, token_rows([30]), EVERY)
    (output,) = (m for m in await fork.gather(acked(1)) if isinstance(m, Output))
    assert hidden_of(output) == hidden_rows([*TOKENS[:5], 30], 4).numpy()[5:].tolist()


@pytest.mark.parametrize(
    "what", ["unknown", "of another peer", "other stages", "beyond", "nothing", "gone back", "never comes"]
)
async def test_what_cannot_be_forked_is_refused(
    what: str, swarm: Swarm, clock: trio.testing.MockClock
) -> None:
    """All alike where it is not the asker's; nothing stays reserved for it, and the first session goes on."""
    node, peer, other = await swarm.node(WHOLE), await swarm.transport(), await swarm.transport()
    first = await first_session(peer, node)
    await first.step(1, 3, token_rows([7, 7, 7]), NOTHING)
    await first.gather(acked(1))
    session = bytes(16) if what == "unknown" else first.session
    position = {"beyond": 7, "nothing": 0, "gone back": 4}.get(what, 2)
    after = {"gone back": 1, "never comes": 3}.get(what, 2)
    span = Span(1, STAGES) if what == "other stages" else WHOLE
    asker = other if what == "of another peer" else peer
    fork = await asked(asker, node, Fork(session, position, after), span)
    refused = await fork.expect(Refused)
    assert refused.code == "fork"
    mine = what not in ("unknown", "of another peer", "other stages")
    assert ("of yours" in refused.reason) == (not mine)
    await eventually(lambda: len(node.hop._seated) == 1 and node.budget.free == node.budget.total - 64)
    await first.step(2, 6, token_rows([2]), LAST)
    assert ids_of(await first.expect(Output))[-1] == expected_ids([3, 1, 4, 7, 7, 7, 2])[-1]


async def test_a_fork_waits_for_the_steps_it_comes_after(swarm: Swarm) -> None:
    """It is taken among what is computed: behind them, and before the session's next step goes back."""
    executor = ManualExecutor()
    node, peer = await swarm.node(WHOLE, executor=executor), await swarm.transport()
    first = await opened(await Client.to(peer, node.transport), WHOLE)
    await first.step(0, 0, token_rows(TOKENS), NOTHING)
    fork = await asked(peer, node, Fork(first.session, 8, 2))
    await first.step(1, 6, token_rows([10, 11]), NOTHING)
    await eventually(lambda: len(node.hop.scheduler) + len(executor.queue) == 2)
    executor.run_one()
    await first.gather(acked(0))
    executor.run_one()
    await first.gather(acked(1))
    await eventually(lambda: len(executor.queue) == 1)
    executor.release()
    await fork.expect(Opened)
    await fork.step(2, 8, token_rows([1]), LAST)
    assert ids_of(await fork.expect(Output))[-1] == expected_ids([*TOKENS[:6], 10, 11, 1])[-1]


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_session_that_ends_takes_who_waits_for_it_along(
    how: str, swarm: Swarm, clock: trio.testing.MockClock
) -> None:
    """The fork is refused, at once."""
    executor = ManualExecutor()
    node, peer = await swarm.node(WHOLE, executor=executor), await swarm.transport()
    first = await opened(await Client.to(peer, node.transport), WHOLE)
    await first.step(0, 0, token_rows(TOKENS), NOTHING)
    fork = await asked(peer, node, Fork(first.session, 8, 1))
    await eventually(lambda: len(node.hop._seated) == 2)
    began = trio.current_time()
    await (first.send(Close()) if how == "close" else first.channel.stream.aclose())
    await eventually(lambda: len(node.hop) == 0)
    executor.release()
    assert (await fork.expect(Refused)).code == "fork"
    assert trio.current_time() - began < limits.FORK_WAIT_S
    await eventually(lambda: node.budget.free == node.budget.total)


async def test_who_leaves_while_the_fork_is_taken_leaves_nothing(swarm: Swarm) -> None:
    """The cache that the thread has made by then is closed by it."""
    executor = ManualExecutor()
    executor.held = False
    node, peer = await swarm.node(WHOLE, executor=executor), await swarm.transport()
    first = await first_session(peer, node)
    executor.held = True
    fork = await asked(peer, node, Fork(first.session, 8, 1))
    await eventually(lambda: len(executor.queue) == 1)
    await swarm_gone(fork)
    executor.release()
    await eventually(lambda: len(node.hop) == 1 and node.budget.free == node.budget.total - 64)


async def swarm_gone(client: Client) -> None:
    """Its stream is reset."""
    client.channel.stream.reset()
    await trio.testing.wait_all_tasks_blocked()


async def test_forks_are_paced_by_what_they_may_copy(swarm: Swarm, clock: trio.testing.MockClock) -> None:
    """Apart from sessions that begin with nothing, which go on being opened."""
    node, peer = await swarm.node(WHOLE, kv_tokens=100_000), await swarm.transport()
    first = await first_session(peer, node)
    granted, answer, began = 0, None, trio.current_time()
    while not isinstance(answer, Refused):
        fork = await asked(peer, node, Fork(first.session, 8, 1))
        answer = await fork.channel.receive()
        granted += isinstance(answer, Opened)
        fork.channel.stream.reset()
        await eventually(lambda: len(node.hop) == 1)
    assert (answer.code, answer.retry_after_s > 0) == ("busy", True)
    refilled = (trio.current_time() - began) * limits.FORKS_PER_S
    assert limits.FORKS_BURST <= granted <= limits.FORKS_BURST + refilled
    await opened(await Client.to(peer, node.transport), WHOLE)


async def test_forks_link_without_asking_for_links(swarm: Swarm) -> None:
    """Over the connection that their session's link has made."""
    front, back, peer = await swarm.node(FRONT), await swarm.node(BACK), await swarm.transport()
    second = await opened(await Client.to(peer, back.transport), BACK)
    first = await Client.to(peer, front.transport)
    first.session = secrets.token_bytes(16)
    await opened(first, FRONT, next=back.as_next(second))
    await first.step(0, 0, token_rows(TOKENS), NOTHING)
    await second.gather(acked(0))
    for _ in range(limits.LINKS_BURST + 4):
        behind = await asked(peer, back, Fork(second.session, 8, 1), BACK)
        await behind.expect(Opened)
        before = await Client.to(peer, front.transport)
        before.session = secrets.token_bytes(16)
        fork = Fork(first.session, 8, 1)
        following = back.as_next(behind)
        await before.send(Open(before.session, MANIFEST.digest, FRONT, 64, following, False, fork))
        await before.expect(Opened)
        await before.step(1, 8, token_rows([5]), LAST)
        assert ids_of(await behind.expect(Output))[-1] == expected_ids([*TOKENS, 5])[-1]
        for client in (before, behind):
            await client.send(Close())
        await eventually(lambda: len(front.hop) + len(back.hop) == 2)


@given(seed=st.integers(0, 2**32), steps=st.integers(0, 200), first=st.integers(0, 3))
def test_a_history_never_says_that_what_is_gone_stands(seed: int, steps: int, first: int) -> None:
    """And of the last steps it knows."""
    rng, history = random.Random(seed), History(first)
    made: list[tuple[int, int]] = []
    number = first
    for _ in range(steps):
        position = rng.randint(0, 20)
        for _ in range(rng.randint(1, 2)):
            history.note(number, position)
        made.append((number, position))
        number += rng.randint(1, 2)
    for after in range(number + 2):
        for length in (1, 10, 21):
            gone = any(n >= after and position < length for n, position in made)
            recent = after >= first and sum(n >= after for n, _ in made) <= REMEMBERED
            assert not (history.stands(after, length) and gone)
            if recent and not gone:
                assert history.stands(after, length)
