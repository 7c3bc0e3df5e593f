"""What the model suggests of drawing, in every dialect: it holds where a request says nothing."""

from __future__ import annotations

from typing import Any

import pytest

from swarm.decoding import Sampling
from swarm.http.dialects import anthropic, chat, completions, ollama, plain, responses

SUGGESTED = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}
WHOLE = Sampling(temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.05)
MESSAGES = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (chat.ChatFields, MESSAGES),
        (completions.CompletionFields, {"prompt": "hi"}),
        (responses.ResponseFields, {"input": "hi"}),
        (anthropic.MessageFields, {**MESSAGES, "max_tokens": 5}),
        (ollama.ChatFields, MESSAGES),
        (plain.GenerateFields, {"prompt": "hi"}),
    ],
)
def test_every_dialect_goes_by_it(fields: Any, body: dict[str, Any]) -> None:
    """And draws at temperature 1 where the model says nothing either."""
    for suggested, expected in [(SUGGESTED, WHOLE), ({}, Sampling(temperature=1.0))]:
        asked = fields.model_validate(body)
        asked.go_by(suggested)
        [ask] = asked.asks() if hasattr(asked, "asks") else [asked.ask()]
        assert ask.request.sampling == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"temperature": 1.0}, Sampling(1.0, 20, 0.95, 1.05)),
        ({"top_k": 0, "top_p": 1.0}, Sampling(0.6, repetition_penalty=1.05)),
        ({"temperature": 0}, Sampling(repetition_penalty=1.05)),
        ({"swarm": {"strategy": "beam_search"}}, Sampling(repetition_penalty=1.05)),
        ({"swarm": {"strategy": "best_of"}}, WHOLE),
        ({"swarm": {"strategy": "top_p"}}, WHOLE),
    ],
)
def test_what_a_request_says_counts_more(said: dict[str, Any], expected: Sampling) -> None:
    """Each setting for itself; who wants the best token gets it."""
    asked = chat.ChatFields.model_validate({**MESSAGES, **said})
    asked.go_by(SUGGESTED)
    assert asked.ask().request.sampling == expected
