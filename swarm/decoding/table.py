"""All strategies by name; a new one is a file of its own and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from protocol.errors import ConfigError
from swarm.decoding.asks import Strategy
from swarm.decoding.beams import BeamSearch
from swarm.decoding.best_of import BestOf
from swarm.decoding.contrastive import Contrastive
from swarm.decoding.sampling import Sampling
from swarm.decoding.search import ContrastiveSearch
from swarm.decoding.single import Greedy, Sample
from swarm.decoding.speculative import Speculative

STRATEGIES: Final[Mapping[str, type[Strategy]]] = {
    kind.name: kind
    for kind in (Greedy, Sample, Speculative, BeamSearch, BestOf, Contrastive, ContrastiveSearch)
}
# The name for the usual way: greedy or drawn, as the temperature says, with drafts where they pay.
AUTO: Final = "auto"
# Other names for drawing in the usual way, each a setting that has to be in use then: other programs have them.
BY_SETTING: Final = ("top_k", "top_p")
# All that a strategy may be called.
NAMES: Final = (AUTO, *STRATEGIES, *BY_SETTING)


def choose_strategy(asked: Strategy | str, sampling: Sampling) -> Strategy:
    """The strategy of that name, with its usual parameters; or the one given. Raises: ConfigError."""
    if asked == AUTO:
        return Speculative()
    if isinstance(asked, str):
        if asked not in NAMES:
            raise _no_strategy(asked)
        if asked in BY_SETTING:
            if asked not in sampling.drawing:
                raise ConfigError(f"strategy {asked} draws by the setting of that name: give {asked} too")
            Sample().check(sampling)
            return Speculative()
        asked = STRATEGIES[asked]()
    asked.check(sampling)
    return asked


def parse_strategy(text: str) -> Strategy | str:
    """A strategy as people write it: its name, and after a colon its parameters: "beam_search:beams=4,returned=2".

    Raises: ConfigError, with the names that there are.
    """
    name, _, written = text.partition(":")
    if name in (AUTO, *BY_SETTING):
        if written:
            raise ConfigError(f"strategy {name} has no parameters: nothing follows its name")
        return name
    if name not in STRATEGIES:
        raise _no_strategy(name)
    kind: Any = STRATEGIES[name]
    kinds = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    given = {}
    for each in filter(None, written.split(",")):
        parameter, _, value = each.partition("=")
        if parameter not in names:
            has = f"has {', '.join(names)}" if names else "has no parameters"
            raise ConfigError(f"strategy {name}: there is no parameter {parameter!r}; it {has}")
        given[parameter] = _parse(value, kinds[parameter], f"strategy {name}: {parameter}")
    strategy: Strategy = kind(**given)
    return strategy


def _no_strategy(name: str) -> ConfigError:
    return ConfigError(f"strategy {name!r}: there are {', '.join(NAMES)}")


def _parse(text: str, kind: Any, what: str) -> Any:
    """A value of a simple type: a number, a word, one of several. Raises: ConfigError."""
    if get_origin(kind) is Literal:
        choices = {str(choice).lower(): choice for choice in get_args(kind)}
        if text not in choices:
            raise ConfigError(f"{what} is {' or '.join(choices)}, not {text!r}")
        return choices[text]
    try:
        return kind(text)
    except ValueError as error:
        word = {int: "a whole number", float: "a number"}[kind]
        raise ConfigError(f"{what} is {word}, not {text!r}") from error
