"""What tests have shown of families: whose sessions may be computed together (see `rows`), and whose states go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Model types for which tests/node/engine/test_rows.py shows that it is exact, windows and experts included. What is
# not here keeps a state of another kind, attends by its own code, or reads what a batch has not one of.
BATCHED: Final = frozenset(
    {
        "apertus",
        "arcee",
        "bitnet",
        "cohere",
        "cohere2",
        "dots1",
        "ernie4_5",
        "ernie4_5_moe",
        "exaone4",
        "flex_olmo",
        "gemma",
        "gemma2",
        "gemma3_text",
        "gemma4_text",
        "glm",
        "glm4",
        "glm4_moe",
        "gpt2",
        "gpt_bigcode",
        "gpt_neox",
        "gpt_oss",
        "granite",
        "granitemoe",
        "helium",
        "hunyuan_v1_dense",
        "hunyuan_v1_moe",
        "llama",
        "minimax_m2",
        "ministral",
        "ministral3",
        "mistral",
        "mixtral",
        "nemotron",
        "olmo",
        "olmo2",
        "olmo3",
        "olmoe",
        "persimmon",
        "phi",
        "phi3",
        "phimoe",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "seed_oss",
        "smollm3",
        "stablelm",
        "starcoder2",
        "vaultgemma",
    }
)
# Those whose layers keep a state and go on from it with several rows at once (tests/node/engine/test_chunks.py).
# Others take several rows for the beginning of a sequence, wherever they stand.
CHUNKED: Final = frozenset(
    {
        "bamba",
        "falcon_h1",
        "granitemoehybrid",
        "lfm2",
        "mamba2",
        "nemotron_h",
        "olmo_hybrid",
        "qwen3_5_text",
        "qwen3_next",
    }
)
# Rotary frequencies that follow from the furthest position of a forward: sessions would change one another's.
_SHARED_ROTARY: Final = ("dynamic", "longrope")


def may_batch(model: PreTrainedModel) -> bool:
    """Whether the family is known to give each row what it gives it alone."""
    config = model.config.get_text_config(decoder=True)
    return config.model_type in BATCHED and not any(map(_shares_rotary, model.modules()))


def takes_chunks(config: PreTrainedConfig) -> bool:
    """Whether the family is known to go on from its states with several rows."""
    return config.get_text_config(decoder=True).model_type in CHUNKED


def _shares_rotary(module: Any) -> bool:
    kind = getattr(module, "rope_type", None)
    kinds = kind.values() if isinstance(kind, dict) else (kind,)
    return any(shared in str(each) for each in kinds for shared in _SHARED_ROTARY)
