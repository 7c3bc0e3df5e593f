"""An answer that is held to a grammar: while a model computes a step, it is asked what may follow that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from protocol.candidates import Candidates
from protocol.errors import ConfigError, LocalProtocolError
from swarm.branches import Branches, Job, at_once
from swarm.decoding import Ask, Begin, Landed, Next, Together
from swarm.decoding.grammar import Grammar, Guide, Mask
from swarm.text.masks import Left, Rules
from swarm.text.text import Text

Place = tuple[int, ...]

# Whose masks are kept: those of steps that are under way, and of what is asked once more.
PLACES: Final = 512


@dataclass(frozen=True, slots=True)
class Held:
    """What is known of an answer before its first step."""

    prompt: Sequence[int]
    cached: int  # tokens of it that branch 0 has
    vocab_size: int
    eos: frozenset[int]


class Masked(Guide):
    """The masks at the places of the last step.

    Raises: ConfigError, where there are no ids to end an answer with.
    """

    def __init__(self, text: Text, grammar: Grammar, held: Held) -> None:
        if not held.eos:
            raise ConfigError(
                "an answer by a grammar needs ids that end it, and the model names none: give eos"
            )
        self._held = held
        self._eos = np.fromiter(sorted(held.eos), np.int64)
        rules = Rules(grammar.kind, grammar.source, held.vocab_size, tuple(sorted(held.eos)))
        self._masks = text.masks(rules)
        self._left: dict[Place, Left] = {}

    async def look(self, places: Sequence[Place]) -> None:
        """Have the masks at these places of the answer. Raises: ConfigError, for a bad grammar."""
        new = [place for place in dict.fromkeys(places) if place not in self._left]
        found = dict(zip(new, await self._masks.after(new), strict=True)) if new else {}
        for place in places:
            self._left[place] = self._left.pop(place) if place in self._left else found[place]
        while len(self._left) > PLACES:
            del self._left[next(iter(self._left))]

    def mask(self, tokens: Sequence[int]) -> Mask:
        """See `Guide`."""
        left = self._left.get(tuple(tokens[len(self._held.prompt) :]))
        if left is None:
            raise LocalProtocolError("nobody has asked what may follow there")
        bits = np.unpackbits(np.frombuffer(left.bits, np.uint8), bitorder="little")
        mask = bits[: self._held.vocab_size].astype(np.bool_)
        mask[self._eos] = left.whole
        return mask


async def check_grammar(text: Text, grammar: Grammar, vocab_size: int) -> None:
    """See that answers can be held to it. Raises: ConfigError; what `Text` raises."""
    await Masked(text, grammar, Held((), 0, vocab_size, text.eos)).look([()])


class Guided:
    """`Branches`, with the masks for what each step is asked for; they are computed at the same time."""

    def __init__(self, branches: Branches, guide: Masked, held: Held) -> None:
        self._branches = branches
        self._guide = guide
        self._prompt = len(held.prompt)
        self._tokens: dict[int, Place] = {0: tuple(held.prompt[: held.cached])}

    async def answer(
        self, said: Ask | Together | Begin | Next
    ) -> Candidates | list[Candidates] | Landed | None:
        """See `Branches`. Raises: ConfigError, for a bad grammar."""
        if isinstance(said, Next):
            return await self._branches.answer(said)
        jobs: list[Job[Candidates | list[Candidates] | Landed | None]] = [
            partial(self._branches.answer, said),
            partial(self._guide.look, self.places(said)),
        ]
        told, _ = await at_once(jobs)
        return told

    def places(self, said: Ask | Together | Begin) -> list[Place]:
        """What the answer is wherever a token may be chosen of this step."""
        asks = said.asks if isinstance(said, Together) else (said if isinstance(said, Ask) else said.ask,)
        before = dict(self._tokens)
        # Branches of other models have names below 0.
        found = [place for ask in asks if ask.branch >= 0 for place in self._places_of(ask, before)]
        for branch in said.dropped if isinstance(said, Together) else ():
            self._tokens.pop(branch, None)
        return found

    def _places_of(self, ask: Ask, before: dict[int, Place]) -> Iterator[Place]:
        start = before[ask.branch if ask.parent is None else ask.parent][: ask.position]
        tokens = self._tokens[ask.branch] = (*start, *ask.tokens)
        first = len(start) + 1 if ask.want.every else len(tokens)
        for length in range(max(first, self._prompt), len(tokens) + 1):
            yield tokens[self._prompt : length]
