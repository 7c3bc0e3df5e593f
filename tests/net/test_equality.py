"""Greedy decoding through a swarm is that of transformers' generate on the same checkpoint, token for token."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import swarm
from node.engine.checkpoint import Checkpoint
from node.engine.ends import LocalEnds
from tests.support.inprocess import running_nodes
from tests.support.models import make_model

pytestmark = pytest.mark.net

FAMILIES = ["llama", "qwen2", "qwen3", "gemma3_text", "phi3", "mixtral", "deepseek_v3", "opt", "gptj"]
LAYERS = 4
CUTS = {1: [(0, 4)], 2: [(0, 2), (2, 4)], 4: [(0, 1), (1, 2), (2, 3), (3, 4)]}
PROMPT = "The answer, in one word: "
NEW_TOKENS = 16


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """Family -> a checkpoint folder, made when first asked for."""

    @cache
    def made(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family) / family
        make_model(family, folder, seed=3, layers=LAYERS)
        return folder

    return made


@cache
def generated(folder: Path, ids: tuple[int, ...]) -> list[int]:
    """What transformers makes of it."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    output = model.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False)
    found: list[int] = output[0, len(ids) :].tolist()
    return found


async def answer(client: swarm.Client) -> swarm.Answer:
    """What the swarm makes of it."""
    generation = client.generate(PROMPT, max_new_tokens=NEW_TOKENS)
    async for _ in generation:
        pass
    return generation.answer


@pytest.mark.parametrize("nodes", list(CUTS))
@pytest.mark.parametrize("family", FAMILIES)
async def test_swarm_equals_generate(family: str, nodes: int, checkpoints) -> None:  # type: ignore[no-untyped-def]
    """Over 1, 2 and 4 nodes, thin and full client, direct and bridged."""
    folder = checkpoints(family)
    ends = LocalEnds.load(Checkpoint.open(str(folder)), dtype="f32")
    async with running_nodes(folder, CUTS[nodes]) as addrs:
        for with_ends in (None, ends):
            for direct in (True, False):
                async with swarm.connect(addrs[-1], ends=with_ends, direct=direct) as client:
                    expected = generated(folder, tuple(await client.text.encode(PROMPT)))
                    found = await answer(client)
                    assert list(found.tokens) == expected, (with_ends, direct)
                    assert len(found.route.hops) == nodes
