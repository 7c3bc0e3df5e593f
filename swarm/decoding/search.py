"""Contrastive search (Su et al. 2022): of the likeliest tokens the one that repeats the least of what is there.

The best candidates are run, each on a branch of its own, and the head returns for each the state that it leads to.
What a candidate repeats is the greatest cosine of that state with those of all tokens before it, the prompt's too,
which are kept here. So each token takes one step of as many branches; one whose candidate was not taken is put right
in the next step, at the cost of a row and not of a trip.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from protocol import limits
from protocol.candidates import Candidates, Want, last_row
from protocol.errors import ConfigError, LocalProtocolError
from swarm.decoding.asks import Ask, Decoding, Ending, Task, Together, Token
from swarm.decoding.chooser import expect_candidates
from swarm.decoding.edits import Edits, edits_of
from swarm.decoding.row import Row, best_of_row, read_row, want_row
from swarm.decoding.sampling import Sampling
from swarm.decoding.single import takes_the_best

# Each is a session at every hop; the paper uses 3 to 10.
CANDIDATES: Final = 16
# Rows of a prompt whose states are asked for at once.
ROWS: Final = 128
STATE: Final = Want(states=True)

States = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ContrastiveSearch:
    """Takes, of the `candidates` likeliest tokens, the greatest (1 - alpha) * probability - alpha * repetition.

    alpha       how much repetition counts, of 1; 0 is greedy decoding
    candidates  how many tokens are run at each place

    Processors change the probabilities. Layers that keep a state, and so run all again to go back, are not for it.
    """

    name: ClassVar[str] = "contrastive_search"
    needs_amateur: ClassVar[bool | None] = False

    alpha: float = 0.6
    candidates: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha {self.alpha}: it is from 0 to 1")
        if not 2 <= self.candidates <= CANDIDATES:
            raise ConfigError(f"candidates {self.candidates}: it is from 2 to {CANDIDATES}")

    @property
    def sessions(self) -> int:
        """See `Strategy`."""
        return self.candidates

    def check(self, sampling: Sampling) -> None:
        """See `Strategy`."""
        takes_the_best(self.name, sampling)

    def decode(self, task: Task) -> Decoding:
        """See `Strategy`."""
        return _search(task, self)


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """After some tokens: what the processors do there, and what is asked of the head for it."""

    edits: Edits
    want: Want

    @classmethod
    def after(cls, tokens: Sequence[int], task: Task, count: int) -> _Place:
        """Raises: ConfigError, where nothing may follow."""
        edits = edits_of(task.sampling, tokens, len(task.prompt), task.eos)
        want = want_row(edits, max(count, task.top_logprobs), 1.0, task.vocab_size)
        return cls(edits, replace(want, states=True))


def _search(task: Task, how: ContrastiveSearch) -> Decoding:
    tokens = list(task.prompt)
    place: _Place | None = _Place.after(tokens, task, how.candidates)
    assert place is not None
    context, found = yield from _prompt(task, place)
    branches = _Branches(len(tokens))
    for _ in range(task.max_new_tokens):
        if place is None:
            place = _Place.after(tokens, task, how.candidates)  # says why nothing may follow
        row = read_row(found, place.want, place.edits, task.vocab_size)
        count = min(how.candidates, int((row.scores > -np.inf).sum()))
        ids = row.ids[:count].tolist()
        places = [_place_after([*tokens, token], task, how) for token in ids]
        wants = [STATE if each is None else each.want for each in places]
        told = yield Together(branches.asks(tokens, ids, wants))
        states = np.concatenate([_states(each) for each in told])
        repeated = (states @ context.taken.T).max(axis=1)
        at = int(np.argmax((1 - how.alpha) * probabilities(row)[:count] - how.alpha * repeated))
        token = Token(ids[at], float(row.logprobs[at]), best_of_row(found, place.want, task.top_logprobs))
        tokens.append(token.id)
        context.add(states[at : at + 1])
        branches.took(at, len(tokens))
        place, found = places[at], told[at]
        yield token
        if token.id in task.eos:
            return Ending("eos")
    return Ending("length")


def _place_after(tokens: Sequence[int], task: Task, how: ContrastiveSearch) -> _Place | None:
    """The place after a candidate; None, where nothing may follow it, which may not be the one that is taken."""
    try:
        return _Place.after(tokens, task, how.candidates)
    except ConfigError:
        return None


class _Branches:
    """How many of the answer's tokens, from the first of the prompt, each branch holds."""

    def __init__(self, prompt: int) -> None:
        self._held = {0: prompt}
        self._asked = range(0)

    def asks(self, tokens: Sequence[int], ids: Sequence[int], wants: Sequence[Want]) -> tuple[Ask, ...]:
        """Each candidate after `tokens`, on a branch of its own; new ones begin as the one that holds the most."""
        self._asked = range(len(ids))
        fullest, most = max(self._held.items(), key=lambda each: each[1])
        asks = []
        for number, (token, want) in enumerate(zip(ids, wants, strict=True)):
            parent = None if number in self._held else fullest
            held = self._held.get(number, most)
            asks.append(Ask((*tokens[held:], token), held, want, number, parent))
        return tuple(asks)

    def took(self, number: int, length: int) -> None:
        """The candidate of this branch is the last of `length` tokens; on the others stands another in its place."""
        self._held |= dict.fromkeys(self._asked, length - 1)
        self._held[number] = length


class _Context:
    """The states of all tokens so far, each of length 1."""

    def __init__(self, width: int, most: int) -> None:
        self._rows = np.empty((most, width), np.float32)
        self._count = 0

    @property
    def taken(self) -> States:
        """[tokens, width]."""
        return self._rows[: self._count]

    def add(self, states: States) -> None:
        """Those of the next tokens."""
        self._rows[self._count : self._count + len(states)] = states
        self._count += len(states)


def _prompt(task: Task, place: _Place) -> Generator[Ask, Any, tuple[_Context, Candidates]]:
    """Run all of it, so many rows at a time as an answer takes; and what the last row gives."""
    prompt, want = task.prompt, replace(place.want, every=True)
    context = _Context(task.hidden_size, len(prompt) + task.max_new_tokens)
    start, last = 0, len(prompt) - min(len(prompt), _rows(task, want))
    while start < last:
        stop = min(start + _rows(task, STATE), last)
        found = expect_candidates((yield Ask(tuple(prompt[start:stop]), start, replace(STATE, every=True))))
        context.add(_states(found))
        start = stop
    found = expect_candidates((yield Ask(tuple(prompt[last:]), last, want)))
    context.add(_states(found))
    return context, last_row(found)


def _rows(task: Task, want: Want) -> int:
    """How many rows a hop answers at once."""
    row_bytes = 4 * task.hidden_size + 8 * (want.top or task.vocab_size) + 4 * len(want.ids) + 4
    return max(1, min(ROWS, max(limits.ANSWER_BYTES, 8 * task.vocab_size) // row_bytes))


def _states(found: Candidates) -> States:
    """Those of each row, of length 1; zeros stay what they are."""
    if found.states is None:
        raise LocalProtocolError("states were asked for")
    length = np.linalg.norm(found.states.astype(np.float64), axis=1, keepdims=True)
    return (found.states / np.where(length > 0, length, 1)).astype(np.float32)


def probabilities(row: Row) -> NDArray[np.float64]:
    """Of the ids of a row, of what the processors leave: those that are not seen count for what they may be."""
    mass = np.exp(row.scores.astype(np.float64) - float(row.scores[0]))
    shares: NDArray[np.float64] = mass / (mass.sum() + sum(row.tail) / 2)
    return shares
