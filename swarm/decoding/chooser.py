"""From the tokens so far to what is asked, and from what comes back to a token."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from protocol.candidates import Candidates, Want
from protocol.errors import LocalProtocolError
from swarm.decoding.asks import Ask, Task, Token
from swarm.decoding.choose import choose_best, choose_sampled
from swarm.decoding.edits import Edits, edits_of
from swarm.decoding.row import Row, best_of_row, read_row, want_row
from swarm.decoding.sampling import Sampling

# Candidates asked for where nothing bounds the choice: 8 KiB, and little mass is left past them.
OPEN_WIDTH: Final = 1024
# Beyond top-k: equal logits at the k-th place, common in bf16, are all left by top-k and so must be seen.
TIES: Final = 32
# Where some are taken out, and only the best that is left is looked for: it is rarely further down.
SIFTED_WIDTH: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a token is to be chosen: what the processors do there, and what is asked of the head for it."""

    edits: Edits
    want: Want
    u: float  # what is drawn there, in [0, 1)


class Chooser:
    """Chooses the tokens of one sequence; asks for as many candidates as are likely to do, else for everything.

    `stream` tells the random numbers of sequences with the same seed apart.
    """

    def __init__(self, task: Task, stream: int = 0) -> None:
        self._task = task
        self._sampling = task.sampling
        seed = self._sampling.seed
        self._rng = np.random.Generator(
            np.random.PCG64(seed if not stream or seed is None else [seed, stream])
        )
        self._drawn: list[float] = []  # by the number of tokens before, for whoever comes to a place again
        self._flat = False  # the last distribution was too flat for the usual number of candidates

    def place(self, tokens: Sequence[int]) -> Place:
        """The place after `tokens`, the same each time. Raises: ConfigError, where nothing may follow them."""
        task, sampling = self._task, self._sampling
        edits = edits_of(sampling, tokens, len(task.prompt), task.eos)
        width = 0 if self._flat else usual_width(sampling, task.top_logprobs)
        if width and edits.sifts:
            # What is not enough at first costs all that came before where caches do not go back.
            sifted = SIFTED_WIDTH if sampling.greedy else OPEN_WIDTH
            width = max(width, sifted) if task.goes_back() else 0
        u = 0.0 if sampling.greedy else self._draw(len(tokens) - len(task.prompt))
        want = want_row(edits, width, sampling.divisor, task.vocab_size, again=True)
        return Place(edits, want, u)

    def _draw(self, number: int) -> float:
        while len(self._drawn) <= number:
            self._drawn.append(float(self._rng.random()))
        return self._drawn[number]

    def again(self, place: Place) -> Place:
        """The same place and draw, with everything asked for that is left: by name, where that is little."""
        edits, temperature = place.edits.known(), place.want.temperature
        if not edits.by_name:
            return Place(edits, Want(top=0, temperature=temperature), place.u)
        width = max(1, self._task.top_logprobs)
        return Place(edits, want_row(edits, width, temperature, self._task.vocab_size), place.u)

    def pick(self, place: Place, found: Candidates, at: int = 0) -> Token | None:
        """The token there; None, if row `at` of what was found does not settle it, which everything does."""
        row = self.row(place, found, at)
        sampling = self._sampling
        choice = choose_best(row) if sampling.greedy else choose_sampled(row, sampling, place.u)
        if choice is None:
            if not place.want.top or place.edits.by_name:
                raise LocalProtocolError("the whole vocabulary did not settle a token")
            return None
        self._flat = not sampling.top_k and choice.depth > OPEN_WIDTH
        return Token(
            choice.token, choice.logprob, best_of_row(found, place.want, self._task.top_logprobs, at)
        )

    def row(self, place: Place, found: Candidates, at: int = 0) -> Row:
        """The same row before anything is cut or drawn."""
        return read_row(found, place.want, place.edits, self._task.vocab_size, at=at)

    def choose(
        self, tokens: tuple[int, ...], position: int, all_tokens: Sequence[int], branch: int = 0
    ) -> Generator[Ask, Any, Token]:
        """Run `tokens`, the last of `all_tokens`, and choose the one after them."""
        place = self.place(all_tokens)
        token = self.pick(place, expect_candidates((yield Ask(tokens, position, place.want, branch))))
        if token is None:
            token = yield from self.settle(place, all_tokens, branch)
        return token

    def settle(self, place: Place, all_tokens: Sequence[int], branch: int = 0) -> Generator[Ask, Any, Token]:
        """The token after `all_tokens`, of everything there is: the last of them one position back, once more."""
        place = self.again(place)
        last = Ask((all_tokens[-1],), len(all_tokens) - 1, place.want, branch)
        token = self.pick(place, expect_candidates((yield last)))
        assert token is not None
        return token


def usual_width(sampling: Sampling, top_logprobs: int) -> int:
    """How many of the best candidates are likely to settle a choice; 0: only all of them do."""
    if sampling.greedy:
        width = 1
    elif sampling.top_k:
        width = sampling.top_k + TIES
    elif sampling.typical_p < 1 and sampling.top_p == 1 and not sampling.min_p:
        return 0
    else:
        width = OPEN_WIDTH
    return max(width, top_logprobs)


def expect_candidates(told: Any) -> Candidates:
    """Raises: LocalProtocolError, if an Ask was answered by anything else."""
    if not isinstance(told, Candidates):
        raise LocalProtocolError("an Ask is answered with candidates")
    return told
