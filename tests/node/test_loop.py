"""Steps of several sessions in one batch: what each gets, and what becomes of the others where one fails."""

from __future__ import annotations

import logging

import pytest

from protocol.candidates import Want
from protocol.messages import Error, Output
from protocol.model import Span
from tests.node.conftest import Node, Swarm
from tests.node.fakes import (
    STAGES,
    Client,
    ManualExecutor,
    acked,
    expected_ids,
    hidden_rows,
    ids_of,
    opened,
    token_rows,
)
from tests.support.waiting import eventually

WHOLE, BACK = Span(0, STAGES), Span(4, STAGES)
LAST = Want("candidates", top=3)
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


async def sessions(swarm: Swarm, node: Node, spans: list[Span]) -> list[Client]:
    """Sessions at one node, each of a peer of its own."""
    return [await opened(await swarm.client(node), span) for span in spans]


async def waiting(node: Node, executor: ManualExecutor, clients: list[Client]) -> None:
    """A step of each that was told one waits, beside what the executor has."""
    await eventually(lambda: len(node.hop.scheduler) == len(clients) - 1)
    assert len(executor.queue) == 1


async def test_what_waits_runs_together(swarm: Swarm) -> None:
    """Prompts and tokens, of whole spans and of parts; each gets what it gets alone, and no timer has waited."""
    executor = ManualExecutor()
    node = await swarm.node(WHOLE, executor=executor)
    clients = await sessions(swarm, node, [WHOLE, WHOLE, BACK, WHOLE])
    for n, client in enumerate(clients):
        await client.step(0, 0, hidden_rows(TOKENS, 4) if n == 2 else token_rows(TOKENS[: n + 1]), LAST)
    await waiting(node, executor, clients)
    executor.release()
    assert node.engine.batches == [1, 3]
    expected = expected_ids(TOKENS)
    for n, client in enumerate(clients):
        assert ids_of(await client.expect(Output)) == [expected[-1 if n == 2 else n]]


async def test_a_malformed_step_fails_its_session_only(swarm: Swarm) -> None:
    """The others of its batch notice nothing."""
    executor = ManualExecutor()
    node = await swarm.node(WHOLE, executor=executor)
    clients = await sessions(swarm, node, [WHOLE] * 3)
    for n, client in enumerate(clients):
        await client.step(0, 0, token_rows([99] if n == 1 else TOKENS), LAST)
    await waiting(node, executor, clients)
    executor.release()
    assert node.engine.batches == [1, 2]
    assert (await clients[1].expect(Error)).code == "bad_step"
    for client in (clients[0], clients[2]):
        assert ids_of(await client.expect(Output)) == expected_ids(TOKENS)[-1:]


async def test_who_makes_the_engine_fail_fails_alone(swarm: Swarm, caplog: pytest.LogCaptureFixture) -> None:
    """Whose fault it was is found by running each by itself, on caches as they were."""
    executor = ManualExecutor()
    node = await swarm.node(WHOLE, executor=executor)
    node.engine.poison = 3
    clients = await sessions(swarm, node, [WHOLE] * 4)
    for n, client in enumerate(clients):
        await client.step(0, 0, token_rows(TOKENS[: 3 if n == 2 else 4]), LAST)
    await waiting(node, executor, clients)
    executor.release()
    for client in clients:
        await client.gather(acked(0))
    executor.held = True
    with caplog.at_level(logging.CRITICAL):
        for n, client in enumerate(clients):
            position = 3 if n == 2 else 4
            await client.step(1, position, token_rows(TOKENS[position : position + 1]), LAST)
        await eventually(lambda: len(node.hop.scheduler) == 3)
        executor.release()
    assert node.engine.batches == [1, 3, 1, 3, 1, 1, 1]
    assert (await clients[2].expect(Error)).code == "engine"
    for client in (clients[0], clients[1], clients[3]):
        assert ids_of(await client.expect(Output)) == [expected_ids(TOKENS)[4]]
