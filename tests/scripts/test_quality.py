"""How the benchmark of strategies judges answers."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from scripts.tiny.task import Turn

BENCH = Path("scripts/bench").resolve()
TURNS = [
    Turn("name", "Ada", "I am Ada.", "Hello, Ada."),
    Turn("capitals", "France", "What is the capital of France?", "The capital of France is Paris."),
]


def test_what_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Letter by letter for a model that was taught the answers, by new words for any other; F1 is of words."""
    monkeypatch.syspath_prepend(str(BENCH))
    asked_of = import_module("quality").Asked.of
    literal, free = asked_of(TURNS, literal=True), asked_of(TURNS, literal=False)
    assert [each["role"] for each in literal.messages] == ["user", "assistant", "user"]
    assert literal.messages[-1]["content"] == TURNS[-1].question
    assert literal.right("The capital of France is Paris.")
    assert not literal.right("The capital of France is Paris")
    assert free.right("It is Paris, the city of light!")
    assert not free.right("The capital of France is Lyon.")
    assert free.f1("the capital of france is paris") == 1.0
    assert free.f1("Paris.") == pytest.approx(2 / 7)
    assert free.f1("") == 0.0
