"""Weights as they are stored: what is kept in bf16 is half as large, and computes the bits of the same in f32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from node.native.checkpoint import NativeCheckpoint
from node.native.head import Head
from node.native.kernel import Kernel
from node.native.packed import Kind
from node.native.precision import F32, INT8
from node.native.weights import Loader
from protocol.candidates import Candidates, Want
from protocol.model import Span
from tests.support.models import random_model, tiny_config

Folders = dict[str, Path]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """One model by the dtype that it is stored in; the numbers are such as bf16 holds."""
    model: Any = random_model(tiny_config("llama", head_dim=32), seed=3).bfloat16()
    found = {}
    for name, dtype in (("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)):
        found[name] = tmp_path_factory.mktemp(name)
        model.to(dtype).save_pretrained(found[name])
    return found


def test_bf16_is_kept_and_the_rest_widened(stored: Folders, kernel: Kernel) -> None:
    """In f32 that is; in eight bits both are packed alike."""
    for name, kind in (("F32", Kind.F32), ("F16", Kind.F32), ("BF16", Kind.BF16)):
        loader = Loader(NativeCheckpoint.open(str(stored[name]), F32), kernel)
        block, head = loader.block(0), loader.head()
        matrices = (block.qkv, block.out, block.gate_up, block.down, head.matrix)
        assert [matrix and matrix.kind for matrix in matrices] == [kind] * 5
        packed = Loader(NativeCheckpoint.open(str(stored[name]), INT8), kernel).block(0)
        assert packed.down is not None
        assert packed.down.kind is Kind.INT8


def test_bf16_as_stored_computes_what_f32_computes(stored: Folders, kernel: Kernel) -> None:
    """To the bit."""
    checkpoints = [NativeCheckpoint.open(str(stored[name]), F32) for name in ("F32", "BF16")]
    loaders = [Loader(checkpoint, kernel) for checkpoint in checkpoints]
    states = np.random.default_rng(1).standard_normal((5, 64), np.float32)
    found = []
    for checkpoint, loader in zip(checkpoints, loaders, strict=True):
        head = Head(kernel, checkpoint.plan.shape, loader.head())
        found += head.candidates([(states, Want(top=0))])
    wide, kept = (answer.logits for answer in found if isinstance(answer, Candidates))
    assert np.array_equal(wide, kept)
    wide, kept = (loader.embedding().pick(np.arange(9, dtype=np.int32)) for loader in loaders)
    assert np.array_equal(wide, kept)


def test_the_memory_that_is_told_is_what_it_takes(stored: Folders, kernel: Kernel) -> None:
    """Before anything is loaded: a stage in bf16 is half of one in f32; all have the names that the files give."""
    checkpoints = {name: NativeCheckpoint.open(str(folder), F32) for name, folder in stored.items()}
    for name, share in (("F32", 1), ("F16", 1), ("BF16", 2)):
        block = Loader(checkpoints[name], kernel).block(0)
        norms = sum(norm.nbytes for norm in block.norms() if norm is not None)
        assert checkpoints[name].stage_bytes(1, "f32") == block.nbytes - norms
        assert checkpoints[name].stage_bytes(1, "f32") * share == checkpoints["F32"].stage_bytes(1, "f32")
        assert checkpoints[name].plan.stored == name
    embeddings = [checkpoints[name].stage_bytes(0, "f32") for name in ("F32", "F16", "BF16")]
    assert embeddings[0] == 2 * embeddings[1] == 2 * embeddings[2]
    digests = {checkpoint.stage_digests(Span(1, 2)) for checkpoint in checkpoints.values()}
    assert len(digests) == 3
