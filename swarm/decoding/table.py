"""All strategies by name; a new one is a file of its own and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from protocol.errors import ConfigError
from swarm.decoding.asks import Strategy
from swarm.decoding.beams import BeamSearch
from swarm.decoding.best_of import BestOf
from swarm.decoding.sampling import Sampling
from swarm.decoding.single import Greedy, Sample

STRATEGIES: Final[Mapping[str, type[Strategy]]] = {
    kind.name: kind for kind in (Greedy, Sample, BeamSearch, BestOf)
}
# The name for whichever of Greedy and Sample the temperature says.
AUTO: Final = "auto"


def choose_strategy(asked: Strategy | str, sampling: Sampling) -> Strategy:
    """The strategy of that name, with its usual parameters; or the one given. Raises: ConfigError."""
    if asked == AUTO:
        return Greedy() if sampling.greedy else Sample()
    if isinstance(asked, str):
        if asked not in STRATEGIES:
            raise ConfigError(f"strategy {asked!r}: there are {', '.join([AUTO, *STRATEGIES])}")
        asked = STRATEGIES[asked]()
    asked.check(sampling)
    return asked
