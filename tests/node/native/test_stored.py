"""Weights as they are stored: what is kept in bf16 is half as large, and computes the bits of the same in f32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from node.compute.call import run_alone
from node.native.checkpoint import NativeCheckpoint
from node.native.engine import NativeEngine
from node.native.kernel import Kernel
from node.native.packed import Kind
from node.native.precision import F32, INT8
from node.native.weights import Loader
from protocol.candidates import Candidates, Want
from protocol.model import Span
from protocol.tensors import from_numpy
from tests.support.models import random_model, tiny_config

Folders = dict[str, Path]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """One model by the dtype that it is stored in; the numbers are such as bf16 holds."""
    model: Any = random_model(tiny_config("llama", head_dim=32), seed=3).bfloat16()
    found = {}
    # fp16 last: what is too small for it is lost.
    for name, dtype in (("F32", torch.float32), ("BF16", torch.bfloat16), ("F16", torch.float16)):
        found[name] = tmp_path_factory.mktemp(name)
        model.to(dtype).save_pretrained(found[name])
    return found


def test_bf16_is_kept_and_the_rest_widened(stored: Folders, kernel: Kernel) -> None:
    """In f32 that is; in eight bits both are packed alike."""
    for name, kind in (("F32", Kind.F32), ("F16", Kind.F32), ("BF16", Kind.BF16)):
        loader = Loader(NativeCheckpoint.open(str(stored[name]), F32), kernel)
        block, head = loader.block(0), loader.head()
        matrices = (block.qkv, block.out, block.gate_up, block.down, head.matrix)
        assert [matrix.kind for matrix in matrices if matrix is not None] == [kind] * 5
        packed = Loader(NativeCheckpoint.open(str(stored[name]), INT8), kernel).block(0)
        assert packed.down is not None
        assert packed.down.kind is Kind.INT8


def test_bf16_as_stored_computes_what_f32_computes(stored: Folders, kernel: Kernel) -> None:
    """To the bit."""
    tokens = from_numpy(np.arange(9, dtype=np.int32))
    found = []
    for name in ("F32", "BF16"):
        checkpoint = NativeCheckpoint.open(str(stored[name]), F32)
        engine = NativeEngine.load(checkpoint, Span(0, checkpoint.manifest.stages), kernel)
        found.append(run_alone(engine, engine.new_cache(engine.span), 0, tokens, Want(every=True, top=0)))
    wide, kept = found
    assert isinstance(wide, Candidates)
    assert isinstance(kept, Candidates)
    assert np.array_equal(wide.ids, kept.ids)
    assert np.array_equal(wide.logits, kept.logits)


def test_the_memory_that_is_told_is_what_it_takes(stored: Folders, kernel: Kernel) -> None:
    """Before anything is loaded: a stage in bf16 is half of one in f32; all have the names that the files give."""
    checkpoints = {name: NativeCheckpoint.open(str(folder), F32) for name, folder in stored.items()}
    for name, share in (("F32", 1), ("F16", 1), ("BF16", 2)):
        block = Loader(checkpoints[name], kernel).block(0)
        norms = sum(norm.nbytes for norm in block.norms() if norm is not None)
        assert checkpoints[name].stage_bytes(1, "f32") == block.nbytes
        assert (block.nbytes - norms) * share == checkpoints["F32"].stage_bytes(1, "f32") - norms
        assert checkpoints[name].plan.stored == name
    embeddings = [checkpoints[name].stage_bytes(0, "f32") for name in ("F32", "F16", "BF16")]
    assert embeddings[0] == 2 * embeddings[1] == 2 * embeddings[2]
    digests = {checkpoint.stage_digests(Span(1, 2)) for checkpoint in checkpoints.values()}
    assert len(digests) == 3
