"""What a model is said to take by its configuration alone is what torch's engine takes that has loaded it."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.engine.checkpoint import Checkpoint
from node.engine.products import on_kernels
from node.engine.quantised import Quantiser
from node.engine.span import SpanEngine
from node.estimate import estimate
from node.native.load import load_kernel
from node.native.precision import INT4, INT8
from protocol.model import Span
from tests.support.models import random_model, tiny_config


def foreign(family: str) -> dict[str, str]:
    """What keeps a model from the kernels that would take it."""
    return {"hidden_act": "gelu"} if family == "deepseek_v3" else {}


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("family", ["deepseek_v3", "gpt2", "opt", "falcon", "mamba"])
def test_the_estimate_is_what_loading_takes(family: str, dtype: str, tmp_path: Path) -> None:
    """Every stage, and keys and values; recurrent states count nothing in both."""
    random_model(tiny_config(family, layers=3, **foreign(family)), seed=1).save_pretrained(tmp_path)
    said = estimate(str(tmp_path))
    assert said.engine == "torch"
    footprint = said.footprints[dtype]
    for stage, size in enumerate(footprint.stages):
        engine = SpanEngine.load(Checkpoint.open(str(tmp_path)), Span(stage, stage + 1), dtype=dtype)
        # Where a family has buffers that are stored (the bias of deepseek's router), the engine's figure is without.
        assert engine.weight_bytes <= size == pytest.approx(engine.weight_bytes, rel=1e-4)
        assert engine.kv_bytes_per_token() == (footprint.kv[stage - 1] if 0 < stage < 4 else 0)


@pytest.mark.parametrize("family", ["deepseek_v3", "gpt2"])
def test_packed_it_is_about_what_loading_takes(family: str, tmp_path: Path) -> None:
    """What is too small, or of another shape, is kept as it is: in a model that is not tiny it is next to nothing."""
    ranks = {"moe_intermediate_size": 256, "q_lora_rank": 64, "kv_lora_rank": 64, "v_head_dim": 32}
    fields = {"hidden_size": 256, **(ranks if family == "deepseek_v3" else {}), **foreign(family)}
    random_model(tiny_config(family, layers=2, **fields), seed=1).save_pretrained(tmp_path)
    said = estimate(str(tmp_path))
    for name, precision in (("int8", INT8), ("int4", INT4)):
        quantiser = Quantiser(on_kernels(load_kernel(1)), precision)
        checkpoint = Checkpoint.open(str(tmp_path), precision=precision)
        engine = SpanEngine.load(checkpoint, Span(1, 3), dtype="f32", quantiser=quantiser)
        assert sum(said.footprints[name].stages[1:3]) == pytest.approx(engine.weight_bytes, rel=0.1)
        assert sum(said.footprints[name].kv) == engine.kv_bytes_per_token()
