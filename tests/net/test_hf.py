"""A swarm in the place of a model of transformers gives what that gives, and refuses what it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import trio
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    TextIteratorStreamer,
    pipeline,
)

import swarm
from protocol.errors import ConfigError
from swarm.cli.demo_nodes import shipped_model
from swarm.hf import SwarmModel
from swarm.hf.options import read_options
from tests.support.inprocess import running_nodes

pytestmark = pytest.mark.net

PROMPTS = ["The answer, in one word: one two three one two", "Hi", "Count: 1, 2, 3, 1, 2, 3, 1,"]
CASES: list[dict[str, Any]] = [
    {"max_new_tokens": 9},
    {},
    {"max_length": 60, "min_length": 54},
    {"max_new_tokens": 9, "min_new_tokens": 8, "repetition_penalty": 1.4},
    {"max_new_tokens": 7, "no_repeat_ngram_size": 2, "suppress_tokens": [70, 71, 72]},
    {"max_new_tokens": 7, "bad_words_ids": [[70], [80]], "sequence_bias": {(90,): 3.0, (91,): -2.0}},
    {"max_new_tokens": 7, "num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.7},
    {"max_new_tokens": 7, "prompt_lookup_num_tokens": 4},
]


def over_nodes(check: Callable[[SwarmModel], None]) -> None:
    """Have it checked in an ordinary thread, over two nodes."""

    def in_thread(addr: str) -> None:
        with swarm.blocking.connect(addr, remember=False) as client:
            check(SwarmModel(client))

    async def main() -> None:
        async with running_nodes(shipped_model(), [(0, 3), (3, 8)]) as addrs:
            await trio.to_thread.run_sync(in_thread, addrs[0])

    trio.run(main)


def test_generate_equals_that_of_transformers() -> None:
    """Ragged batches, padded on the left; ends of one's own; what beams score; a penalty for each row alone."""
    folder = shipped_model()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs.generation_config = GenerationConfig()

    def check(model: SwarmModel) -> None:
        ends: list[Any] = [model.generation_config.eos_token_id, [75, 76, 90], 80]
        for number, case in enumerate(CASES):
            how = {"do_sample": False, "eos_token_id": ends[number % 3], "pad_token_id": 0, **case}
            # Its penalties see padding, and it looks prompts up one at a time only.
            if "repetition_penalty" in case or "prompt_lookup_num_tokens" in case:
                for row, prompt in enumerate(PROMPTS[::2]):
                    single = tokenizer(prompt, return_tensors="pt")
                    single.pop("token_type_ids", None)
                    expected = theirs.generate(**single, **how)
                    assert torch.equal(expected, model.generate(**single, **how)), (row, case)
                continue
            found = model.generate(**batch, **how, return_dict_in_generate=True)
            expected = theirs.generate(**batch, **how, return_dict_in_generate=True, output_scores=True)
            assert torch.equal(found.sequences, expected.sequences), case
            if "num_beams" in case:
                torch.testing.assert_close(
                    found.sequences_scores, expected.sequences_scores, atol=1e-3, rtol=1e-3
                )

    over_nodes(check)


def test_what_is_handed_to_it() -> None:
    """A GenerationConfig, a function of what may follow, a streamer, torch's seed; and pipelines."""
    folder = shipped_model()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    ids = tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def check(model: SwarmModel) -> None:
        config = GenerationConfig(max_new_tokens=7, num_beams=2, eos_token_id=5, pad_token_id=0)
        assert torch.equal(
            model.generate(ids, config, attention_mask=torch.ones_like(ids)),
            theirs.generate(ids, generation_config=config, attention_mask=torch.ones_like(ids)),
        )

        def follow(row: int, tokens: torch.Tensor) -> list[int]:
            return [60 + len(tokens) % 7, 70 + int(tokens[-1]) % 5]

        how: dict[str, Any] = {"max_new_tokens": 7, "eos_token_id": [5], "pad_token_id": 0}
        masked: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "prefix_allowed_tokens_fn": follow}
        assert torch.equal(model.generate(ids, **masked, **how), theirs.generate(ids, **masked, **how))

        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=20)
        found = model.generate(ids, streamer=streamer, **how)
        assert "".join(streamer) == tokenizer.decode(found[0, ids.shape[1] :])

        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            drawn.append(model.generate(ids, do_sample=True, temperature=1.5, num_return_sequences=3, **how))
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])
        assert len({tuple(row) for row in drawn[0].tolist()}) > 1

        of: Any = pipeline
        ours, plain = (of("text-generation", model=each, tokenizer=tokenizer) for each in (model, theirs))
        greedy = {"do_sample": False, "max_new_tokens": 8}
        assert ours(PROMPTS, **greedy) == plain(PROMPTS, **greedy)
        talk = [{"role": "user", "content": "What is 12 + 30?"}]
        assert ours(talk, **greedy) == plain(talk, **greedy)

        wrongs: list[dict[str, Any]] = [
            {"attention_mask": torch.tensor([[1] * (ids.shape[1] - 1) + [0]])},
            {"attention_mask": torch.zeros_like(ids)},
            {"attention_mask": torch.ones(1, 2)},
            {"streamer": streamer, "num_beams": 2},
            {"logits_processor": [print]},
            {"assistant_model": theirs},
        ]
        for wrong in wrongs:
            with pytest.raises(ConfigError, match=next(iter(wrong))):
                model.generate(ids, **wrong)

    over_nodes(check)


def test_penalty_alpha_is_contrastive_search() -> None:
    """As transformers had it, before it left that to others."""
    wanted = read_options({"penalty_alpha": 0.6, "top_k": 4}, 7, frozenset({2}))
    assert wanted.request.strategy == swarm.ContrastiveSearch(0.6, 4)
    assert read_options({"penalty_alpha": 0.6, "top_k": 1}, 7, frozenset({2})).request.strategy == "auto"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"penality": 2}, "penality"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"output_scores": True}, "output_scores"),
        ({"forced_eos_token_id": 3}, "forced_eos_token_id"),
        ({"bad_words_ids": [[1, 2]]}, "bad_words_ids"),
        ({"sequence_bias": [[[1, 2], 0.5]]}, "sequence_bias"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"num_return_sequences": 3, "num_beams": 2}, "returned 3"),
        ({"num_beams": 2, "do_sample": True}, "do_sample"),
        ({"do_sample": True, "temperature": 0.0}, "temperature"),
        ({"max_length": 7}, "max_length"),
        ({"dola_layers": "high"}, "dola_layers"),
    ],
    ids=str,
)
def test_what_cannot_be_had_is_named(given: dict[str, Any], named: str) -> None:
    """Nothing is ignored in silence."""
    with pytest.raises(ConfigError, match=named):
        read_options(given, 7, frozenset({2}))


def test_every_option_of_transformers_is_taken_at_its_usual_value() -> None:
    """So a GenerationConfig that is written out in full asks for what transformers would do."""
    usual = {**GenerationConfig()._get_default_generation_params(), "max_new_tokens": 20}
    assert read_options(usual, 7, frozenset({2})) == read_options({}, 7, frozenset({2}))
