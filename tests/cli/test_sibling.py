"""What drafts for a person who names nothing that does."""

from __future__ import annotations

import hashlib

from swarm.cli.demo_nodes import shipped_model
from swarm.cli.sibling import NAME, Sibling, folder_for


def test_the_sibling_is_for_the_model_that_ships_alone() -> None:
    """It is loaded where its ids are those of the model asked, and else is not looked for."""
    tokenizer = hashlib.sha256((shipped_model() / "tokenizer.json").read_bytes()).digest()
    assert folder_for(tokenizer) == shipped_model().with_name(NAME)
    sibling = Sibling(tokenizer)
    sibling.wait()
    assert sibling.model is not None
    assert sibling.model.tokenizer == tokenizer
    other = Sibling(bytes(32))
    other.wait()
    assert other.model is None
