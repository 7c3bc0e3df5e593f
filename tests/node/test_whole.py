"""A whole model on this machine: what it gives is what an engine gives, and it drafts for a swarm."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.whole import WholeModel
from protocol.candidates import Want
from protocol.errors import ConfigError

DRAFT = Path("swarm/models/tiny-draft")
PROMPT = [5, 6, 7, 8, 9]


@pytest.fixture(scope="module")
def model() -> WholeModel:
    """The small sibling of the model that ships."""
    return WholeModel.open(str(DRAFT))


async def test_a_sequence_goes_on_goes_back_and_forks(model: WholeModel) -> None:
    """Wherever it has been before, a position gives what it gives afresh."""
    async with model.session(max_tokens=64) as sequence, model.session(max_tokens=64) as other:
        whole = await sequence.step(PROMPT, position=0, want=Want(every=True, top=3))
        assert whole is not None
        assert whole.ids.shape == (5, 3)
        await sequence.step([1, 2, 3], position=5, want=Want())
        again = await sequence.step(PROMPT[3:], position=3, want=Want(top=3))
        fork = await sequence.fork(3)
        forked = await fork.step(PROMPT[3:], position=3, want=Want(top=3))
        fresh = await other.step(PROMPT, position=0, want=Want(top=3))
        for found in (again, forked, fresh):
            assert found is not None
            assert found.ids.tolist() == whole.ids[-1:].tolist()
            assert found.logits.tolist() == whole.logits[-1:].tolist()
        await fork.aclose()


async def test_a_sequence_longer_than_its_context_is_refused(model: WholeModel) -> None:
    """In one line."""
    with pytest.raises(ConfigError, match="more than the context of"):
        async with model.session(max_tokens=1 << 20):
            pass
