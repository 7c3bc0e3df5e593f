"""When hops that refuse a step are believed, and what the user is told then; pure."""

from __future__ import annotations

from typing import Final

from protocol.errors import Malformed

# Peers named in one error's line.
MOST_SHOWN: Final = 4


class Refusals:
    """Of one step, by hops that only the client has fed: what each peer said, and where it is.

    A peer that says the step is at fault may lie, and identities are free: two that have nothing to do with each
    other are believed.
    """

    def __init__(self) -> None:
        self._said: dict[str, tuple[str, str]] = {}  # by peer: the text, the block of addresses

    def __bool__(self) -> bool:
        return bool(self._said)

    def add(self, peer: str, text: str, origin: str) -> None:
        """A hop refused the step for good."""
        self._said[peer] = (text, origin)

    @property
    def agreed(self) -> bool:
        """Whether peers of two blocks of addresses refuse it."""
        return len({origin for _, origin in self._said.values()}) > 1

    def error(self) -> Malformed:
        """Who said what, in one line."""
        said = [f"{peer} ({text})" for peer, (text, _) in self._said.items()]
        return Malformed("the step was refused by " + " and ".join(said[:MOST_SHOWN]))
