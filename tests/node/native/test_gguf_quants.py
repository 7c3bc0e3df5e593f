"""What the bytes of a GGUF tensor stand for, and that packing loses nothing of the types that are like ours."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from node.native.gguf.quants import FOURS, TYPES, fours, widen
from node.native.kernel import Kernel
from node.native.known_answer import numbers
from node.native.packed import Kind
from protocol.errors import BadCheckpoint
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


@pytest.mark.parametrize("kind", FOURS)
def test_four_bits_stay_the_four_bits_they_were(kind: str, kernel: Kernel) -> None:
    """Also where a group does not use all of its codes, and in a matrix of no whole tiles."""
    type_ = TYPES[kind]
    raw = np.random.default_rng(1).integers(0, 256, (40, 512 // type_.values, type_.size), dtype=np.uint8)
    raw[..., :4].view("<f2")[:] = [0.013, -0.2]  # step and minimum, or a step and the first codes
    rows = raw.reshape(40, -1)
    packed = kernel.pack_coded(Kind.INT4, (40, 512), [fours(kind, rows[:32]), fours(kind, rows[32:])])
    found = values(packed)
    expected = widen(kind, rows)
    # Q4_K's steps have more bits than ours.
    assert np.allclose(
        found[:40], expected, rtol=0, atol=np.abs(expected).max() * 2**-11 if kind == "Q4_K" else 1e-6
    )
    assert not found[40:].any()


def test_groups_of_four_bits_are_laid_out_as_the_kernel_lays_them_out(kernel: Kernel) -> None:
    """Byte for byte, where both find the same codes."""
    weights = np.tile(np.arange(16, dtype=np.float32), (16, 4)) * 0.5 - 3
    packed = kernel.pack(Kind.INT4, (16, 64), [weights])
    codes = np.tile(np.arange(16, dtype=np.uint8), (16, 4)).reshape(16, 2, 32)
    steps = np.full((16, 2), 0.5, np.float32)
    grouped = kernel.pack_coded(Kind.INT4, (16, 64), [(codes, steps, -6 * steps)])
    assert np.array_equal(packed.codes, grouped.codes)
    assert np.array_equal(packed.scales, grouped.scales)


def test_a_step_that_is_no_number_is_refused(kernel: Kernel) -> None:
    """Infinite, or too large for sixteen bits once it is multiplied."""
    for step in (np.inf, np.nan, 9000.0):
        raw = np.zeros((16, 18), np.uint8)
        raw[3, :2] = np.array([step], "<f2").view(np.uint8)
        with pytest.raises(BadCheckpoint, match="not finite, or too large for int4"):
            kernel.pack_coded(Kind.INT4, (16, 32), [fours("Q4_0", raw)])
