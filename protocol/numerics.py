"""How a node computes, in one short word: `f32`, `bf16`, `int8/1`.

The word is a precision, and behind a slash the version of the specified arithmetic (docs/numerics.md) if that is what
computes: then the weights as stored and the word determine every bit, on whatever processor. Without a version the
sums are a library's, and equal words mean only equal precision.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from protocol.errors import Malformed
from protocol.fields import Rule

# Precisions in which no number of the weights is made a small integer.
EXACT: Final = ("f32", "bf16", "f16")
# Those that this version knows, the ones that keep most first. Others are words like any other, to be passed on.
PRECISIONS: Final = (*EXACT, "int8", "int4")
# Letters and digits for people and for commands: never a blank, a dash or anything that a shell reads.
_WORD: Final = re.compile(r"([a-z][a-z0-9]{0,11})(?:/([1-9][0-9]{0,2}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Numerics:
    """What a stage is computed in. Nodes with the same give the same bits where there is a version."""

    precision: str
    version: int | None = None  # of the specified arithmetic

    def __str__(self) -> str:
        return self.precision if self.version is None else f"{self.precision}/{self.version}"


def parse_numerics(text: object) -> Numerics:
    """The numerics in a word of at most 16 letters, also one that nobody here knows. Raises: Malformed."""
    found = _WORD.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise Malformed("expected a word for how a node computes, as f32 or int8/1")
    return Numerics(found[1], int(found[2]) if found[2] else None)


NUMERICS: Final = Rule(str, parse_numerics)
