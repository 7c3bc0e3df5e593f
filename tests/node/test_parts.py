"""The small pure parts: budget, configuration, casts, means, allowances, kept outputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.compute.casting import cast_hidden
from node.compute.interfaces import StepResult
from node.compute.kv import ENTRY_BYTES, MOST_DEFAULT_TOKENS, buffer_bytes, default_kv_tokens, token_bytes
from node.compute.measure import Speed
from node.compute.meter import QUIET_S, Meter, StepTime
from node.config import NodeConfig
from node.hop.steps import KeptOutputs, join, piece_want
from protocol import limits
from protocol.candidates import NOTHING, Candidates, Want
from protocol.errors import ConfigError
from protocol.messages import Output
from protocol.model import Span
from protocol.tensors import Tensor, from_numpy
from protocol.transport.allowance import Allowance

ADDR = "/ip4/127.0.0.1/udp/4001/quic-v1"


def test_the_default_budget() -> None:
    """A quarter of what is free, and what is kept of sessions, never nothing, never without end."""
    token = token_bytes(8, 2)
    assert token == 10 + ENTRY_BYTES
    assert default_kv_tokens(4 * 100 * token, token) == 100
    assert default_kv_tokens(4 * 100 * token, token, 50 * token) == 150
    assert default_kv_tokens(0, token) == 1
    assert default_kv_tokens(1 << 50, token) == MOST_DEFAULT_TOKENS
    assert buffer_bytes(0) == limits.BUFFER_BYTES_LEAST
    assert buffer_bytes(16 * limits.BUFFER_BYTES_LEAST) == 2 * limits.BUFFER_BYTES_LEAST
    assert buffer_bytes(1 << 50) == limits.BUFFER_BYTES_MOST


@pytest.mark.parametrize(
    ("layers", "ends", "span"),
    [
        ((0, 8), None, Span(0, 9)),
        ((0, 8), False, Span(1, 9)),
        ((16, 24), None, Span(17, 26)),
        ((16, 24), True, Span(17, 26)),
        ((4, 8), None, Span(5, 9)),
        ((0, 24), None, Span(0, 26)),
        (None, None, None),
    ],
)
def test_layers_to_stages(layers: tuple[int, int] | None, ends: bool | None, span: Span | None) -> None:
    """Blocks are numbered from 0; ends come along where they adjoin, unless they are not wanted."""
    config = NodeConfig("m", layers=layers, ends=ends)
    config.check()
    assert config.span(24) == span


def test_what_cannot_be_is_said_in_one_line() -> None:
    """With what to do instead."""
    with pytest.raises(ConfigError, match=r"^layers 4:99: the model has 24 layers, so use 0:24 or less$"):
        NodeConfig("m", layers=(4, 99)).span(24)
    with pytest.raises(ConfigError, match="touch neither end"):
        NodeConfig("m", layers=(4, 8), ends=True).span(24)


@pytest.mark.parametrize(
    "config",
    [
        NodeConfig(""),
        NodeConfig("m", layers=(3, 3)),
        NodeConfig("m", layers=(-1, 3)),
        NodeConfig("m", ends=True),
        NodeConfig("m", kv_tokens=0),
        NodeConfig("m", threads=0),
        NodeConfig("m", max_memory=-1),
        NodeConfig("m", dtype="int8"),
        NodeConfig("m", quant="int3"),
        NodeConfig("m", quant="int8", dtype="f32"),
        NodeConfig("m", engine="numpy"),
        NodeConfig("m", engine="native", device="cuda"),
        NodeConfig("m", engine="native", dtype="bf16"),
        NodeConfig("m", join=(ADDR,)),
        NodeConfig("m", listen=("rubbish",)),
        NodeConfig("m", announce=("rubbish",)),
    ],
    ids=lambda config: str(config)[10:60],
)
def test_configurations_that_cannot_be(config: NodeConfig) -> None:
    """Refused before anything is opened."""
    with pytest.raises(ConfigError) as caught:
        config.check()
    assert "\n" not in str(caught.value)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_casts_round_to_nearest(numbers: list[float]) -> None:
    """bf16 to within half a step, there and back without change; fp16 as numpy does it."""
    wide = from_numpy(np.array([numbers], np.float32))
    halves = cast_hidden(wide, "bf16")
    assert (halves.dtype, halves.shape) == ("bf16", wide.shape)
    there, back = wide.numpy().astype(np.float64), halves.numpy().astype(np.float64)
    fits = np.abs(there) < 3.38e38  # above, the nearest bf16 is infinite
    assert (np.abs(back - there)[fits] <= np.maximum(np.abs(there) * 2.0**-8, 1e-40)[fits]).all()
    again = cast_hidden(cast_hidden(halves, "f32"), "bf16")
    assert bytes(again.data) == bytes(halves.data)
    with np.errstate(over="ignore"):
        expected = wide.numpy().astype(np.float16)
    assert (cast_hidden(wide, "f16").numpy() == expected).all()


def test_ties_go_to_even_and_nan_stays() -> None:
    """The two ways in which truncating a fp32 would be wrong."""
    bits = np.array([[0x3F808000, 0x3F818000, 0x7FFFFFFF, 0xFF800000]], np.uint32)
    cast = cast_hidden(from_numpy(bits.view(np.float32)), "bf16")
    assert np.frombuffer(cast.data, np.uint16).tolist() == [0x3F80, 0x3F82, 0x7FC0, 0xFF80]


def test_the_meter_follows_the_steps() -> None:
    """Means start from the first sample; the head's share is taken off; the queue is forgotten when quiet."""
    meter = Meter()
    meter.observe(StepTime(1, 0, True, 0.0, 3.0, True), now=0.0)
    meter.observe(StepTime(1, 4, True, 5.0, 11.0, True), now=1.0)
    meter.observe(StepTime(100, 4, False, 5.0, 400.0, True), now=2.0)
    assert (meter.head_ms, meter.decode_ms(2.0), meter.prefill_ms(2.0)) == (3.0, 2.0, 1.0)
    meter.observe(StepTime(1, 4, False, 5.0, 16.0, True), now=3.0)
    assert meter.decode_ms(3.0) == pytest.approx(2.2)
    assert meter.queue_ms(4.0) == pytest.approx(5.0)
    assert meter.queue_ms(3.0 + QUIET_S) == 0.0


def test_the_meter_says_what_a_session_more_would_get() -> None:
    """What steps take among others while there are others, and what they take alone once it is quiet."""
    meter = Meter(Speed(2.0, 1.0, 0.0))
    for at in range(60):
        meter.observe(StepTime(1, 4, False, 0.0, 24.0, False), now=at / 10)
    assert meter.decode_ms(6.0) == pytest.approx(6.0, rel=0.01)
    assert meter.prefill_ms(6.0) == 1.0
    assert meter.decode_ms(6.0 + QUIET_S) == 2.0
    meter.observe(StepTime(1, 4, False, 0.0, 8.0, True), now=7.0 + QUIET_S)
    assert meter.decode_ms(7.0 + QUIET_S) == 2.0


def test_kept_outputs_are_bounded() -> None:
    """In number and in bytes; the newest stays whatever its size."""

    def output(number: int, rows: int) -> Output:
        return Output(number, 0, hidden=from_numpy(np.zeros((rows, 1), np.float32)))

    kept = KeptOutputs(most=3, most_bytes=40)
    for number in range(5):
        kept.keep(output(number, 1))
    kept.keep(output(4, 2))
    assert [o.number for o in kept.since(0)] == [2, 3, 4]
    kept.keep(output(5, 100))
    assert [o.number for o in kept.since(0)] == [5]
    assert (kept.find(4), kept.find(5)) == (None, kept.since(5)[0])
    kept.keep(output(6, 1))
    assert [o.number for o in kept.since(0)] == [6]


def test_pieces_of_a_step() -> None:
    """Hidden rows and candidates are joined in order; only the last piece is asked for the last row."""
    want = Want("candidates")
    assert (piece_want(want, last=False), piece_want(want, last=True)) == (NOTHING, want)
    assert piece_want(Want("candidates", every=True), last=False).every
    rows: list[StepResult] = [from_numpy(np.full((n, 2), n, np.float32)) for n in (1, 2)]
    hidden = join(rows)
    assert isinstance(hidden, Tensor)
    assert hidden.numpy().tolist() == [[1, 1], [2, 2], [2, 2]]
    ids, logits, lse = np.zeros((1, 2), np.int32), np.zeros((1, 2), np.float32), np.zeros(1, np.float32)
    parts: list[StepResult] = [Candidates(ids + n, logits, lse, logits) for n in range(3)]
    found = join([None, *parts])
    assert isinstance(found, Candidates)
    assert found.ids.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert join([None]) is None


def test_a_pace_is_kept_on_average() -> None:
    """A burst at once, then as long a wait as the amount takes; what was asked for is owed."""
    pace = Allowance(per_s=2.0, burst=10.0)
    assert pace.wait_s("a", 100.0, 10.0) == 0.0
    assert pace.wait_s("a", 100.0, 4.0) == 2.0
    assert pace.wait_s("a", 102.0, 2.0) == 1.0
    assert pace.wait_s("a", 1000.0, 1.0) == 0.0
    assert pace.wait_s("a", 1000.0, 13.0) == 2.0
