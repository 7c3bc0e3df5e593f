"""What a session holds side by side, and the steps that bring rows to several of these lanes at once. Pure.

What is asked of lanes together travels together: one step, with one want for all. That is wide enough for each, and
of what comes back each gets what it asked for, by the ids that it named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from protocol import limits
from protocol.candidates import Candidates, Want
from protocol.errors import SwarmError
from protocol.messages import Lane
from protocol.tensors import ITEM_BYTES

# What the answers to one step may take: a hop holds no more of a session's, but for a row of a whole vocabulary.
ANSWERS_BYTES: Final = limits.ANSWER_BYTES // 2


class NotCarried(SwarmError):
    """Lanes do not go on as they are: each needs a session of its own."""


@dataclass(frozen=True, slots=True)
class LaneStep:
    """Tokens for one lane at a position; with a `parent` it begins with what that one holds up to there."""

    lane: int
    parent: int | None
    position: int
    tokens: tuple[int, ...]
    want: Want

    @property
    def row(self) -> Lane:
        """As it travels."""
        return Lane(self.lane, self.parent, self.position, len(self.tokens))


@dataclass(frozen=True, slots=True)
class Pack:
    """Some of the steps that were asked for, by their places, that travel as one."""

    places: tuple[int, ...]
    steps: tuple[LaneStep, ...]
    want: Want

    @property
    def tokens(self) -> list[int]:
        """Of all, in order."""
        return [token for step in self.steps for token in step.tokens]

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Whose they are; nothing, if that goes without saying."""
        is_plain = len(self.steps) == 1 and self.steps[0].lane == 0
        return () if is_plain else tuple(step.row for step in self.steps)

    def share_out(self, found: Candidates) -> Iterator[tuple[int, Candidates]]:
        """What each asked for, by its place."""
        asked = {token: column for column, token in enumerate(self.want.ids)}
        start = 0
        for place, step in zip(self.places, self.steps, strict=True):
            stop = start + (len(step.tokens) if self.want.every else 1)
            columns = np.array([asked[token] for token in step.want.ids], np.intp)
            yield (
                place,
                Candidates(
                    found.ids[start:stop],
                    found.logits[start:stop],
                    found.lse[start:stop],
                    found.asked[start:stop][:, columns],
                    None if found.states is None else found.states[start:stop],
                ),
            )
            start = stop


def packed(steps: Sequence[LaneStep], vocab_size: int, hidden_size: int) -> list[Pack]:
    """The steps in as few packs as they fit: those that fork first, so that parents are as they were before."""
    packs: list[Pack] = []
    for place in sorted(range(len(steps)), key=lambda place: steps[place].parent is None):
        step = steps[place]
        last = packs[-1] if packs else None
        joined = None if last is None else _joined(last, place, step, (vocab_size, hidden_size))
        if joined is None:
            packs.append(Pack((place,), (step,), step.want))
        else:
            packs[-1] = joined
    return packs


def _joined(pack: Pack, place: int, step: LaneStep, sizes: tuple[int, int]) -> Pack | None:
    vocab_size, hidden_size = sizes
    if replace(pack.want, ids=()) != replace(step.want, ids=()):
        return None
    ids = tuple(sorted({*pack.want.ids, *step.want.ids}))
    steps = (*pack.steps, step)
    rows = sum(len(each.tokens) for each in steps)
    answers = rows if step.want.every else len(steps)
    row_bytes = 8 * min(step.want.top or vocab_size, vocab_size) + 4 * len(ids)
    row_bytes += ITEM_BYTES["f32"] * hidden_size if step.want.states else 0
    if rows > limits.STEP_TOKENS or len(ids) > limits.ASKED_IDS or answers * row_bytes > ANSWERS_BYTES:
        return None
    return Pack((*pack.places, place), steps, replace(step.want, ids=ids))


@dataclass(slots=True)
class _Held:
    begin: int
    tokens: list[int]


@dataclass(slots=True)
class Lanes:
    """What the lanes beside lane 0 hold, and those that have ended since the last step."""

    _held: dict[int, _Held] = field(default_factory=dict)
    _ended: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> Mapping[int, Sequence[int]]:
        """By lane, what its caches hold, by position."""
        return {lane: held.tokens for lane, held in self._held.items()}

    def check(self, steps: Sequence[LaneStep], first: Sequence[int], *, goes_back: bool) -> None:
        """Raises: NotCarried, where a lane is to go back to before it began, or another to begin there, or there are
        too many.

        first: what lane 0 holds
        goes_back: whether hops can go back at all
        """
        for step in steps:
            name = step.lane if step.parent is None else step.parent
            held = _Held(0, [*first]) if name == 0 else self._held.get(name)
            if held is None or not held.begin + (step.parent is not None) <= step.position <= len(
                held.tokens
            ):
                raise NotCarried(f"lane {step.lane} cannot go on at position {step.position}")
            if not goes_back and step.position < len(held.tokens):
                raise NotCarried("these hops cannot go back")
        if len({0, *self._held, *(step.lane for step in steps)}) > limits.LANES:
            raise NotCarried(f"more than {limits.LANES} lanes")

    def take(self, steps: Sequence[LaneStep], first: list[int]) -> None:
        """They were computed. first: what lane 0 holds, which is changed with it."""
        before = {0: first, **self.tokens}
        begun = {
            step.lane: [*before[step.parent][: step.position]] for step in steps if step.parent is not None
        }
        for step in steps:
            if step.lane == 0:
                tokens = first
            elif step.parent is not None:
                tokens = begun[step.lane]
                self._held[step.lane] = _Held(step.position, tokens)
            else:
                tokens = self._held[step.lane].tokens
            tokens[step.position :] = step.tokens

    def end(self, lanes: Sequence[int]) -> None:
        """They are used no more: hops hear of it with the next step."""
        for lane in lanes:
            if self._held.pop(lane, None) is not None:
                self._ended.append(lane)

    def leave(self, lanes: Collection[int]) -> None:
        """None are used any more; these are all that hops may know."""
        self._held.clear()
        self._ended += sorted(lanes)

    def ended(self) -> tuple[int, ...]:
        """Those that a step is to tell of; told once."""
        told, self._ended = tuple(self._ended[: limits.LANES]), self._ended[limits.LANES :]
        return told
