"""What the bytes of a GGUF tensor stand for, and that packing loses nothing of the types that are like ours."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from node.native.gguf.quants import TYPES, widen
from node.native.kernel import Kernel
from node.native.known_answer import numbers
from node.native.packed import Kind
from tests.node.native.test_quant import values

# Of what gguf 0.19.0 makes of 64 blocks of random bytes (0 for what is not finite): the first half of the SHA-256.
GOLDEN = {
    "F32": "e575764b485e115e",
    "F16": "e9cfc41b9f0dc1c8",
    "Q4_0": "50dc1637df90566f",
    "Q4_1": "5d75c054166180ae",
    "Q5_0": "43992a8f2b205752",
    "Q5_1": "e4668ef1cfb1bd95",
    "Q8_0": "b5a02f8681903498",
    "Q2_K": "95d37432b0d447e3",
    "Q3_K": "a746eed0f92a12ff",
    "Q4_K": "ed04b9216820c044",
    "Q5_K": "978bc23709a699f5",
    "Q6_K": "3d57dc3a170f964f",
    "IQ4_NL": "7316ebf36e3e64d3",
    "IQ4_XS": "b15fce075bcfd942",
    "BF16": "099b912bafa75310",
    "MXFP4": "0a0cbb46dd3fe5ba",
}


@pytest.mark.parametrize("kind", TYPES)
def test_every_float_is_the_one_that_ggml_makes(kind: str) -> None:
    """To the bit, of any bytes."""
    type_ = TYPES[kind]
    raw = np.random.default_rng(type_.number).integers(0, 256, (64, type_.size), dtype=np.uint8)
    values = widen(kind, raw)
    assert values.shape == (64, type_.values)
    finite = np.where(np.isfinite(values), values, 0).astype("<f4")
    assert hashlib.sha256(finite.tobytes()).hexdigest()[:16] == GOLDEN[kind]


@pytest.mark.parametrize(("kind", "into"), [("Q8_0", Kind.INT8), ("Q4_1", Kind.INT4)])
def test_packing_loses_nothing_of_what_is_like_ours(kind: str, into: Kind, kernel: Kernel) -> None:
    """The codes and scales that come out are those that went in: a file's groups are our groups."""
    weights = numbers(9, 32 * 64).reshape(-1, 32)
    if into is Kind.INT8:
        low, steps = np.zeros((64, 1), np.float16), np.abs(weights).max(1, keepdims=True) / np.float32(127)
    else:
        low = weights.min(1, keepdims=True).astype(np.float16)
        steps = (weights.max(1, keepdims=True) - weights.min(1, keepdims=True)) / np.float32(15)
    least = -127 if into is Kind.INT8 else 0
    codes = np.clip(np.round((weights - low) / steps), least, -least or 15).astype(np.int8).view(np.uint8)
    halves = [steps.astype("<f2").view(np.uint8)]
    if into is Kind.INT4:
        halves.append(low.astype("<f2").view(np.uint8))
        codes = codes[:, :16] | codes[:, 16:] << 4
    floats = widen(kind, np.concatenate((*halves, codes), axis=1).reshape(32, -1))
    assert floats.shape == (32, 64)
    assert np.allclose(values(kernel.pack(into, (32, 64), [floats])), floats, rtol=1e-6, atol=1e-7)
