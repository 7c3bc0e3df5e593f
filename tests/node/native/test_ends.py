"""Both ends of a model by the kernels alone: the embedding and the head of the engine, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from node.compute.interfaces import Call
from node.native.checkpoint import NativeCheckpoint
from node.native.ends import NativeEnds
from node.native.engine import NativeEngine
from node.native.kernel import Kernel
from node.native.precision import F32
from protocol.candidates import NOTHING, Candidates, Want
from protocol.errors import LocalProtocolError, Malformed
from protocol.model import Span
from protocol.tensors import Tensor, from_numpy

TINY = Path("swarm/models/tiny")
IDS = from_numpy(np.arange(5, 40, 7, dtype=np.int32))


@pytest.fixture(scope="module")
def ends(kernel: Kernel) -> NativeEnds:
    """Of the model that ships."""
    return NativeEnds.load(NativeCheckpoint.open(str(TINY), F32), kernel)


def run(kernel: Kernel, span: Span, rows: Tensor, want: Want) -> object:
    """What an engine of this span makes of rows at the beginning of a session."""
    engine = NativeEngine.load(NativeCheckpoint.open(str(TINY), F32), span, kernel)
    [result] = engine.run([Call(engine.new_cache(span), 0, rows, want)])
    return result


def test_they_say_what_the_engine_says(ends: NativeEnds, kernel: Kernel) -> None:
    """The states of the first stage, and the candidates of the last."""
    last = ends.manifest.stages - 1
    states = ends.embed(IDS, 0)
    assert states == run(kernel, Span(0, 1), IDS, NOTHING)
    for want in (Want(top=3), Want(top=3, every=True)):
        found, expected = ends.head(states, want, 0), run(kernel, Span(last, last + 1), states, want)
        assert isinstance(expected, Candidates)
        assert np.array_equal(found.ids, expected.ids)
        assert np.array_equal(found.logits, expected.logits)


def test_their_digests_are_those_that_nodes_announce(ends: NativeEnds) -> None:
    """By stage."""
    checkpoint = NativeCheckpoint.open(str(TINY), F32)
    announced = checkpoint.stage_digests(Span(0, checkpoint.manifest.stages))
    assert ends.stage_digests() == {0: announced[0], len(announced) - 1: announced[-1]}


def test_what_strangers_send_is_refused(ends: NativeEnds) -> None:
    """Ids that are none, states of another width or not finite, more than the context; and our own mistakes."""
    size = ends.manifest.hidden_size
    with pytest.raises(Malformed):
        ends.embed(from_numpy(np.array([1 << 20], np.int32)), 0)
    with pytest.raises(Malformed):
        ends.embed(IDS, ends.manifest.context)
    for rows in (np.zeros((1, size + 1), np.float32), np.full((1, size), np.nan, np.float32)):
        with pytest.raises(Malformed):
            ends.head(from_numpy(rows), Want(top=1), 0)
    with pytest.raises(LocalProtocolError):
        ends.head(ends.embed(IDS, 0), NOTHING, 0)
