"""Tensors and candidates: views where they can be, checked where they must be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol import limits
from protocol.candidates import Candidates
from protocol.codec import LENGTH_BYTES, decode, encode
from protocol.errors import LocalProtocolError, Malformed, RemoteProtocolError, TooLarge
from protocol.messages import Output, Step
from protocol.tensors import ITEM_BYTES, Tensor, check_finite, concat_rows, from_numpy, parse_tensor
from tests.protocol.samples import MESSAGES, candidates, same
from tests.protocol.strategies import tensors

FLOATS = ("f32", "f16", "bf16")


def bytes_of(array: NDArray[np.float32], dtype: str) -> Tensor:
    """fp32 values as a tensor of any float dtype; bf16 by cutting."""
    if dtype == "bf16":
        return Tensor("bf16", array.shape, (array.view("<u4") >> 16).astype("<u2").tobytes())
    with np.errstate(over="ignore"):
        return from_numpy(array.astype({"f32": np.float32, "f16": np.float16}[dtype]))


def test_arrays_are_views_of_the_tensors_bytes() -> None:
    """numpy() copies nothing, and what a peer sent cannot be written to."""
    message = decode(encode(MESSAGES["step"])[LENGTH_BYTES:])
    assert isinstance(message, Step)
    array = message.inputs.numpy()
    assert np.shares_memory(array, np.frombuffer(message.inputs.data, np.uint8))
    assert not array.flags.writeable
    assert array.tolist() == [5, 6]


def test_from_numpy_is_a_view() -> None:
    """What is sent is not copied before it is framed; an array that is not contiguous must be."""
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensor = from_numpy(array)
    assert np.shares_memory(array, tensor.numpy())
    assert np.array_equal(from_numpy(array.T).numpy(), array.T)


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.uint8, np.bool_, np.dtype(">f4"), np.complex64])
def test_dtypes_that_do_not_travel(dtype: Any) -> None:
    """Our own bug, found before anything is sent."""
    with pytest.raises(LocalProtocolError):
        from_numpy(np.zeros(2, dtype))


@given(st.binary(min_size=2, max_size=40).filter(lambda b: len(b) % 2 == 0))
def test_bf16_widens_exactly(data: bytes) -> None:
    """A bf16 is the upper half of the fp32 that it becomes."""
    wide = Tensor("bf16", (len(data) // 2,), data).numpy()
    assert wide.dtype == np.float32
    assert (wide.view(np.uint32) >> 16).astype("<u2").tobytes() == data
    assert not (wide.view(np.uint32) & 0xFFFF).any()


@given(tensors(), st.data())
def test_row_slices(tensor: Tensor, data: st.DataObject) -> None:
    """A slice of rows is a view, says the same as numpy's slice, and slices put together are the whole."""
    cut = data.draw(st.integers(0, tensor.rows))
    head, tail = tensor.row_slice(0, cut), tensor.row_slice(cut, tensor.rows)
    assert (head.rows, tail.rows) == (cut, tensor.rows - cut)
    assert np.array_equal(head.numpy(), tensor.numpy()[:cut], equal_nan=tensor.dtype != "i32")
    assert same(concat_rows([head, tail]), tensor)
    if len(head.data):
        assert np.shares_memory(np.frombuffer(head.data, np.uint8), np.frombuffer(tensor.data, np.uint8))


@given(tensors(), st.integers(0, 5), st.integers(0, 5))
def test_slices_of_slices(tensor: Tensor, a: int, b: int) -> None:
    """Slicing again counts from the slice."""
    start, stop = sorted((min(a, tensor.rows), min(b, tensor.rows)))
    outer = tensor.row_slice(start, tensor.rows)
    assert same(outer.row_slice(0, stop - start), tensor.row_slice(start, stop))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.sampled_from(sorted(ITEM_BYTES)))
def test_joining_rows(rows: list[int], dtype: str) -> None:
    """Rows come in order; joining in any grouping gives the same; one part is not copied."""
    item = ITEM_BYTES[dtype]
    parts = [Tensor(dtype, (n, 3), bytes([i]) * (n * 3 * item)) for i, n in enumerate(rows)]
    joined = concat_rows(parts)
    assert joined.shape == (sum(rows), 3)
    assert bytes(joined.data) == b"".join(bytes(p.data) for p in parts)
    assert same(concat_rows([concat_rows(parts[:1]), *parts[1:]]), joined)
    assert concat_rows(parts[:1]) is parts[0]


@pytest.mark.parametrize(
    "other",
    [Tensor("f16", (1, 3), bytes(6)), Tensor("f32", (1, 2), bytes(8)), Tensor("f32", (3,), bytes(12))],
)
def test_rows_of_different_kinds(other: Tensor) -> None:
    """They are not joined."""
    with pytest.raises(LocalProtocolError):
        concat_rows([Tensor("f32", (1, 3), bytes(12)), other])


@pytest.mark.parametrize("dtype", sorted(ITEM_BYTES))
@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (0, 0, 0), (1 << 26, 0, 1 << 26)])
def test_empty_tensors(dtype: str, shape: tuple[int, ...]) -> None:
    """No bytes are a tensor like any other."""
    tensor = parse_tensor(Tensor(dtype, shape, b"").pack())
    assert tensor.numpy().shape == shape
    assert tensor.rows == shape[0]
    assert tensor.row_slice(0, 0).numpy().size == 0
    check_finite(tensor)
    assert concat_rows([tensor.row_slice(0, 0), tensor]).shape == shape


def test_an_empty_array_travels() -> None:
    """As no ids asked for."""
    tensor = from_numpy(np.zeros((2, 0), np.float32))
    assert (tensor.shape, len(tensor.data)) == ((2, 0), 0)


def test_a_tensor_prints_without_its_contents() -> None:
    """Hidden states say what the user wrote; logs do not."""
    assert repr(Tensor("f32", (1, 2), b"12345678")) == "Tensor(f32, [1, 2])"


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(dtype: str, bad: float) -> None:
    """One of them anywhere among the hidden states is Malformed."""
    for place in range(6):
        array = np.linspace(-1.0, 1.0, 6, dtype=np.float32)
        array[place] = bad
        with pytest.raises(Malformed):
            check_finite(bytes_of(array.reshape(2, 3), dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_values_that_are_finite(dtype: str) -> None:
    """Zeros of both signs, subnormal and largest numbers are."""
    largest = {"f32": 3.4e38, "f16": 65504.0, "bf16": 3.38e38}[dtype]
    smallest = {"f32": 1e-45, "f16": 6e-8, "bf16": 1e-40}[dtype]
    array = np.array([0.0, -0.0, smallest, -smallest, largest, -largest], np.float32)
    check_finite(bytes_of(array, dtype))


@given(st.sampled_from(FLOATS), st.data())
def test_check_finite_agrees_with_numpy(dtype: str, data: st.DataObject) -> None:
    """For any bits."""
    size = ITEM_BYTES[dtype] * 4
    tensor = Tensor(dtype, (4,), data.draw(st.binary(min_size=size, max_size=size)))
    if np.isfinite(tensor.numpy()).all():
        check_finite(tensor)
    else:
        with pytest.raises(Malformed):
            check_finite(tensor)


def test_token_ids_are_finite() -> None:
    """Integers have no NaN, whatever their bits are as floats."""
    check_finite(from_numpy(np.array([-1, 0x7F800000], np.int32)))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"dtype": "f64"}, Malformed),
        ({"dtype": ["f32"]}, Malformed),
        ({"codec": "zstd"}, Malformed),
        ({"codec": None}, Malformed),
        ({"shape": []}, Malformed),
        ({"shape": [1, 1, 1, 1]}, Malformed),
        ({"shape": [True]}, Malformed),
        ({"shape": [-1]}, Malformed),
        ({"shape": [1.0]}, Malformed),
        ({"shape": "1"}, Malformed),
        ({"shape": [3]}, Malformed),
        ({"shape": [1 << 25]}, TooLarge),
        ({"shape": [1 << 27]}, Malformed),
        ({"data": bytes(7)}, Malformed),
        ({"data": bytes(9)}, Malformed),
        ({"data": "12345678"}, Malformed),
        ({"more": 1}, Malformed),
    ],
)
def test_tensors_that_are_none(change: dict[str, Any], error: type[RemoteProtocolError]) -> None:
    """Each part of a tensor's map is checked."""
    good = {"dtype": "f32", "shape": [2], "codec": "raw", "data": bytes(8)}
    assert parse_tensor(good).rows == 2
    with pytest.raises(error):
        parse_tensor(good | change)


def parsed(**changes: Any) -> Candidates:
    """The sample's candidates with other arrays, after a trip over the wire."""
    arrays = {name: getattr(candidates(), name) for name in ("ids", "logits", "lse", "asked")} | changes
    message = decode(encode(Output(1, 0, candidates=Candidates(**arrays)))[LENGTH_BYTES:])
    assert isinstance(message, Output)
    assert message.candidates is not None
    return message.candidates


@pytest.mark.parametrize(
    "changes",
    [
        {"ids": np.zeros((2, 2), np.float32)},
        {"logits": np.zeros((2, 2), np.int32)},
        {"lse": np.zeros(2, np.float16)},
        {"asked": np.zeros((2, 1), np.int32)},
        {"ids": np.zeros((2, 3), np.int32)},
        {"ids": np.zeros(2, np.int32), "logits": np.zeros(2, np.float32)},
        {"lse": np.zeros(3, np.float32)},
        {"lse": np.zeros((2, 1), np.float32)},
        {"asked": np.zeros((3, 1), np.float32)},
        {"asked": np.zeros(2, np.float32)},
        {"states": np.zeros((3, 4), np.float32)},
        {"states": np.zeros(2, np.float32)},
        {"states": np.zeros((2, 4), np.int32)},
        {"states": np.full((2, 4), np.inf, np.float32)},
        {"states": np.full((2, 4), np.nan, np.float32)},
        {"ids": np.array([[0, -1], [0, 1]], np.int32)},
        {"logits": np.array([[1, np.nan], [1, 0]], np.float32)},
        {"lse": np.array([np.inf, 0], np.float32)},
        {"lse": np.array([-np.inf, 0], np.float32)},
        {"lse": np.array([np.nan, 0], np.float32)},
    ],
)
def test_candidates_that_are_none(changes: dict[str, Any]) -> None:
    """Dtypes, shapes and values that no honest head returns."""
    with pytest.raises(Malformed):
        parsed(**changes)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["logits", "asked"])
def test_regression_no_logit_is_nan_or_plus_infinity(name: str, bad: float) -> None:
    """Also among the logits asked for by id: a sampler would make NaN of every probability."""
    array = getattr(candidates(), name).copy()
    array[0, 0] = bad
    with pytest.raises(Malformed):
        parsed(**{name: array})


def test_a_logit_may_be_minus_infinity() -> None:
    """A model may rule a token out."""
    logits = np.array([[1.0, -np.inf], [1.0, 0.0]], np.float32)
    assert np.array_equal(parsed(logits=logits).logits, logits)


def test_the_frame_limit_bounds_a_tensor() -> None:
    """A shape that needs more than any frame is refused by its product."""
    with pytest.raises(TooLarge):
        parse_tensor({"dtype": "f16", "shape": [limits.FRAME_BYTES], "codec": "raw", "data": b""})
