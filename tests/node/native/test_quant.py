"""Weights in eight and four bits: what comes back, what is refused, and that every object packs the same bytes."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.native.kernel import Kernel
from node.native.known_answer import numbers
from node.native.packed import Kind, Matrix
from protocol.errors import BadCheckpoint
from tests.node.native.cases import digest
from tests.node.native.oracle import unpacked


def values(matrix: Matrix) -> np.ndarray:
    """The weights as they count."""
    if matrix.kind in (Kind.F32, Kind.BF16):
        return np.asarray(unpacked(matrix))
    codes, scales, minima = unpacked(matrix)
    wide = codes * scales[..., None].astype(np.float64)
    if minima is not None:
        wide += minima[..., None]
    return np.asarray(wide.reshape(len(codes), -1))


@given(st.integers(0, 1000), st.sampled_from([1e-3, 1.0, 50.0]))
def test_a_weight_comes_back_within_half_a_step(kernel: Kernel, seed: int, scale: float) -> None:
    """A step is a 127th of the group's greatest, or a 15th of its range, give or take what fp16 rounds."""
    weights = numbers(seed, 32 * 64, scale).reshape(32, 64)
    groups = weights.reshape(32, 2, 32)
    for kind, step in (
        (Kind.INT8, np.abs(groups).max(2) / 127),
        (Kind.INT4, (groups.max(2) - groups.min(2)) / 15),
    ):
        error = np.abs(values(kernel.pack(kind, (32, 64), [weights])) - weights).reshape(32, 2, 32)
        narrowed = 1.0 if kind == Kind.INT8 else 2.5  # INT4 gives up an end of the range where that pays
        assert (error <= (narrowed * 0.51 + 0.01) * step[..., None] + 1e-6).all()


def test_plain_weights_come_back_as_they_were(kernel: Kernel) -> None:
    """f32 exactly, bf16 to the nearest."""
    weights = numbers(3, 48 * 32).reshape(48, 32)
    assert np.array_equal(values(kernel.pack(Kind.F32, (48, 32), [weights])), weights)
    error = np.abs(values(kernel.pack(Kind.BF16, (48, 32), [weights])) - weights)
    assert (error <= np.abs(weights) * 2**-8).all()


def test_pieces_and_padding_do_not_matter(kernel: Kernel) -> None:
    """A matrix in two pieces whose rows fill no tile is that of one piece, with rows of zeros after it."""
    weights = numbers(4, 37 * 64).reshape(37, 64)
    for kind in Kind:
        one = kernel.pack(kind, (37, 64), [weights])
        two = kernel.pack(kind, (37, 64), [weights[:32], weights[32:]])
        assert digest(one.codes, one.scales) == digest(two.codes, two.scales)
        assert one.padded == 48
        assert not values(one)[37:].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", list(Kind))
def test_a_weight_that_is_no_number_is_refused(kernel: Kernel, kind: Kind, bad: float) -> None:
    """Wherever it stands in its group."""
    for at in (0, 17, 63):
        weights = numbers(5, 16 * 64).reshape(16, 64)
        weights[9, at] = bad
        with pytest.raises(BadCheckpoint, match="not finite"):
            kernel.pack(kind, (16, 64), [weights])


def test_a_weight_that_no_scale_reaches_is_refused(kernel: Kernel) -> None:
    """fp16 ends at 65,504."""
    weights = numbers(6, 16 * 32).reshape(16, 32)
    weights[0, 0] = 1e8
    for kind in (Kind.INT8, Kind.INT4):
        with pytest.raises(BadCheckpoint, match="too large"):
            kernel.pack(kind, (16, 32), [weights])


def test_groups_of_zeros_and_of_one_value(kernel: Kernel) -> None:
    """No division by nothing: they come back."""
    weights = np.zeros((16, 64), np.float32)
    weights[1], weights[2] = 0.25, -3.0
    for kind in (Kind.INT8, Kind.INT4):
        back = values(kernel.pack(kind, (16, 64), [weights]))
        assert np.allclose(back, weights, rtol=1e-3, atol=0)


def test_every_object_packs_the_same_bytes(isas: list[str], kernel_for: Callable[[str, int], Kernel]) -> None:
    """Also of numbers that fp16 can hardly hold."""
    weights = (
        numbers(8, 64 * 96).reshape(64, 96)
        * np.float32(10.0) ** np.arange(-40, 5, dtype=np.float32).repeat(3)[:96]
    )
    for kind in Kind:
        packed = [kernel_for(isa, 2).pack(kind, (64, 96), [weights]) for isa in isas]
        assert len({digest(matrix.codes, matrix.scales) for matrix in packed}) == 1
