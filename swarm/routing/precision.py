"""Which of the numerics that nodes compute in a client takes, and which it would rather have; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from protocol.errors import ConfigError, Malformed, NoRoute
from protocol.numerics import EXACT, PRECISIONS, Numerics, parse_numerics
from protocol.records import Announcement

# Words for more than one precision.
_ANY: Final = "any"
_EXACT: Final = "exact"
# Words in one list; there are not that many precisions.
_MOST_WORDS: Final = 16
# Numerics named in one line.
_NAMED: Final = 4


@dataclass(frozen=True, slots=True)
class Precisions:
    """Those that a client takes, in the words that its user chose."""

    text: str = _ANY
    taken: frozenset[str] | None = None  # precisions, and numerics to the version; None: whatever there is

    def __str__(self) -> str:
        return self.text

    def take(self, numerics: Numerics) -> bool:
        """Whether a node that computes so may serve this client."""
        return self.taken is None or not self.taken.isdisjoint((numerics.precision, str(numerics)))

    @property
    def node_option(self) -> str:
        """What `swarm node` needs to be told to serve this client, a blank before it; empty if nothing."""
        if self.taken is None:
            return ""
        wanted = {word.partition("/")[0] for word in self.taken}
        first = next(precision for precision in PRECISIONS if precision in wanted)
        if first not in EXACT:
            return f" --quant {first}"
        # A dtype is torch's; with a version, or where any of them is taken, the node's own choice is the best.
        return f" --dtype {first}" if first in self.taken and not self.taken.issuperset(EXACT) else ""

    def explain(self, error: NoRoute, others: Iterable[Announcement]) -> NoRoute:
        """The same error; where `others` serve what is missing, it says what they compute in and how to take it."""
        holes = {stage for pair in error.missing for stage in range(*pair)}
        left_out = Counter(str(a.numerics) for a in others if not holes.isdisjoint(a.span))
        if not left_out:
            return error
        named = [
            f"{word} at {count} node{'s' * (count != 1)}" for word, count in left_out.most_common(_NAMED)
        ]
        more = " and others" * (len(left_out) > _NAMED)
        return NoRoute(
            f"{error} in the precision asked for, {self}: there is {', '.join(named)}{more}, "
            "which --precision any takes",
            error.missing,
        )


ANYTHING: Final = Precisions()


def parse_precisions(text: str) -> Precisions:
    """ "any", "exact", or a list with commas, as "int8" for all its versions or "int8/1,f32". Raises: ConfigError."""
    words = [word.strip() for word in text.lower().split(",")]
    if len(words) > _MOST_WORDS or not all(word in (_ANY, _EXACT) or _is_known(word) for word in words):
        raise ConfigError(
            f"precision {text!r}: give any, exact, or some of {', '.join(PRECISIONS)} with commas between, "
            "as nodes announce them or without the version"
        )
    if _ANY in words:
        return ANYTHING
    taken = {each for word in words for each in (EXACT if word == _EXACT else (word,))}
    return Precisions(",".join(words), frozenset(taken))


def loss(numerics: Numerics) -> int:
    """How much of the weights is given up: 0 for nothing to speak of, then more for fewer bits; most if unknown."""
    if numerics.precision in EXACT:
        return 0
    known = PRECISIONS[len(EXACT) :]
    return 1 + (known.index(numerics.precision) if numerics.precision in known else len(known))


def _is_known(word: str) -> bool:
    try:
        return parse_numerics(word).precision in PRECISIONS
    except Malformed:
        return False
