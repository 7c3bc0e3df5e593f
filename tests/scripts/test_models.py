"""The table of models is written by running them; here a few of each kind."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from scripts.models import NAMES, STEPS, Found, look, refusal, row  # noqa: E402  the import above may skip the file


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batched"), [("phi", True), ("mamba", False), ("granitemoe", True)], ids=lambda value: str(value)
)
def test_what_the_table_says_of_a_model_is_so(name: str, batched: bool) -> None:
    """The path is the node's own choice, the tokens are those of transformers."""
    found = look(name, steps=8)
    assert (found.batched, found.equal, found.total) == (batched, 32, 32)


def test_a_line_says_how_many_tokens_are_equal() -> None:
    """Where not all are."""
    assert row("llama", Found("native", True, True, 128, 128)) == "| llama | native | yes | yes | all |"
    assert row("x", Found("torch", False, True, 3, 128)) == "| x | torch | no | yes | 3 of 128 |"


def test_what_is_refused_says_why() -> None:
    """In the engine's own words."""
    assert refusal("openai-gpt").startswith("| openai-gpt | openai-gpt cannot be split: ")


def test_the_table_has_every_model_that_tests_know() -> None:
    """At least those that were exact when it began."""
    assert len(NAMES) == len(set(NAMES)) >= 83
    assert STEPS == 32
