"""Where a setting's value came from, and which of two places has the last word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Rank(IntEnum):
    """Places by what they are worth: a higher one is heard first."""

    USUAL = 0
    MODEL = 10
    FILE = 20  # of the user, or named by the user
    FOLDER = 30  # found in the working folder
    ENVIRONMENT = 40
    FLAG = 50
    CHAT = 60


@dataclass(frozen=True, slots=True)
class Origin:
    """A place, in words that lead there."""

    rank: int
    text: str

    def through(self, what: str) -> Origin:
        """Of what follows from something that this place says: whatever it says outright is worth more."""
        return Origin(self.rank - 5, f"{what}, {self.text}")


# By the names of settings; those that are not in it have their usual values.
Origins = Mapping[str, Origin]

USUAL: Final = Origin(Rank.USUAL, "default")
MODEL: Final = Origin(Rank.MODEL, "the model's generation_config.json")


def rank_of(origins: Origins, name: str) -> int:
    """What the place is worth that a setting's value came from."""
    return origins.get(name, USUAL).rank
