"""Forwards that can be recorded: with keys and values in a pool, rows give what they give alone.

Here on the CPU, where nothing is recorded; tests/gpu has the device.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from node.engine.cache import SpanCache
from node.engine.checkpoint import Checkpoint
from node.engine.pool import PAGE, Pages, Pool
from node.engine.replay import Replay
from node.engine.split import SplitModel
from node.engine.trial import Trial
from protocol.errors import CacheFull
from protocol.model import Span
from tests.node.engine.conftest import Tiny
from tests.node.engine.variants import EXACT
from tests.support.models import make_model

WHOLE = Span(0, 6)
CPU = torch.device("cpu")
# Windows, soft caps, sinks, biases, experts, norms of heads, learned positions.
FAMILIES = (
    "llama",
    "mistral",
    "gemma2",
    "gemma3_text",
    "gpt_oss",
    "gpt2",
    "qwen3_moe",
    "phi",
    "gemma4_text",
    "cohere2",
)


def split(family: str, folder: Path) -> SplitModel:
    """A tiny random model."""
    path = make_model(family, folder / "model", seed=3, **EXACT.get(family, {}))
    return SplitModel(Checkpoint.open(str(path)), frozenset(WHOLE), "f32", "cpu")


def filled(model: SplitModel, length: int, pool: Pool | None) -> SpanCache:
    """A cache that holds so many made-up tokens, in two chunks."""
    cache = model.new_cache(WHOLE, pool=pool)
    for chunk in _tokens(length).split(max(1, length // 2), dim=1):
        model.hidden(WHOLE, cache.layers, chunk)
    return cache


def _tokens(length: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(length).integers(0, 256, (1, length)))


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_rows_out_of_a_pool_are_what_they_are_alone(family: str, tmp_path: Path) -> None:
    """Of sessions shorter and longer than windows and pages, one of them past the end of a page on the way."""
    model = split(family, tmp_path)
    pool = Pool(16, CPU)
    replay = Replay(model, WHOLE, pool)
    lengths = (1, 5, 9, PAGE - 2, 2 * PAGE + 6)
    alone = [filled(model, length, None) for length in lengths]
    pooled = [filled(model, length, pool) for length in lengths]
    for token in (7, 99, 3, 250):
        ids = torch.full((len(lengths), 1), token)
        found = replay.run([cache.layers for cache in pooled], ids, logits=True)
        expected = torch.cat([model.logits(WHOLE, cache.layers, ids[:1], 1)[:, 0] for cache in alone])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert [cache.length for cache in pooled] == [cache.length for cache in alone]
    # Back, and on by itself.
    for cache, other in zip(pooled, alone, strict=True):
        for each in (cache, other):
            each.cut(1)
        chunk = torch.tensor([[5, 6, 7]])
        one, two = (model.logits(WHOLE, each.layers, chunk, 1) for each in (cache, other))
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
        cache.close()
    assert pool.free_pages == 16


@torch.inference_mode()
def test_a_fork_goes_on_by_itself(tiny: Tiny) -> None:
    """With a copy of the rows; where the pool has no room for it, nothing is taken."""
    model = SplitModel(Checkpoint.open(str(tiny("mistral"))), frozenset(WHOLE), "f32", "cpu")
    pool = Pool(4, CPU)
    replay = Replay(model, WHOLE, pool)
    trunk, alone = (filled(model, PAGE + 3, each) for each in (pool, None))
    fork = trunk.fork(PAGE + 1)
    assert pool.free_pages == 0
    for cache, token in ((fork, 5), (trunk, 9)):
        ids = torch.tensor([[token]])
        at = cache.length
        found = replay.run([cache.layers], ids, logits=True)
        alone.cut(0)
        model.hidden(WHOLE, alone.layers, _tokens(PAGE + 3)[:, :at])
        torch.testing.assert_close(
            found, model.logits(WHOLE, alone.layers, ids, 1)[:, 0], rtol=1e-4, atol=1e-4
        )
    fork.close()
    pool.take()
    with pytest.raises(CacheFull):
        trunk.fork(PAGE + 1)
    assert pool.free_pages == 1


@torch.inference_mode()
def test_a_model_is_tried_before_it_is_replayed(tiny: Tiny) -> None:
    """As the engine does as it is loaded."""
    model = SplitModel(Checkpoint.open(str(tiny("llama"))), frozenset((2, 3)), "f32", "cpu")
    pool = Pool(8, CPU)
    assert Trial(model, Span(2, 4)).replay_agrees(Replay(model, Span(2, 4), pool))
    assert pool.free_pages == 8


@torch.inference_mode()
def test_what_a_session_leaves_behind_reaches_nobody(tiny: Tiny) -> None:
    """Numbers that are none, in pages that others get next, and in rows that stand for no session."""
    span, pool = Span(1, 6), Pool(4, CPU)
    model = SplitModel(Checkpoint.open(str(tiny("llama"))), frozenset(span), "f32", "cpu")
    replay = Replay(model, span, pool)
    bad = torch.full((4, 1, 64), torch.nan)
    hostile = [model.new_cache(span, pool=pool) for _ in range(4)]
    for cache in hostile:
        model.hidden(span, cache.layers, torch.full((1, 40, 64), torch.nan))
    for count in (4, 3):  # what the fourth gave stays in its row, which is nobody's the second time
        replay.run([cache.layers for cache in hostile[:count]], bad[:count], logits=False)
    for cache in hostile:
        cache.close()
    lengths = (3, PAGE + 3)  # so that the first has a table with room for more pages than it holds
    pooled, alone = ([model.new_cache(span, pool=each) for _ in lengths] for each in (pool, None))
    for length, *caches in zip(lengths, pooled, alone, strict=True):
        good = torch.randn(1, length, 64)
        for cache in caches:
            model.hidden(span, cache.layers, good)
    rows = torch.randn(2, 1, 64)
    found = replay.run([cache.layers for cache in pooled], rows, logits=False)
    expected = [model.hidden(span, c.layers, rows[i : i + 1])[:, 0] for i, c in enumerate(alone)]
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_a_pool_that_is_full_says_so_and_keeps_what_is_held() -> None:
    """And has room again when somebody goes."""
    pool = Pool(3, CPU)
    one, two = Pages(pool), Pages(pool)
    one.reserve(2 * PAGE)
    two.reserve(1)
    with pytest.raises(CacheFull):
        two.reserve(PAGE + 1)
    assert len(two.held) == 1
    one.close()
    one.close()
    two.reserve(PAGE + 1)
    assert pool.free_pages == 1
    assert two.rows(PAGE - 1, PAGE + 1).tolist() == [
        two.held[0] * PAGE + PAGE - 1,
        two.held[1] * PAGE,
    ]
