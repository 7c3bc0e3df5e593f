"""Families beyond those of the other tests: exact where they load, refused in words where they cannot be split."""

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from node.engine.checkpoint import Checkpoint
from protocol.errors import UnsupportedModel
from tests.node.engine.variants import EXACT, INDEXED, REFUSED
from tests.node.engine.whole import BY_ROW, PROMPT, Chain, Whole, chunked
from tests.support.models import make_model


@pytest.mark.parametrize("name", EXACT)
def test_every_family_that_loads_is_exact(name: str, tmp_path: Path) -> None:
    """Chunks and single tokens, through two spans with both ends at the client, equal the unsplit model."""
    family, _, _ = name.partition("/")
    folder = make_model(family, tmp_path / "model", seed=3, sharded=True, **EXACT[name])
    chunks = chunked(PROMPT, 4, 5, 1, 1, 1)
    expected = Whole(AutoModelForCausalLM.from_pretrained(folder).eval()).logits(chunks)
    checkpoint = Checkpoint.open(str(folder))
    found = Chain(checkpoint, [1, 3, 5], ends=True).logits(chunks)
    for ours, theirs in zip(found, expected, strict=True):
        # Its head takes the rows of a chunk together, the reference those of these families one by one: other sums.
        # So does a product over many index heads and a cache that lies in memory otherwise.
        least = 1e-4 if family in (*BY_ROW, *INDEXED) else 0.0
        np.testing.assert_allclose(ours, theirs, rtol=least, atol=least)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_split_is_refused(name: str, tmp_path: Path) -> None:
    """A model whose layers need more than hidden states is told apart before it gives a wrong answer."""
    family, _, _ = name.partition("/")
    changes, reason = REFUSED[name]
    folder = make_model(family, tmp_path / "model", seed=3, **changes)
    with pytest.raises(UnsupportedModel, match=reason):
        Chain(Checkpoint.open(str(folder)), [0, 6])
