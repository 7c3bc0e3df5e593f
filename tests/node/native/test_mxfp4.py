"""gpt-oss as it is published: experts in four-bit floats, with the bits of the same numbers in plain floats."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from node.compute.call import run_alone
from node.engine.checkpoint import Checkpoint
from node.engine.span import SpanEngine
from node.native.checkpoint import NativeCheckpoint
from node.native.engine import NativeEngine
from node.native.kernel import Kernel
from node.native.packed import Kind
from node.native.precision import F32, INT8, PRECISIONS
from node.native.weights import Loader
from protocol.candidates import Candidates, Want
from protocol.errors import BadCheckpoint
from protocol.model import Span
from protocol.tensors import from_numpy
from tests.support.models import make_model

Tensors = dict[str, NDArray[Any]]


def packed(shape: tuple[int, ...], seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Random four-bit floats and exponents of a matrix [experts, outs, ins]."""
    rng = np.random.default_rng(seed)
    experts, outs, ins = shape
    blocks = rng.integers(0, 256, (experts, outs, ins // 32, 16), np.uint8)
    return blocks, rng.integers(121, 125, (experts, outs, ins // 32), np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One model twice: experts in plain floats, which are those that transformers makes of the others' bytes."""
    plain = make_model("gpt_oss", tmp_path_factory.mktemp("plain"), seed=3, layers=2, head_dim=32)
    published = Path(shutil.copytree(plain, tmp_path_factory.mktemp("packed") / "model"))
    floats, bytes_ = (load_file(folder / "model.safetensors") for folder in (plain, published))
    for seed, name in enumerate(sorted(floats)):
        if not name.endswith(("gate_up_proj", "down_proj")):
            continue
        experts, ins, outs = floats[name].shape
        blocks, exponents = packed((experts, outs, ins), seed)
        wide = convert_moe_packed_tensors(
            torch.from_numpy(blocks), torch.from_numpy(exponents), dtype=torch.float32
        )
        floats[name] = np.ascontiguousarray(wide.numpy())
        del bytes_[name]
        bytes_[f"{name}_blocks"], bytes_[f"{name}_scales"] = blocks, exponents
    save_file(floats, plain / "model.safetensors", {"format": "pt"})
    save_file(bytes_, published / "model.safetensors", {"format": "pt"})
    config = json.loads((published / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (published / "config.json").write_text(json.dumps(config))
    return plain, published


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_bits_are_those_of_plain_floats(
    precision: str, folders: tuple[Path, Path], kernel: Kernel
) -> None:
    """In every precision."""
    found = []
    for folder in folders:
        checkpoint = NativeCheckpoint.open(str(folder), PRECISIONS[precision])
        whole = Span(0, checkpoint.manifest.stages)
        engine = NativeEngine.load(checkpoint, whole, kernel)
        ids = from_numpy(np.arange(3, 40, dtype=np.int32))
        answer = run_alone(engine, engine.new_cache(whole), 0, ids, Want(top=0, every=True))
        assert isinstance(answer, Candidates)
        found.append(answer.logits)
    assert np.array_equal(found[0], found[1])


def test_torch_reads_the_same_floats(folders: tuple[Path, Path]) -> None:
    """As a graphics card would have them: experts with their columns as rows."""
    found = []
    for folder in folders:
        engine = SpanEngine.load(Checkpoint.open(str(folder)), Span(0, 4), dtype="f32")
        ids = from_numpy(np.arange(3, 40, dtype=np.int32))
        answer = run_alone(engine, engine.new_cache(engine.span), 0, ids, Want(top=0, every=True))
        assert isinstance(answer, Candidates)
        found.append(answer.logits)
    assert np.array_equal(found[0], found[1])


def test_f32_keeps_them_in_half_of_that(folders: tuple[Path, Path], kernel: Kernel) -> None:
    """bf16 holds them all; that is told before anything is loaded."""
    checkpoint = NativeCheckpoint.open(str(folders[1]), F32)
    opening, closing = Loader(checkpoint, kernel).block(0).experts[1]
    assert (opening.kind, closing.kind) == (Kind.BF16, Kind.BF16)


@pytest.mark.parametrize("precision", [F32, INT8], ids=lambda precision: precision.name)
def test_an_exponent_that_is_no_number_is_refused(
    precision: Any, folders: tuple[Path, Path], kernel: Kernel, tmp_path: Path
) -> None:
    """Under the name of the matrix, which no tensor has."""
    folder = Path(shutil.copytree(folders[1], tmp_path / "copy"))
    tensors: Tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj"
    tensors[f"{name}_scales"] = tensors[f"{name}_scales"].copy()
    tensors[f"{name}_scales"][2, 5, 0] = 255
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    checkpoint = NativeCheckpoint.open(str(folder), precision)
    with pytest.raises(BadCheckpoint, match=f"^{name} holds NaN or infinite values$"):
        NativeEngine.load(checkpoint, Span(2, 3), kernel)


def test_bytes_where_floats_belong_are_refused(
    folders: tuple[Path, Path], tmp_path: Path, kernel: Kernel
) -> None:
    """And floats where bytes belong."""
    for name, dtype, said in (
        ("model.layers.0.mlp.experts.down_proj_scales", np.float32, "where U8 belongs"),
        ("model.norm.weight", np.uint8, "which is not read"),
    ):
        folder = Path(shutil.copytree(folders[1], tmp_path / name))
        tensors: Tensors = load_file(folder / "model.safetensors")
        tensors[name] = tensors[name].astype(dtype)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(BadCheckpoint, match=said):
            NativeCheckpoint.open(str(folder), F32).require(Span(0, 4))
