"""What is drawn over three nodes has the distribution that transformers computes from the same weights.

Each token of long answers is put in the place that it has in the distribution of all that stand before it. Over many
tokens these places are even, and so are pairs of neighbours, in whatever order the distribution is laid out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trio
from transformers import AutoModelForCausalLM

import swarm
from node.whole import WholeModel
from swarm.decoding import Sample, Sampling, Speculative, Strategy
from tests.support.inprocess import running_nodes
from tests.support.models import make_model
from tests.swarm.decoding.chi_square import p_value
from tests.swarm.decoding.reference import probabilities, processed

pytestmark = pytest.mark.net

PROMPT = "one two three one two"
ANSWERS, NEW = 16, 40
PLACES = 6  # that the unit is cut into
FITS, DIFFERS = 1e-3, 1e-9
# Few tokens come often, so what came before is drafted and may hold.
LETTERS = Sampling(0.7, allowed=range(97, 105), frequency_penalty=0.1, top_p=0.95)
SHAPED = Sampling(0.6, top_p=0.9, repetition_penalty=1.2, presence_penalty=0.3)
WAYS: dict[str, tuple[Strategy, bool, Sampling]] = {
    "plain": (Sample(), False, Sampling(1.0)),
    "shaped": (Sample(), False, SHAPED),
    "runs": (Speculative(run=2), False, LETTERS),
    "draft": (Speculative(run=0), True, SHAPED),
}


async def drawn(folder: Path, draft: WholeModel) -> dict[str, list[list[int]]]:
    """Answers of each way, prompt included; those with drafts took fewer steps than they have tokens."""
    found: dict[str, list[list[int]]] = {}
    async with (
        running_nodes(folder, [(0, 1), (1, 3), (3, 4)]) as addrs,
        swarm.connect(addrs[0], remember=False) as client,
    ):
        ids = await client.text.encode(PROMPT)
        for number, (way, (strategy, drafts, sampling)) in enumerate(WAYS.items()):
            found[way], steps = [], 0
            for seed in range(ANSWERS):
                async with client.session(max_tokens=len(ids) + NEW) as session:
                    generation = client.generate(
                        ids,
                        session=session,
                        strategy=strategy,
                        sampling=replace(sampling, seed=1000 * number + seed),
                        draft=draft if drafts else None,
                        max_new_tokens=NEW,
                        eos=(),
                    )
                    async for _ in generation:
                        pass
                    steps += session.steps
                found[way].append([*ids, *generation.answer.tokens])
            assert (steps < ANSWERS * NEW) is isinstance(strategy, Speculative)
    return found


def places(
    model: Any, answers: Sequence[list[int]], sampling: Sampling, likely_first: bool
) -> Counter[tuple[int, int]]:
    """How often each pair of places came, of neighbouring tokens; where a token takes up several, one is drawn.

    likely_first: distributions are laid out in falling order of probability, not by id
    """
    rng, seen = np.random.default_rng(9), Counter[tuple[int, int]]()
    with torch.inference_mode():
        rows = model(torch.tensor(answers)).logits.numpy()
    for answer, logits in zip(answers, rows, strict=True):
        told = []
        begin = len(answer) - NEW
        for at in range(begin, len(answer)):
            shares = probabilities(processed(logits[at - 1], answer[:at], sampling, begin))
            mine = shares[answer[at]]
            before = shares[shares > mine].sum() if likely_first else shares[: answer[at]].sum()
            told.append(min(int(PLACES * (before + rng.random() * mine)), PLACES - 1))
        seen.update(pairwise(told))
    return seen


async def test_tokens_fall_as_transformers_says(tmp_path: Path) -> None:
    """Plain and with drafts, with top-p and penalties; and another temperature is told apart."""
    folder = make_model("llama", tmp_path / "model", seed=3, layers=4)
    draft = await trio.to_thread.run_sync(WholeModel.open, str(folder), "int4")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    even = {(one, other): 1 / PLACES**2 for one in range(PLACES) for other in range(PLACES)}
    for way, answers in (await drawn(folder, draft)).items():
        sampling = WAYS[way][2]
        for likely_first in (True, False):
            assert p_value(places(model, answers, sampling, likely_first), even) > FITS, way
        warmer = replace(sampling, temperature=sampling.temperature * 1.6)
        assert p_value(places(model, answers, warmer, True), even) < DIFFERS, way
