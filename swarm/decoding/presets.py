"""Two ways to draw by name, for those who do not want to choose numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from swarm.decoding.sampling import DRAWING

# Each says all that there is to say of drawing, so that nothing else mixes with it.
PRESETS: Final[Mapping[str, Mapping[str, float]]] = {
    # Near the best token, with room for another wording: facts, code, extraction.
    "focused": {**DRAWING, "temperature": 0.3, "top_p": 0.9},
    # The model's own distribution without what is far below its best: names, stories, many different answers.
    "exploratory": {**DRAWING, "temperature": 1.0, "min_p": 0.05},
}
