"""Sessions that begin alike, on nodes with native kernels over real QUIC: to the bit what is computed anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import swarm
from node.native import build
from protocol.candidates import Candidates, Want
from tests.support.inprocess import running_nodes
from tests.support.waiting import eventually

pytestmark = pytest.mark.net

TINY = Path("swarm/models/tiny")
PROMPT = [int(token) for token in np.arange(480) * 7 % 400]
EVERYTHING = Want(top=0)


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """There have to be kernels."""
    if not build.build():
        pytest.skip("there is no C compiler here, so there are no native kernels to test")


class Asked:
    """What a client of its own was told, and what it cost each hop, in milliseconds for each step."""

    def __init__(self) -> None:
        self.logits: list[bytes] = []
        self.costs: list[list[float]] = []

    def took(self, steps: int) -> bool:
        """Whether so many steps cost nothing anywhere."""
        return all(not any(costs[:steps]) and all(costs[steps:]) for costs in self.costs)


async def ask(addr: str, prompt: list[int], *, reuse: bool = True) -> Asked:
    """Put a prompt and go on from there, once back over the border of a page."""
    asked = Asked()
    async with swarm.connect(addr, reuse=reuse, remember=False) as client, client.session() as session:
        for tokens, position in ((prompt, 0), ([1, 2, 3], 250), (prompt[253:300], 253), ([7], 300)):
            found = await session.step(tokens, position=position, want=EVERYTHING)
            assert isinstance(found, Candidates)
            order = np.argsort(found.ids[0])
            asked.logits.append(found.logits[0][order].tobytes() + found.lse.tobytes())
        await eventually(lambda: all(len(hop.costs) == session.steps for hop in session.hops))
        asked.costs = [[cost.compute_ms for cost in hop.costs] for hop in session.hops]
    return asked


async def test_what_was_taken_is_what_would_be_computed() -> None:
    """By another client, over three hops; also of a prompt that parts inside a page, and where nothing is reused."""
    async with running_nodes(TINY, [(0, 2), (2, 5), (5, 8)], quant="int8") as addrs:
        parting = [*PROMPT[:300], *PROMPT[:150]]
        anew = [await ask(addrs[1], prompt, reuse=False) for prompt in (PROMPT, parting)]
        assert all(asked.took(0) for asked in anew)
        first = await ask(addrs[1], PROMPT)
        assert first.took(0)

        async def took() -> bool:
            again, other = await ask(addrs[2], PROMPT), await ask(addrs[0], parting)
            assert again.logits == first.logits == anew[0].logits
            assert other.logits == anew[1].logits
            return again.took(2) and other.took(2)

        await eventually(took, 60, "taken by every hop")
