"""`generate` as a model of transformers has it: ids in, ids out, computed by a swarm.

Every option means what it means there, or is an error that names it. Drawn tokens follow from torch's seed, but are
other ones than transformers would draw by it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from transformers import GenerationConfig, PretrainedConfig
from transformers.generation.utils import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput

from protocol.errors import ConfigError
from swarm import blocking
from swarm.answer import Alternative, Answer
from swarm.answers import Several
from swarm.hf.options import Wanted, read_options
from swarm.request import Request

# A batch is answered at once, as far as hops have seats.
AT_ONCE: Final = 32
# For each batch and the ids so far, those that may follow.
Allowed = Callable[[int, torch.Tensor], list[int]]


class SwarmModel:
    """Stands for a causal language model where only `generate` is called; `transformers.pipeline` takes it too.

    It has no weights, and so no `forward`: logits of every position stay in the swarm. `generation_config` says at
    first which ids end an answer and nothing else, whatever the checkpoint's says; it may be changed. `device` is
    where the ids that it returns lie.
    """

    main_input_name: Final = "input_ids"
    input_modalities: Final = ("text",)
    output_modalities: Final = ("text",)

    def __init__(self, client: blocking.Client, several: Several | None = None) -> None:
        """several: how the rows of a batch are answered; their order is kept in any case."""
        self._client = client
        self._several = replace(several or Several(AT_ONCE), ordered=True)
        about, model = client.text.about, client.model
        facts: dict[str, Any] = {
            "name_or_path": model.name,
            "vocab_size": model.manifest.vocab_size,
            "hidden_size": model.manifest.hidden_size,
            "num_hidden_layers": model.blocks,
            "max_position_embeddings": model.context,
        }
        self.config = PretrainedConfig(**facts)
        self.generation_config = GenerationConfig(bos_token_id=about.bos, eos_token_id=sorted(about.eos))
        self.device = torch.device("cpu")
        self.dtype: torch.dtype | None = None  # nodes have their own

    @property
    def name_or_path(self) -> str:
        """What the swarm calls the model."""
        return self._client.model.name

    def can_generate(self) -> bool:
        """It can."""
        return True

    def eval(self) -> SwarmModel:
        """As it is: nothing here trains."""
        return self

    def to(self, device: torch.device | str) -> SwarmModel:
        """Have the ids that it returns on this device from now on."""
        self.device = torch.device(device)
        return self

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor | None,
        generation_config: GenerationConfig | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        streamer: Any = None,
        prefix_allowed_tokens_fn: Allowed | None = None,
        **options: Any,
    ) -> Any:
        """Continue each row: int64 [batch, n], padded on the left, to [batch * num_return_sequences, longer].

        Rows are answered as each alone. Options are those of GenerationConfig, in one or by name. With
        `return_dict_in_generate` there are `sequences`, and of beams `sequences_scores`.

        Raises: ConfigError, which names an option that is unknown or cannot be had; NoRoute, and what else ends an
        answer.
        """
        if options.pop("tokenizer", None) is not None and "stop_strings" not in options:
            raise ConfigError(
                "tokenizer: it is for stop_strings alone, and those are found by the model's own"
            )
        if input_ids is None or input_ids.ndim != 2 or not input_ids.numel():
            raise ConfigError("input_ids: ids of the prompts, [batch, n]")
        wanted = read_options(
            self._merged(generation_config, options), input_ids.shape[1], self._client.text.eos
        )
        prompts = unpadded(input_ids, attention_mask, wanted.pad if self._pads(wanted) else None)
        requests = [
            _of_row(wanted, row, prompt, input_ids, prefix_allowed_tokens_fn)
            for row, prompt in enumerate(prompts)
            for _ in range(wanted.returned if wanted.drawn else 1)
        ]
        asked = [prompt for prompt in prompts for _ in range(wanted.returned if wanted.drawn else 1)]
        if streamer is not None:
            if len(asked) > 1 or wanted.request.chosen_strategy().sessions > 1:
                raise ConfigError("streamer: it takes one sequence, without beams")
            answers = [self._client.generate(asked[0], request=requests[0]).feed(streamer)]
        else:
            answers = self._answers(asked, requests)
        return self._told(wanted, input_ids, answers)

    def _merged(self, config: GenerationConfig | None, options: dict[str, Any]) -> dict[str, Any]:
        """Options by name, else of the config given, else of our own."""
        merged: dict[str, Any] = {}
        for each in (self.generation_config, config):
            if each is not None:
                values = copy.deepcopy(vars(each))
                merged |= {
                    name: value
                    for name, value in values.items()
                    if value is not None and not name.startswith("_")
                }
        return merged | options

    def _pads(self, wanted: Wanted) -> bool:
        """Whether what fills up a row is told from what ends an answer."""
        return wanted.pad not in (wanted.request.eos or ())

    def _answers(self, prompts: list[list[int]], requests: Sequence[Request]) -> list[Answer]:
        found = []
        for answered in self._client.generate(prompts, request=requests, several=self._several):
            if answered.error is not None:
                raise answered.error
            found.append(answered.answer)
        return found

    def _told(
        self, wanted: Wanted, input_ids: torch.Tensor, answers: Sequence[Answer]
    ) -> torch.Tensor | GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput:
        found: list[Answer | Alternative] = []
        for answer in answers:
            found += [answer, *answer.alternatives]
        longest = max(len(each.tokens) for each in found)
        rows = torch.full((len(found), longest), wanted.pad, dtype=torch.long)
        for row, each in zip(rows, found, strict=True):
            row[: len(each.tokens)] = torch.tensor(each.tokens, dtype=torch.long)
        before = input_ids.cpu().repeat_interleave(len(found) // len(input_ids), dim=0)
        sequences = torch.cat([before, rows], dim=1).to(self.device)
        # What they are annotated with is a class that no tensor has any more.
        as_annotated: Any = sequences
        if not wanted.as_dict:
            return sequences
        if found[0].score is None:
            return GenerateDecoderOnlyOutput(sequences=as_annotated)
        scores = torch.tensor([each.score for each in found], device=self.device)
        return GenerateBeamDecoderOnlyOutput(sequences=as_annotated, sequences_scores=scores)


def unpadded(ids: torch.Tensor, mask: torch.Tensor | None, pad: int | None) -> list[list[int]]:
    """The ids of each row without what fills it up on its left: by the mask, else what is `pad`.

    Raises: ConfigError, where a row is filled up elsewhere, or is nothing else.
    """
    if mask is None:
        mask = torch.ones_like(ids) if pad is None else (ids != pad).long()
    if mask.shape != ids.shape:
        raise ConfigError(
            f"attention_mask {list(mask.shape)}: it has the shape of input_ids, {list(ids.shape)}"
        )
    rows = []
    for number, (row, kept) in enumerate(zip(ids.tolist(), mask.tolist(), strict=True)):
        count = sum(map(bool, kept))
        if not count or not all(kept[-count:]):
            raise ConfigError(
                f"attention_mask, row {number}: prompts are padded on the left, and have a token"
            )
        rows.append(row[-count:])
    return rows


def _of_row(
    wanted: Wanted, row: int, prompt: Sequence[int], ids: torch.Tensor, allowed: Allowed | None
) -> Request:
    """How one sequence is answered: with its own seed, where it is drawn, and what may follow in it."""
    sampling = wanted.request.settings
    if wanted.drawn:
        sampling = replace(sampling, seed=int(torch.randint(1 << 62, ())))
    if allowed is not None:
        filled, function = ids[row, : ids.shape[1] - len(prompt)].tolist(), allowed

        def may_follow(tokens: Sequence[int]) -> list[int]:
            return function(row, torch.tensor([*filled, *tokens]))

        sampling = replace(sampling, allowed=may_follow)
    return replace(wanted.request, sampling=sampling)
