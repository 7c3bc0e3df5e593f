"""Contrastive search over three nodes is what its definition gives on full logits and hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import trio
from transformers import AutoModelForCausalLM

import swarm
from swarm.cli.demo_nodes import shipped_model
from swarm.cli.local import load_ends
from swarm.decoding import Sampling
from tests.support.inprocess import running_nodes
from tests.support.models import make_model
from tests.swarm.decoding.reference import processors

pytestmark = pytest.mark.net

PROMPT = "The answer, in one word: one two three one two"
NEW_TOKENS = 9
# By kernels, and by the family's own modules.
FAMILIES = ["shipped", "opt"]
CASES = [
    (swarm.ContrastiveSearch(0.6, 4), Sampling()),
    (swarm.ContrastiveSearch(0.3, 5), Sampling(repetition_penalty=1.2, min_new_tokens=6, no_repeat_ngram=3)),
    (swarm.ContrastiveSearch(0.9, 3), Sampling(allowed=frozenset({70, 75}))),
]


def defined(
    model: Any, ids: list[int], how: swarm.ContrastiveSearch, sampling: Sampling, eos: frozenset[int]
) -> list[int]:
    """As the paper says it: everything computed anew for each candidate of each token."""

    def run(tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            out = model(torch.tensor([tokens]), output_hidden_states=True)
        return out.logits[0, -1], torch.nn.functional.normalize(out.hidden_states[-1][0].double(), dim=1)

    shape, tokens = processors(sampling, len(ids), eos), list(ids)
    while len(tokens) < len(ids) + NEW_TOKENS:
        logits, context = run(tokens)
        shares = shape(torch.LongTensor([tokens]), logits[None].float())[0].double().softmax(0)
        probable, candidates = shares.topk(min(how.candidates, int((shares > 0).sum())))
        scores = []
        for share, candidate in zip(probable.tolist(), candidates.tolist(), strict=True):
            repeated = float((run([*tokens, candidate])[1][-1] @ context.T).max())
            scores.append((1 - how.alpha) * share - how.alpha * repeated)
        tokens.append(int(candidates[scores.index(max(scores))]))
        if tokens[-1] in eos:
            break
    return tokens[len(ids) :]


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A checkpoint of each family."""
    if request.param == "shipped":
        yield shipped_model()
    else:
        yield make_model(request.param, tmp_path / request.param, seed=3, layers=4)


async def test_three_nodes_equal_the_definition(folder: Path) -> None:
    """Also with processors, with fewer candidates than asked for, and with both ends of the model at the client."""
    cuts = [(0, 3), (3, 6), (6, 8)] if folder == shipped_model() else [(0, 1), (1, 3), (3, 4)]
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ends = await trio.to_thread.run_sync(load_ends, str(folder))
    async with (
        running_nodes(folder, cuts) as addrs,
        swarm.connect(addrs[0], remember=False) as client,
        swarm.connect(addrs[0], remember=False, ends=ends) as full,
    ):
        ids = await client.text.encode(PROMPT)
        for how, sampling in CASES:
            expected = defined(model, ids, how, sampling, client.text.eos)
            for asked in (client, full) if how is CASES[0][0] else (client,):
                generation = asked.generate(ids, strategy=how, sampling=sampling, max_new_tokens=NEW_TOKENS)
                async for _ in generation:
                    pass
                assert list(generation.answer.tokens) == expected, (how, sampling)


async def test_alpha_0_is_greedy_and_one_more_trip() -> None:
    """Nothing of repetition counts then; each token takes one step of every branch, and the prompt one."""
    async with (
        running_nodes(shipped_model(), [(0, 8)]) as addrs,
        swarm.connect(addrs[0], remember=False) as client,
        client.session(max_tokens=200) as session,
    ):
        ids = await client.text.encode(PROMPT)
        greedy = client.generate(ids, max_new_tokens=NEW_TOKENS, eos=())
        async for _ in greedy:
            pass
        search = client.generate(
            ids,
            session=session,
            strategy=swarm.ContrastiveSearch(0.0, 3),
            max_new_tokens=NEW_TOKENS,
            eos=(),
            top_logprobs=2,
        )
        async for _ in search:
            pass
        assert search.answer.tokens == greedy.answer.tokens
        assert [token.best[0][0] for token in search.answer.chosen] == list(greedy.answer.tokens)
        assert session.steps == 1 + NEW_TOKENS
