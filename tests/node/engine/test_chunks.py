"""A prompt in chunks is a prompt: layers that keep a state go on from it, whatever the family makes of more rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from node.compute.call import run_alone
from node.engine.batching import CHUNKED
from node.engine.checkpoint import Checkpoint
from node.engine.span import SpanEngine
from protocol.candidates import HIDDEN, Candidates, Want
from protocol.model import Span
from protocol.tensors import Tensor, from_numpy
from tests.node.engine.variants import EXACT
from tests.node.engine.whole import BY_ROW, PROMPT, chunked, logits_of
from tests.support.models import make_model

ALL = Want(every=True, top=0)


@pytest.mark.parametrize("family", [*BY_ROW, *sorted(CHUNKED)])
def test_a_prompt_in_chunks_gives_what_it_gives_at_once(family: str, tmp_path: Path) -> None:
    """Logits of every row but for rounding, of a whole model and through two spans."""
    folder = make_model(family, tmp_path / "model", seed=3, **EXACT.get(family, {}))
    checkpoint = Checkpoint.open(str(folder))
    whole = SpanEngine.load(checkpoint, Span(0, 6), dtype="f32")
    expected = run_alone(whole, whole.new_cache(whole.span), 0, from_numpy(PROMPT), ALL)
    assert isinstance(expected, Candidates)
    spans = [SpanEngine.load(checkpoint, span, dtype="f32") for span in (Span(0, 3), Span(3, 6))]
    for engines in ([whole], spans):
        caches = [engine.new_cache(engine.span) for engine in engines]
        found = []
        for chunk in chunked(PROMPT, 3, 4, 5):
            given: object = from_numpy(chunk)
            for engine, cache in zip(engines, caches, strict=True):
                assert isinstance(given, Tensor)
                want = ALL if engine.span.stop == 6 else HIDDEN
                given = run_alone(engine, cache, cache.length, given, want)
            assert isinstance(given, Candidates)
            found.append(logits_of(given))
        np.testing.assert_allclose(np.concatenate(found), logits_of(expected), rtol=1e-3, atol=1e-3)
