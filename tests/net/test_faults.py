"""Real node processes that are killed, frozen, told to leave and started again: the answer is the undisturbed one.

Each half of a random Llama is served twice. The reference is transformers' generate on the same checkpoint.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

import swarm
from node.whole import WholeModel
from protocol.errors import NoRoute
from swarm.events import Event, Rerouted, Waiting
from swarm.generation import Generation
from swarm.request import Request
from tests.support.answers import generated, make_slow_model
from tests.support.forge import Forge
from tests.support.local_swarm import LocalSwarm, RunningNode
from tests.support.processes import Processes
from tests.support.prompts import LONG, SHORT
from tests.support.waiting import eventually

pytestmark = [pytest.mark.net, pytest.mark.timeout(240)]

HALVES = ["0:2", "2:4"]
ROOM = len(LONG) + 64
NEW = 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of this module."""
    return make_slow_model(tmp_path_factory.mktemp("model") / "slow")


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> dict[int, list[int]]:
    """By the length of the prompt: what comes after it undisturbed."""
    return {len(prompt): generated(checkpoint, prompt, NEW) for prompt in (SHORT, LONG)}


@pytest.fixture(scope="module")
def all_nodes(
    forge: Forge, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalSwarm]:
    """Four nodes, each half twice."""
    with Processes(launch=forge.start) as processes:
        extra = ["--threads", "1", "--kv-tokens", "8192"]
        running = LocalSwarm(processes, checkpoint, tmp_path_factory.mktemp("homes"), extra=extra)
        running.start(*HALVES, *HALVES)
        yield running


@pytest.fixture
def nodes(all_nodes: LocalSwarm) -> LocalSwarm:
    """The four nodes, those that a test before has ended started again."""
    dead = [node for node in all_nodes.nodes if not node.running]
    if dead:
        all_nodes.restart(*dead)
    return all_nodes


class Writer:
    """One session of a client, and the answer it writes."""

    def __init__(self, session: swarm.Session, nodes: LocalSwarm, prompt: list[int]) -> None:
        self.session = session
        self.answer: list[int] = []
        self._nodes = nodes
        self._feed = prompt

    def node(self, hop: int) -> RunningNode:
        """The node that is hop number `hop` now."""
        peer = self.session.hops[hop].peer
        return next(node for node in self._nodes.nodes if node.peer == peer)

    async def write(self, count: int) -> None:
        """The next tokens."""
        for _ in range(count):
            candidates = await self.session.step(self._feed)
            assert candidates is not None
            self._feed = [int(candidates.ids[0, 0])]
            self.answer += self._feed

    async def write_disturbed(self, hop: int, fault: Callable[[RunningNode], object]) -> RunningNode:
        """The first token, while `fault` happens to a hop that has computed a part of the prompt; the victim."""
        victim = self.node(hop)

        async def disturb() -> None:
            await self.in_prefill(hop)
            fault(victim)
            assert not self.answer, "the prompt was through before the fault came"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(disturb)
            await self.write(1)
        return victim

    async def in_prefill(self, hop: int) -> None:
        """Until a hop has computed the first chunk."""
        claims = self.session.hops[hop].claims
        await eventually(lambda: claims.acked, 30, "the hop computes a part of the prompt")


@asynccontextmanager
async def writing(
    nodes: LocalSwarm,
    prompt: list[int],
    *,
    wait_s: float = 0.0,
    on_event: Callable[[Event], None] | None = None,
) -> AsyncIterator[Writer]:
    """A client of its own with a session for the prompt."""
    addrs = [node.addr for node in nodes.nodes if node.running]
    async with (
        # What was computed before for the same prompt would have it through before any fault.
        swarm.connect(*addrs, wait_s=wait_s, on_event=on_event, reuse=False) as client,
        client.session(max_tokens=ROOM) as session,
    ):
        yield Writer(session, nodes, prompt)


def kill(node: RunningNode) -> None:
    """As a crash ends it."""
    node.process.kill9()


def freeze(node: RunningNode) -> None:
    """It keeps its sockets and answers nothing."""
    node.process.stop()


def dismiss(node: RunningNode) -> None:
    """As its owner ends it: it says goodbye."""
    node.process.signal(signal.SIGTERM)


@pytest.mark.parametrize("hop", [0, 1])
@pytest.mark.parametrize("fault", [kill, freeze, dismiss])
async def test_a_fault_in_the_prompt_and_one_in_the_answer(
    fault: Callable[[RunningNode], None], hop: int, nodes: LocalSwarm, expected: dict[int, list[int]]
) -> None:
    """A hop fails in the middle of the prompt, later the other one between two tokens: two reroutes, same tokens."""
    async with writing(nodes, LONG) as writer:
        victims = [await writer.write_disturbed(hop, fault)]
        await writer.write(6)
        victims.append(writer.node(1 - hop))
        fault(victims[1])
        began = trio.current_time()
        await writer.write(1)
        print(f"{fault.__name__}: next token after {trio.current_time() - began:.2f} s")
        await writer.write(NEW - 8)
        assert writer.answer == expected[len(LONG)]
        assert [moved.lost for moved in writer.session.reroutes] == [victim.peer for victim in victims]
    if fault is freeze:
        for victim in victims:
            victim.process.cont()
        await check_that_it_serves(nodes, victims, expected)
    if fault is dismiss:
        for victim in victims:
            status = await trio.to_thread.run_sync(victim.process.wait, 10)
            assert (status, victim.said[-1]) == (0, "leaving")


async def check_that_it_serves(
    nodes: LocalSwarm, wanted: list[RunningNode], expected: dict[int, list[int]]
) -> None:
    """A new client gets the answer from exactly these nodes."""
    async with swarm.connect(*(node.addr for node in wanted)) as client:
        spare = {node.peer for node in nodes.nodes} - {node.peer for node in wanted}
        for peer in spare:
            client._view.bans.ban(peer, trio.current_time(), honest=False)
        async with client.session(max_tokens=ROOM) as session:
            assert set(session.route.peers) == {node.peer for node in wanted}
            writer = Writer(session, nodes, SHORT)
            await writer.write(NEW)
            assert writer.answer == expected[len(SHORT)]


@pytest.mark.parametrize("hop", [0, 1])
async def test_nobody_else_serves_the_layers(
    hop: int, nodes: LocalSwarm, expected: dict[int, list[int]]
) -> None:
    """Without time to wait: NoRoute in seconds, one line. With it: the session goes on with a node that came back.

    The node comes back at its address, under its key, with an empty cache. One session is in its prompt, two are in
    their answers; the one that was given up can be taken up again.
    """
    events: list[Event] = []
    async with (
        writing(nodes, SHORT) as hasty,
        writing(nodes, SHORT, wait_s=120, on_event=events.append) as patient,
        writing(nodes, LONG, wait_s=120) as prompting,
    ):
        await hasty.write(4)
        await patient.write(4)
        holders = [node for node in nodes.nodes if node.layers == HALVES[hop]]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(prompting.write, NEW)
            await prompting.in_prefill(hop)
            for node in holders:
                kill(node)
            assert not prompting.answer
            nursery.start_soon(patient.write, NEW - 4)
            began = trio.current_time()
            with pytest.raises(NoRoute) as raised:
                await hasty.write(1)
            seconds = trio.current_time() - began
            print(f"NoRoute after {seconds:.2f} s: {raised.value}")
            assert seconds < 10
            line = str(raised.value)
            assert "\n" not in line
            assert ["layers 0:2", "layers 2:4"][hop] in line
            assert f"--layers {HALVES[hop]} " in line
            await trio.to_thread.run_sync(nodes.restart, holders[0])
        await hasty.write(NEW - 4)
        assert patient.answer == expected[len(SHORT)]
        assert hasty.answer == expected[len(SHORT)]
        assert prompting.answer == expected[len(LONG)]
        assert {Waiting, Rerouted} <= {type(event) for event in events}


@pytest.mark.parametrize("fault", [freeze, kill])
async def test_half_of_the_announcements_are_stale(
    fault: Callable[[RunningNode], None], nodes: LocalSwarm, expected: dict[int, list[int]]
) -> None:
    """One node of each half is gone, but still announced, when a new client enters through a living one."""
    lost = nodes.nodes[2:]
    for node in lost:
        fault(node)
    try:
        began = trio.current_time()
        async with swarm.connect(nodes.nodes[0].addr) as client:
            assert {node.peer for node in lost} <= {said.peer for said in client.book.alive(0.0)}
            async with client.session(max_tokens=ROOM) as session:
                writer = Writer(session, nodes, SHORT)
                await writer.write(1)
                seconds = trio.current_time() - began
                print(f"{fault.__name__}: first token of a new client after {seconds:.2f} s")
                await writer.write(NEW - 1)
    finally:
        for node in lost:
            node.process.cont()
    assert seconds < 8
    assert writer.answer == expected[len(SHORT)]


DRAWN = swarm.Sampling(0.8, top_p=0.9, repetition_penalty=1.1, seed=5)
# By name: a strategy, its settings, whether another model is beside it, and the hop that dies.
STRATEGIES: dict[str, tuple[swarm.Strategy | str, swarm.Sampling, bool, int]] = {
    "greedy": ("greedy", swarm.Sampling(), False, 0),
    "sample": ("sample", DRAWN, False, 1),
    "runs": (swarm.Speculative(), swarm.Sampling(0.5, allowed=range(97, 103), seed=2), False, 0),
    "draft": (swarm.Speculative(run=0), DRAWN, True, 1),
    "beams": (swarm.BeamSearch(beams=4, returned=3), swarm.Sampling(repetition_penalty=1.2), False, 0),
    "best": (swarm.BestOf(answers=3), DRAWN, False, 1),
    "contrastive": (swarm.Contrastive(alpha=0.3), swarm.Sampling(), True, 0),
    "search": (swarm.ContrastiveSearch(), swarm.Sampling(), False, 1),
}


@pytest.fixture(scope="module")
def sibling(checkpoint: Path) -> WholeModel:
    """The same in four bits, beside the client: it says the same more often than not."""
    return WholeModel.open(str(checkpoint), "int4")


async def everything(generation: Generation) -> list[tuple[int, ...]]:
    """All that an answer tells, best first."""
    async for _ in generation:
        pass
    return [generation.answer.tokens, *(other.tokens for other in generation.answer.alternatives)]


@pytest.mark.parametrize("name", list(STRATEGIES))
async def test_a_hop_is_killed_under_every_strategy(
    name: str, all_nodes: LocalSwarm, sibling: WholeModel
) -> None:
    """With drafts out and branches forked: what it tells is what it told undisturbed, by the same seed."""
    strategy, sampling, beside, hop = STRATEGIES[name]
    dead = [node for node in all_nodes.nodes if not node.running]
    if HALVES[hop] in [node.layers for node in dead]:
        all_nodes.restart(*dead)
    amateur, draft = (sibling, None) if isinstance(strategy, swarm.Contrastive) else (None, sibling)
    request = Request(32, sampling, strategy, eos=())
    if beside:
        request = replace(request, amateur=amateur, draft=draft)
    async with (
        swarm.connect(*(node.addr for node in all_nodes.nodes if node.running), reuse=False) as client,
        client.session(max_tokens=ROOM) as session,
    ):
        undisturbed = await everything(client.generate(SHORT, request=request))
        generation = client.generate(SHORT, session=session, request=request)
        found: list[tuple[int, ...]] = []

        async def answer() -> None:
            found.extend(await everything(generation))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            await eventually(lambda: session.length > len(SHORT) + 1, 30, "some tokens of the answer")
            victim = session.hops[hop].peer
            kill(next(node for node in all_nodes.nodes if node.peer == victim))
        assert found == undisturbed
        assert {moved.lost for moved in generation.answer.reroutes} == {victim}
