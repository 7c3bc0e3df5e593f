"""A swarm of nodes that keep their weights in eight and four bits says what one engine says, token for token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import swarm
from node.compute.call import run_alone
from node.native import build
from node.native.checkpoint import NativeCheckpoint
from node.native.engine import NativeEngine
from node.native.load import load_kernel
from node.native.precision import PRECISIONS
from protocol.candidates import Candidates, Want
from protocol.model import Span
from protocol.tensors import from_numpy
from tests.support.inprocess import running_nodes
from tests.support.quantised import METHODS, quantise

pytestmark = pytest.mark.net

TINY = Path("swarm/models/tiny")
NEW_TOKENS = 24
PROMPT = "one two three four"


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """There have to be kernels."""
    if not build.build():
        pytest.skip("there is no C compiler here, so there are no native kernels to test")


def continued(ids: list[int], quant: str, tokens: int, model: Path = TINY) -> list[int]:
    """What one engine makes of the whole model."""
    checkpoint = NativeCheckpoint.open(str(model), PRECISIONS[quant])
    whole = Span(0, checkpoint.manifest.stages)
    engine = NativeEngine.load(checkpoint, whole, load_kernel(1))
    cache, given, found = engine.new_cache(whole), np.array(ids, np.int32), list[int]()
    while len(found) < tokens:
        out = run_alone(engine, cache, cache.length, from_numpy(given), Want(top=1))
        assert isinstance(out, Candidates)
        given = out.ids[0]
        found.append(int(given[0]))
    return found


async def serve_and_compare(model: Path, quant: str) -> None:
    """A thin client, over real QUIC and a chain of two hops, gets what one engine makes of the whole model."""
    async with (
        running_nodes(model, [(0, 3), (3, 8)], quant=quant) as addrs,
        swarm.connect(addrs[-1]) as client,
    ):
        ids = await client.text.encode(PROMPT)
        generation = client.generate(ids, max_new_tokens=NEW_TOKENS)
        async for _ in generation:
            pass
        assert generation.answer is not None
        assert len(generation.answer.route.hops) == 2
        tokens = list(generation.answer.tokens)
    assert len(tokens) > 1
    assert tokens == continued(ids, quant, NEW_TOKENS, model)[: len(tokens)]


@pytest.mark.parametrize("quant", ["int8", "int4"])
async def test_two_nodes_say_what_one_engine_says(quant: str) -> None:
    """Of the model that ships."""
    await serve_and_compare(TINY, quant)


@pytest.mark.parametrize("name", ["gptq", "whole numbers", "nf4"])
async def test_a_checkpoint_that_is_quantised_is_served_like_any_other(name: str, tmp_path: Path) -> None:
    """To a client that has no more than its small files from the nodes; its weights have a digest of their own."""
    await serve_and_compare(quantise(TINY, tmp_path, METHODS[name])[0], "int8")
