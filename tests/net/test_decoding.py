"""Greedy decoding, beams and processors over three nodes give what transformers' generate gives, token for token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import trio
from transformers import AutoModelForCausalLM, LogitsProcessorList

import swarm
from node.whole import WholeModel
from swarm.branches import Model
from swarm.cli.demo_nodes import shipped_model
from swarm.decoding import BeamSearch, Sampling, Strategy
from swarm.request import Request
from tests.support.inprocess import running_nodes
from tests.support.models import make_model
from tests.swarm.decoding.reference import processors

pytestmark = pytest.mark.net

# By our kernels, with experts and without; on the generic path, by the family's own modules.
FAMILIES = [
    *((family, "native") for family in ("shipped", "llama", "mixtral", "qwen2")),
    *((family, "torch") for family in ("llama", "qwen2", "opt")),
]
PROMPT = "The answer, in one word: one two three one two"
NEW_TOKENS = 16
PLAIN = Sampling()
SHAPED = Sampling(repetition_penalty=1.3, no_repeat_ngram=3, min_new_tokens=6)
PUSHED = Sampling(
    presence_penalty=0.4, frequency_penalty=0.3, logit_bias={70: 2.0, 71: -4.0}, banned={72, 101}
)


@dataclass(frozen=True)
class Case:
    """What is asked of both."""

    beams: int
    sampling: Sampling = PLAIN
    length_penalty: float = 1.0
    early_stopping: Any = False

    @property
    def strategy(self) -> swarm.Strategy | str:
        """As the swarm has it."""
        if self.beams == 1:
            return "greedy"
        return BeamSearch(self.beams, self.length_penalty, self.early_stopping, self.beams)

    def generated(self, folder: Path, ids: list[int], eos: frozenset[int]) -> list[list[int]]:
        """What transformers makes of it, best first."""
        how: dict[str, Any] = {}
        if self.beams > 1:
            how = {
                "num_beams": self.beams,
                "num_return_sequences": self.beams,
                "length_penalty": self.length_penalty,
                "early_stopping": self.early_stopping,
            }
        output = _model(folder).generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            logits_processor=processors(self.sampling, len(ids), eos) or LogitsProcessorList(),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=sorted(eos),
            **how,
        )
        return [_up_to(row[len(ids) :], eos) for row in output.tolist()]


CASES = [
    Case(1),
    Case(1, SHAPED),
    Case(1, PUSHED),
    Case(2),
    Case(4),
    Case(4, SHAPED, 0.6),
    Case(2, PUSHED, 1.5, True),
    Case(4, early_stopping="never"),
]


@cache
def _model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _up_to(row: list[int], eos: frozenset[int]) -> list[int]:
    """A row without what fills it up behind its end."""
    ends = [index for index, token in enumerate(row) if token in eos]
    return row[: ends[0] + 1] if ends else row[:NEW_TOKENS]


@pytest.mark.parametrize(("family", "engine"), FAMILIES)
async def test_three_nodes_equal_generate(family: str, engine: str, tmp_path: Path) -> None:
    """Every sequence that is returned, in order; processors are the client's, so the generic path has a few."""
    if family == "shipped":
        folder, cuts = shipped_model(), [(0, 3), (3, 6), (6, 8)]
    else:
        folder, cuts = make_model(family, tmp_path / family, seed=3, layers=4), [(0, 1), (1, 3), (3, 4)]
    async with (
        running_nodes(folder, cuts, engine=engine) as addrs,
        swarm.connect(addrs[0], remember=False) as client,
    ):
        ids = await client.text.encode(PROMPT)
        for case in CASES if engine == "native" else CASES[2:6]:
            generation = client.generate(
                ids, strategy=case.strategy, sampling=case.sampling, max_new_tokens=NEW_TOKENS
            )
            async for _ in generation:
                pass
            answer = generation.answer
            found = [list(answer.tokens), *(list(other.tokens) for other in answer.alternatives)]
            assert found == case.generated(folder, ids, client.text.eos), case
            assert len(answer.route.hops) == 3


async def test_drafts_save_steps_and_change_nothing() -> None:
    """By the small sibling of the shipped model, on the client's machine: greedy and drawn."""
    draft = await trio.to_thread.run_sync(WholeModel.open, str(shipped_model().with_name("tiny-draft")))
    question = [{"role": "user", "content": "Count from 3 to 40."}]
    async with (
        running_nodes(shipped_model(), [(0, 3), (3, 6), (6, 8)]) as addrs,
        swarm.connect(addrs[0], remember=False) as client,
    ):
        ids = await client.text.encode_chat(question)
        for sampling in (PLAIN, Sampling(0.4, top_p=0.9, repetition_penalty=1.05, seed=3)):
            tokens, steps = [], []
            ways: list[tuple[Strategy | str, Model | None]] = [
                ("greedy" if sampling.greedy else "sample", None),
                ("auto", draft),
            ]
            for strategy, model in ways:
                async with client.session(max_tokens=len(ids) + 60) as session:
                    generation = client.generate(
                        ids, session=session, request=Request(60, sampling, strategy, draft=model)
                    )
                    async for _ in generation:
                        pass
                    tokens.append(generation.answer.tokens)
                    steps.append(session.steps)
            assert tokens[0] == tokens[1]
            assert steps[1] < steps[0] or sampling is not PLAIN
