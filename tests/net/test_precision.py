"""Node processes of one checkpoint that compute in several ways: who serves whom, and what a death changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import swarm
from node.native import build
from node.native.load import ISA_VARIABLE, usable_object
from protocol.errors import NoRoute
from protocol.model import Span
from protocol.numerics import Numerics
from swarm.events import Altered, Event, Noticed, Rerouted
from tests.support.answers import generated, make_slow_model
from tests.support.forge import Forge
from tests.support.local_swarm import LocalSwarm, Own, RunningNode, wait_for_news
from tests.support.processes import Processes
from tests.support.prompts import SHORT
from tests.support.waiting import eventually

pytestmark = [pytest.mark.net, pytest.mark.timeout(240)]

BEFORE, AFTER = 6, 12
INT8 = Numerics("int8", 1)
FIRST, SECOND = "0:2", "2:4"
BY_TORCH = Own(("--dtype", "f32"))


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """There have to be kernels."""
    if not build.build():
        pytest.skip("there is no C compiler here, so there are no native kernels to test")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of this module."""
    return make_slow_model(tmp_path_factory.mktemp("model") / "slow")


@pytest.fixture
def nodes(forge: Forge, checkpoint: Path, tmp_path: Path) -> Iterator[LocalSwarm]:
    """A swarm without nodes yet."""
    with Processes(launch=forge.start) as processes:
        yield LocalSwarm(processes, checkpoint, tmp_path, extra=["--threads", "1", "--kv-tokens", "2048"])


def quantised(isa: str | None = None) -> Own:
    """A node in int8, by the kernels for the processor's best instructions or for these."""
    return Own(("--quant", "int8"), {ISA_VARIABLE: isa} if isa else {})


def kernels_of(node: RunningNode) -> str:
    """Whose code computes, as its banner has it."""
    kernels: str = wait_for_news(node.process, "serving").fields["kernels"]
    return kernels


async def written(session: swarm.Session, feed: Sequence[int], count: int) -> list[int]:
    """The next tokens, greedily."""
    found = list(feed)
    for _ in range(count):
        candidates = await session.step(found[-1:] if len(found) > len(feed) else feed)
        assert candidates is not None
        found.append(int(candidates.ids[0, 0]))
    return found[len(feed) :]


async def known(client: swarm.Client, nodes: Sequence[RunningNode]) -> None:
    """The client has met all of these."""

    async def met() -> bool:
        await client.refresh()
        return {node.peer for node in nodes} <= client.rtt_ms.keys()

    await eventually(met, 30, "everybody is known")


async def test_a_replacement_with_other_instructions_gives_the_same_answer(nodes: LocalSwarm) -> None:
    """`kill -9` of a node, whatever set of instructions goes on in its place: not a token is another one."""
    slowest_first = [isa for isa in reversed(build.isas()) if usable_object(isa, build.BUILT)]
    first = nodes.start(FIRST, own=quantised())
    others = [node for isa in slowest_first for node in nodes.start(SECOND, own=quantised(isa))]
    assert [kernels_of(node) for node in others] == [f"native {isa}" for isa in slowest_first]
    async with swarm.connect(nodes.join, precision="int8/1") as client:
        await known(client, nodes.nodes)
        async with client.session(max_tokens=256) as undisturbed:
            expected = await written(undisturbed, SHORT, BEFORE * len(others) + AFTER)
        async with client.session(max_tokens=256) as session:
            answer = await written(session, SHORT, BEFORE)
            used = [session.hops[1].peer]
            while len(used) < len(others):
                next(node for node in others if node.peer == used[-1]).process.kill9()
                answer += await written(session, answer[-1:], BEFORE)
                used.append(session.hops[1].peer)
            answer += await written(session, answer[-1:], len(expected) - len(answer))
            assert session.hops[0].peer == first[0].peer
        assert answer == expected
        assert sorted(used) == sorted(node.peer for node in others), "every set of instructions had its turn"
        assert [type(event) for event in session.events] == [Rerouted] * (len(others) - 1)


async def test_nodes_of_several_precisions_are_one_swarm(nodes: LocalSwarm, checkpoint: Path) -> None:
    """They agree about the weights, `exact` is answered as transformers does, and a mixed repair is told of."""
    int8 = nodes.start(FIRST, SECOND, own=quantised())
    exact = nodes.start(FIRST, SECOND, own=BY_TORCH)
    expected = generated(checkpoint, SHORT, BEFORE + AFTER)
    events: list[Event] = []
    async with (
        swarm.connect(nodes.join, precision="exact", on_event=events.append) as careful,
        swarm.connect(nodes.join, precision="int8", on_event=events.append) as quick,
        swarm.connect(nodes.join, on_event=events.append) as anyhow,
    ):
        for client in (careful, quick, anyhow):
            await known(client, nodes.nodes)
        async with careful.session(max_tokens=256) as session:
            assert await written(session, SHORT, BEFORE + AFTER) == expected
            assert {hop.peer for hop in session.hops} == {node.peer for node in exact}
        assert careful.weights == quick.weights == anyhow.weights is not None
        route = await quick.plan_route(256)
        assert [(hop.peer, hop.numerics) for hop in route.hops] == [(node.peer, INT8) for node in int8]
        async with anyhow.session(route, max_tokens=256) as session:
            answer = await written(session, SHORT, BEFORE)
            int8[1].process.kill9()
            await written(session, answer[-1:], AFTER)
            assert [hop.peer for hop in session.hops] == [int8[0].peer, exact[1].peer]
            told = Altered(session.id, Span(3, 6), INT8, Numerics("f32"))
            assert [event for event in session.events if isinstance(event, Altered)] == [told]
            assert told in events
        with pytest.raises(NoRoute, match=r"in the precision asked for, int8: there is f32 at 1 node"):
            async with quick.session(max_tokens=256):
                pass
        assert not [event for event in events if isinstance(event, Noticed)]
