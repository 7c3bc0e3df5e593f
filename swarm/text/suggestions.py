"""How a checkpoint suggests that tokens are chosen, by its generation_config.json: bounded numbers and nothing else.

Both sides of the text process use it: who reads a stranger's file, and who takes what came of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from protocol import limits
from protocol.errors import Malformed, SwarmError
from protocol.fields import Rule, real, uint

# The least number above 0 that is taken where 0 itself is not.
_ABOVE_0: Final = 1e-6
# Settings of `swarm.decoding.Sampling` that transformers calls the same, within the ranges that they have there.
_DRAWING: Final = {
    "temperature": real(0.001, 1000),
    "top_k": uint(limits.VOCABULARY),
    "top_p": real(_ABOVE_0, 1),
    "min_p": real(0, 1),
    "typical_p": real(_ABOVE_0, 1),
}
RULES: Final = {**_DRAWING, "repetition_penalty": real(0.01, 100)}


def read_suggestions(config: Mapping[str, Any]) -> dict[str, float]:
    """What a generation config says explicitly; a value that is none, or out of range, counts as not said.

    How to draw counts only with `do_sample`, and then the temperature is said: 1, where the file is silent on it.
    """
    drawing = config.get("do_sample") is True
    found: dict[str, float] = {"temperature": 1.0} if drawing else {}
    for name, rule in RULES.items():
        if drawing or name not in _DRAWING:
            try:
                found[name] = rule.parse(config.get(name))
            except SwarmError:
                continue
    return found


def _parse(value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or not value.keys() <= RULES.keys():
        raise Malformed(f"expected a map with some of {', '.join(RULES)}")
    return {name: RULES[name].parse(said) for name, said in value.items()}


SUGGESTIONS: Final = Rule(dict, _parse)
