"""What strangers make a node hold. The model has a large vocabulary, so that whatever is kept of outputs counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attack.arena import Arena
from tests.attack.attacks import memory
from tests.support.models import make_model

pytestmark = [pytest.mark.attack, pytest.mark.timeout(480)]

VOCABULARY = 32_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of eight small layers."""
    folder = tmp_path_factory.mktemp("model") / "wide"
    return make_model("llama", folder, seed=3, layers=8, vocab_size=VOCABULARY, eos_token_id=None)


@pytest.mark.parametrize("attack", [each.__name__ for each in memory.ATTACKS])
async def test_memory_is_bounded(attack: str, arena: Arena) -> None:
    """No node grows beyond the figure, and what it has grown by it gives back."""
    harm = await arena.endure(attack)
    harm.check()


async def test_no_session_is_left(arena: Arena) -> None:
    """After all of that every node has all its room again."""
    await arena.until_empty()
