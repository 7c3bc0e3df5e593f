"""Every model type that is a causal language model to transformers: split, or refused in words."""

from __future__ import annotations

import pytest
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from node.engine.skeleton import Layout, build_skeleton, trace
from protocol.errors import UnsupportedModel

SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 300,
}


@pytest.mark.process  # transformers looks for ninja when it makes an RWKV
@pytest.mark.parametrize("kind", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_every_model_type_is_traced_or_refused(kind: str) -> None:
    """Encoders, models of several parts and what is yet to come: never another exception, and the type is named."""
    try:
        config = AutoConfig.for_model(kind, **SMALL)
    except Exception as error:  # noqa: BLE001 - whatever its own code says
        pytest.skip(f"transformers makes no small one: {error}")
    refused = ""
    try:
        assert isinstance(trace(build_skeleton(config, "f32")), Layout)
    except UnsupportedModel as error:
        refused = str(error)
    assert not refused or config.model_type in refused
