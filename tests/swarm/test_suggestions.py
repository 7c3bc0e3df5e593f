"""What a checkpoint's generation_config.json suggests, as far as a stranger's file may."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from protocol.errors import Malformed
from swarm.decoding import Sampling
from swarm.text.process import TextProcess
from swarm.text.suggestions import RULES, SUGGESTIONS, read_suggestions
from swarm.text.text import load_text
from tests.swarm.tokenizers import model_files

QWEN = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}


@pytest.mark.parametrize(
    ("config", "suggested"),
    [
        ({}, {}),
        ({"temperature": 0.6, "top_p": 0.9}, {}),  # as transformers: without do_sample nothing is drawn
        ({**QWEN, "do_sample": False}, {"repetition_penalty": 1.05}),
        ({**QWEN, "do_sample": "yes"}, {"repetition_penalty": 1.05}),
        ({"do_sample": True}, {"temperature": 1.0}),
        (QWEN, {name: value for name, value in QWEN.items() if name != "do_sample"}),
        (
            {
                "do_sample": True,
                "temperature": float("nan"),
                "top_k": -1,
                "top_p": 0,
                "min_p": "0.1",
                "typical_p": True,
                "repetition_penalty": 10**400,
                "max_new_tokens": 5,
            },
            {"temperature": 1.0},
        ),
    ],
)
def test_what_is_said_outright_counts(config: dict[str, Any], suggested: dict[str, float]) -> None:
    """And what is out of range, or no number, is as if it were not there."""
    assert read_suggestions(config) == suggested


def test_what_is_taken_is_a_sampling() -> None:
    """At both ends of each range: what passes here cannot fail later."""
    for name, rule in RULES.items():
        taken = 0
        for value in (0, 1e-6, 0.001, 0.01, 1, 100, 1000, 1 << 20):
            said = read_suggestions({"do_sample": True, "temperature": 1.0, name: value})
            Sampling(**said)  # type: ignore[arg-type]  # a whole number, where it is one
            taken += said.get(name) == rule.pack(value)
        assert taken > 1


@pytest.mark.parametrize("value", [None, [], {"seed": 1}, {"temperature": 0.0}, {"top_k": 1.5}, {1: 1}])
def test_the_text_process_is_believed_as_little(value: object) -> None:
    """A stranger's code may have written the reply."""
    with pytest.raises(Malformed):
        SUGGESTIONS.parse(value)


async def test_a_client_has_it(nursery: trio.Nursery) -> None:
    """By way of the process that reads the file."""
    process = TextProcess()
    nursery.start_soon(process.run)
    text = await load_text(process, model_files(generation_config=QWEN))
    assert text.suggested == {name: value for name, value in QWEN.items() if name != "do_sample"}
