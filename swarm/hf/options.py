"""What a GenerationConfig asks for, in our words; and a refusal of what cannot be had. Pure, and knows no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from protocol.errors import ConfigError
from swarm.decoding import BeamSearch, ContrastiveSearch, Sampling, Speculative, Strategy
from swarm.decoding.speculative import DRAFTS, RUN
from swarm.request import Request

# What generate does where nobody says otherwise, in transformers' words.
DEFAULTS: Final[Mapping[str, Any]] = {
    "max_length": 20,
    "min_length": 0,
    "do_sample": False,
    "early_stopping": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
}
# Options that are read here.
KNOWN: Final = frozenset(DEFAULTS) | {
    "max_new_tokens",
    "min_new_tokens",
    "max_time",
    "stop_strings",
    "min_p",
    "suppress_tokens",
    "bad_words_ids",
    "sequence_bias",
    "prompt_lookup_num_tokens",
    "max_matching_ngram_size",
    "penalty_alpha",
    "eos_token_id",
    "pad_token_id",
}
# Options that change nothing at these values; at any value, where it is None: they say how a model on this machine
# computes, or what a config was made with.
NEUTRAL: Final[Mapping[str, tuple[Any, ...] | None]] = {
    "bos_token_id": None,
    "transformers_version": None,
    "use_cache": None,
    "low_memory": None,
    "remove_invalid_values": None,  # nodes are found out that compute such
    "disable_compile": None,
    "compile_config": None,
    "num_assistant_tokens": None,  # of assistants, which are refused by their own names
    "num_assistant_tokens_schedule": None,
    "assistant_confidence_threshold": None,
    "assistant_lookbehind": None,
    "target_lookbehind": None,
    "is_assistant": (False,),
    "renormalize_logits": (False,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "guidance_scale": (1.0,),
    "token_healing": (False,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "output_scores": (False,),
    "output_logits": (False,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """One call of generate: how each row is answered, and what is made of it."""

    request: Request
    returned: int  # sequences of each prompt
    drawn: bool  # each by itself, with a seed of its own
    pad: int
    as_dict: bool


def read_options(given: Mapping[str, Any], width: int, eos_of_model: frozenset[int]) -> Wanted:
    """What the options (of a GenerationConfig and beside it) ask for, of prompts that are `width` tokens wide.

    Raises: ConfigError, which names the option, where one is unknown, cannot be had or has a value that cannot be.
    """
    said = {name: value for name, value in given.items() if value is not None}
    _refuse(said)
    of: dict[str, Any] = {**DEFAULTS, **said}
    if "max_new_tokens" in said:
        longest = int(said["max_new_tokens"])
    else:
        longest = int(of["max_length"]) - (width if "max_length" in said else 0)
    if longest < 1:
        raise ConfigError(f"max_length {of['max_length']}: the prompts have {width} tokens already")
    eos = _eos(said, eos_of_model)
    beams, returned = int(of["num_beams"]), int(of["num_return_sequences"])
    strategy = _strategy(of, beams, returned)
    request = Request(
        longest,
        _sampling(of, width),
        strategy,
        _texts(of.get("stop_strings")),
        eos,
        of.get("max_time"),
    )
    pad = said["pad_token_id"] if "pad_token_id" in said else min(eos, default=0)
    return Wanted(request, returned, bool(of["do_sample"]), int(pad), bool(of["return_dict_in_generate"]))


def _refuse(said: Mapping[str, Any]) -> None:
    for name, value in said.items():
        if name in KNOWN or (name in NEUTRAL and (NEUTRAL[name] is None or value in (NEUTRAL[name] or ()))):
            continue
        raise ConfigError(f"{name} {value!r}: a swarm cannot do this for generate; leave it out")


def _strategy(of: Mapping[str, Any], beams: int, returned: int) -> Strategy | str:
    """Raises: ConfigError, for what does not go together."""
    drafts = of.get("prompt_lookup_num_tokens")
    if beams == 1:
        if returned > 1 and not of["do_sample"]:
            raise ConfigError(f"num_return_sequences {returned}: without beams or do_sample there is one")
        if of.get("penalty_alpha") and not of["do_sample"] and of["top_k"] > 1:
            return ContrastiveSearch(float(of["penalty_alpha"]), int(of["top_k"]))
        if drafts is None:
            return "auto"
        run = of.get("max_matching_ngram_size") or 2
        return Speculative(min(int(drafts), DRAFTS), min(max(int(run), 2), RUN))
    for name, wrong in (("do_sample", of["do_sample"]), ("prompt_lookup_num_tokens", drafts)):
        if wrong:
            raise ConfigError(f"num_beams {beams} does not go with {name}: leave one of them out")
    return BeamSearch(beams, float(of["length_penalty"]), of["early_stopping"], returned)


def _sampling(of: Mapping[str, Any], width: int) -> Sampling:
    """The processors. What says how to draw says nothing where nothing is drawn, as in transformers."""
    drawing: dict[str, Any] = {}
    if of["do_sample"]:
        drawing = {name: of[name] for name in ("temperature", "top_p", "typical_p")}
        drawing |= {"top_k": int(of["top_k"]), "min_p": of.get("min_p", 0.0)}
        if not drawing["temperature"] > 0:
            raise ConfigError(f"temperature {of['temperature']}: it is above 0 where tokens are drawn")
    return Sampling(
        **drawing,
        repetition_penalty=of["repetition_penalty"],
        no_repeat_ngram=of["no_repeat_ngram_size"],
        min_new_tokens=of.get("min_new_tokens", max(0, int(of["min_length"]) - width)),
        banned=frozenset(of.get("suppress_tokens", ()))
        | _single("bad_words_ids", of.get("bad_words_ids", ())),
        logit_bias=_biases(of.get("sequence_bias", ())),
    )


def _biases(given: Any) -> dict[int, float]:
    """Of {(id,): bias} or [[[id], bias]]."""
    pairs = given.items() if isinstance(given, Mapping) else given
    found = {}
    for ids, bias in pairs:
        [token] = _single("sequence_bias", (ids,))
        found[token] = float(bias)
    return found


def _single(name: str, sequences: Sequence[Sequence[int]]) -> frozenset[int]:
    """Raises: ConfigError, where a sequence has more tokens than one."""
    for ids in sequences:
        if len(ids) != 1:
            raise ConfigError(f"{name} {list(ids)}: a swarm can do this for single tokens only")
    return frozenset(int(ids[0]) for ids in sequences)


def _eos(said: Mapping[str, Any], eos_of_model: frozenset[int]) -> frozenset[int]:
    if "eos_token_id" not in said:
        return eos_of_model
    given = said["eos_token_id"]
    return frozenset([int(given)] if isinstance(given, int) else map(int, given))


def _texts(given: Any) -> tuple[str, ...]:
    return () if given is None else (given,) if isinstance(given, str) else tuple(given)
