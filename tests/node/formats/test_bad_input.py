"""What is wrong with a quantised checkpoint is said in one line, which names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from node.backend import open_backend
from node.config import NodeConfig
from node.engine.checkpoint import Checkpoint
from node.engine.span import SpanEngine
from node.formats.methods import METHODS as READ
from node.formats.methods import read_scheme
from node.native.checkpoint import NativeCheckpoint
from node.native.engine import NativeEngine
from node.native.load import load_kernel
from node.native.precision import F32, INT4, PRECISIONS
from protocol.errors import BadCheckpoint, ConfigError, UnsupportedModel
from protocol.model import Span
from tests.support.models import make_model
from tests.support.quantised import METHODS, quantise

Copy = Callable[[str], Path]
Tensors = dict[str, torch.Tensor]
LAYER = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is quantised."""
    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256}
    return make_model("llama", tmp_path_factory.mktemp("llama") / "plain", seed=3, layers=1, **sizes)


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Copy:
    """A quantised checkpoint to be spoiled."""
    return lambda name: quantise(plain, tmp_path, METHODS[name])[0]


def spoil(folder: Path, change: Callable[[Tensors], object]) -> None:
    """Change tensors of the only file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def load(folder: Path, precision: str = "f32") -> None:
    """The only block, by the kernels."""
    checkpoint = NativeCheckpoint.open(str(folder), PRECISIONS[precision])
    NativeEngine.load(checkpoint, Span(1, 2), load_kernel(1))


def without(*names: str) -> Callable[[Tensors], object]:
    """Tensors of the layer taken out."""
    return lambda tensors: [tensors.pop(f"{LAYER}{name}") for name in names]


def shorter(name: str) -> Callable[[Tensors], object]:
    """One without its last row."""
    full = f"{LAYER}{name}"
    return lambda tensors: tensors.update({full: tensors[full][:-1].clone()})


def instead(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], object]:
    """One in the place of another."""
    full = f"{LAYER}{name}"
    return lambda tensors: tensors.update({full: make(tensors[full])})


def put(tensor: torch.Tensor, value: float) -> torch.Tensor:
    """One number changed."""
    changed = tensor.clone()
    changed.view(-1)[3] = value
    return changed


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("gptq", without(".scales"), "no scales of"),
        ("gptq", without(".qweight"), "no qweight of"),
        ("gptq", shorter(".qweight"), r"g_idx has the shape \[256\] instead of \[248\]"),
        ("gptq", shorter(".scales"), "columns do not make"),
        ("gptq", shorter(".qzeros"), r"qzeros has the shape \[7, 16\] instead of \[8, 16\]"),
        ("gptq", shorter(".g_idx"), r"g_idx has the shape \[255\] instead of \[256\]"),
        ("gptq", instead(".g_idx", lambda t: put(t, 99)), "names groups beyond the 8"),
        ("gptq", instead(".g_idx", lambda t: put(t, -1)), "names groups beyond the 8"),
        ("gptq", instead(".qweight", torch.Tensor.long), "stored as I64, where I32 or U32 belongs"),
        ("gptq", instead(".scales", lambda t: put(t, float("nan"))), "NaN or infinite"),
        ("gptq", instead(".scales", lambda t: put(t, float("inf"))), "NaN or infinite"),
        ("gptq", instead(".qweight", lambda t: t[:0].clone()), "which is no matrix"),
        ("gptq", instead(".scales", lambda t: t[:0].clone()), "which is no matrix"),
        ("gptq", instead(".scales", lambda t: t[0].clone()), "which is no matrix"),
        ("awq", instead(".qweight", lambda t: t[:, :0].clone()), "which is no matrix"),
        ("fp8, blocks", instead(".weight", lambda t: t[None].repeat(2, 1, 1)), "not one for each of 2"),
        ("whole numbers", instead(".weight", lambda t: t[:0].clone()), "which is no matrix"),
        ("bitsandbytes, 8 bits", instead(".weight", lambda t: t[:, :0].clone()), "which is no matrix"),
        ("awq", without(".qzeros"), "no qzeros of"),
        ("awq", shorter(".qweight"), "columns do not make"),
        ("fp8, blocks", without(".weight_scale_inv"), "stored as F8_E4M3, and has no scale"),
        ("fp8, blocks", without(".weight"), "no weight of"),
        ("fp8, blocks", shorter(".weight_scale_inv"), "does not fit 128 x 256 weights"),
        ("fp8, blocks", instead(".weight_scale_inv", lambda t: put(t, float("nan"))), "NaN or infinite"),
        ("fp8, blocks", instead(".weight", lambda t: t.float()), "stored as F32, where F8_E4M3"),
        ("fp8, one scale", instead(".weight", lambda t: t[0].clone()), "which is no matrix"),
        ("packed, 4 bits", without(".weight_scale"), "no scale of"),
        ("packed, 4 bits", without(".weight_packed"), "is missing"),
        ("packed, 4 bits", without(".weight_shape"), "has no weight_shape"),
        ("packed, 4 bits", instead(".weight_shape", lambda t: t * -1), "which is not that of -128 x -256"),
        ("packed, 4 bits", instead(".weight_shape", lambda t: put(t.repeat(2), 1)), "has the shape"),
        ("packed, 4 bits", shorter(".weight_packed"), "which is not that of 128 x 256 weights"),
        ("packed, 4 bits, zeros", shorter(".weight_zero_point"), "zero_point has the shape"),
        ("whole numbers", instead(".weight", lambda t: t.to(torch.int16)), "stored as I16"),
        ("whole numbers", shorter(".weight_scale"), "does not fit 128 x 256 weights"),
        ("nvfp4", shorter(".weight_scale"), "does not fit 128 x 256 weights"),
        ("nvfp4", instead(".weight_global_scale", lambda t: t * 0), "NaN or infinite"),
        ("nf4", without(".weight.absmax"), "no absmax of"),
        ("nf4", shorter(".weight.absmax"), "absmax has the shape"),
        ("nf4", shorter(".weight"), "has 16383 bytes"),
        ("nf4", shorter(".weight.quant_state.bitsandbytes__nf4"), "no state of bitsandbytes"),
        ("nf4, nested, kept as bf16", without(".weight.nested_absmax"), "has no nested_absmax"),
        ("nf4, nested, kept as bf16", instead(".weight.absmax", lambda t: t.float()), "where U8 belongs"),
        ("bitsandbytes, 8 bits", without(".SCB"), "no scales of"),
        ("bitsandbytes, 8 bits", instead(".weight_format", lambda t: t + 1), "layout of other than rows"),
        ("bitsandbytes, 8 bits", shorter(".weight"), "SCB has the shape"),
    ],
)
def test_what_is_wrong_with_a_tensor_is_said(
    name: str, change: Callable[[Tensors], object], said: str, copy: Copy
) -> None:
    """By the kernels in any precision, and by torch; under the name of the weight or of what is wrong."""
    folder = copy(name)
    spoil(folder, change)
    loads: list[Callable[[], object]] = [
        lambda: load(folder),
        lambda: load(folder, "int8"),
        lambda: load(folder, "int4"),
        lambda: SpanEngine.load(Checkpoint.open(str(folder)), Span(1, 2), dtype="f32"),
    ]
    for attempt in loads:
        with pytest.raises(BadCheckpoint, match=said) as caught:
            attempt()
        assert LAYER in str(caught.value)
        assert "\n" not in str(caught.value)


def state(**changed: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """bitsandbytes' JSON with something changed."""

    def make(given: torch.Tensor) -> torch.Tensor:
        fields = {**json.loads(bytes(given.tolist())), **changed}
        return torch.tensor(list(json.dumps(fields).encode()), dtype=torch.uint8)

    return make


@pytest.mark.parametrize(
    "make",
    [
        state(shape=[128]),
        state(shape=[1 << 40, 256]),
        state(shape=[128.0, 256]),
        state(shape=[128, 255]),
        state(shape="ab"),
        state(blocksize=0),
        state(blocksize=True),
        state(nested_blocksize=-1),
        state(nested_offset=float("inf")),
        state(nested_offset="x"),
        state(more="x" * 5000),
        lambda given: torch.tensor(list(b"[" * 4000), dtype=torch.uint8),
        lambda given: torch.tensor(list(b"7"), dtype=torch.uint8),
    ],
)
def test_a_state_that_makes_no_sense_is_refused(
    make: Callable[[torch.Tensor], torch.Tensor], copy: Copy
) -> None:
    """Of bitsandbytes, which keeps JSON in a tensor."""
    folder = copy("nf4")
    spoil(folder, instead(".weight.quant_state.bitsandbytes__nf4", make))
    with pytest.raises(BadCheckpoint, match="is no state of bitsandbytes"):
        NativeCheckpoint.open(str(folder), F32).require(Span(1, 2))


GROUP: dict[str, Any] = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "group_size": 32}}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("gptq", "quantization_config 'gptq'"),
        ({"quant_method": "hqq"}, "quantised by 'hqq'; what is read is fp8, "),
        ({"quant_method": ["gptq"]}, "quantised by"),
        ({"bits": 4}, "quantised by ''"),
        ({"quant_method": "gptq", "bits": 3}, "3 bits"),
        ({"quant_method": "gptq", "bits": "4"}, "4 bits"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size 0"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*": {"bits": 8}}}, "dynamic"),
        ({"quant_method": "gptq", "bits": 4, "pack_dtype": "int8"}, "pack_dtype 'int8'"),
        ({"quant_method": "gptq", "bits": 4, "new_trick": 1}, "new_trick, which is not read"),
        ({"quant_method": "awq", "bits": 8}, "8 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version 'gemv'"),
        ({"quant_method": "awq", "bits": 4, "modules_to_not_convert": "x"}, "modules_to_not_convert x"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, r"blocks of \[0, 128\]"),
        ({"quant_method": "fp8", "fmt": "e3m4"}, "fmt 'e3m4'"),
        ({"quant_method": "fp8", "ignored_layers": [1]}, "ignored_layers"),
        ({"quant_method": "bitsandbytes"}, "neither load_in_4bit nor load_in_8bit"),
        ({"load_in_8bit": True, "load_in_4bit": True}, "or both"),
        ({"quant_method": "mxfp4", "new_trick": 1}, "new_trick"),
        ({"quant_method": "compressed-tensors"}, "no config_groups"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": ["Linear"]}}, "config_groups"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"a": {**GROUP, "weights": None}}},
            "weights",
        ),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"a": GROUP}, "format": "marlin-24"},
            "format 'marlin-24'",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": GROUP},
                "transform_config": {"a": 1},
            },
            "transform_config",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": GROUP},
                "sparsity_config": {"format": "sparse-24"},
            },
            "sparse weights",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": {**GROUP, "weights": {"num_bits": 3}}},
            },
            "3 bits of type int",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": {**GROUP, "weights": {"dynamic": True}}},
            },
            "dynamic True",
        ),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": {**GROUP, "trick": 1}}}, "trick"),
    ],
)
def test_what_is_not_known_of_a_method_is_named(config: Any, said: str) -> None:
    """Nothing is guessed; fields that nobody knows are refused."""
    with pytest.raises(UnsupportedModel, match=said):
        read_scheme({"quantization_config": config})


def test_who_serves_it_is_told_in_one_line(copy: Copy) -> None:
    """Whichever engine is asked."""
    folder = copy("gptq")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["quantization_config"]["bits"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"cannot be served by the native kernels: .* 3 bits"):
        open_backend(NodeConfig(str(folder), engine="native"))
    with pytest.raises(UnsupportedModel, match=r"^quantised is not read: quantization_config has 3 bits"):
        open_backend(NodeConfig(str(folder)))


def test_every_method_is_tried() -> None:
    """The table of methods, and what tests write in them."""
    written = {method.config["quant_method"] for method in METHODS.values()}
    assert written | {"mxfp4"} == set(READ)


def test_a_step_too_small_for_sixteen_bits_is_no_step(copy: Copy) -> None:
    """And one too large is said."""
    folder = copy("whole numbers")
    spoil(folder, instead(".weight_scale", lambda scales: scales * 1e8))
    with pytest.raises(BadCheckpoint, match="too large for int8"):
        load(folder, "int8")
    assert NativeCheckpoint.open(str(folder), INT4).has(1)
