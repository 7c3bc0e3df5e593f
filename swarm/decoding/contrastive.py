"""Contrastive decoding (Li et al. 2022): of what an expert finds plausible, what it finds likelier than an amateur.

Both are asked at once. The expert's plausible tokens are few, and nearly always among the amateur's best; where one
is not, the amateur is asked for it by name.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from protocol import limits
from protocol.candidates import Candidates, Want
from protocol.errors import ConfigError, LocalProtocolError
from swarm.decoding.asks import AMATEUR, Ask, Decoding, Ending, Task, Together, Token
from swarm.decoding.edits import Edits, edits_of
from swarm.decoding.row import Row, best_of_row, read_row, want_row
from swarm.decoding.sampling import Sampling

# Candidates asked of each: with the usual alpha a handful are plausible.
WIDTH: Final = 64


@dataclass(frozen=True, slots=True)
class Contrastive:
    """Takes the token of the greatest log-ratio of the expert's probability to the amateur's, or draws by it.

    alpha                only tokens at least so probable, times the expert's best, are plausible
    head_parameter       the expert's so many best are plausible, in place of what alpha says; 0 is off
    amateur_temperature  the amateur's logits are divided by it

    The expert is the client that is asked, the amateur that of the request. Processors change the expert's scores.
    """

    name: ClassVar[str] = "contrastive"
    needs_amateur: ClassVar[bool | None] = True

    alpha: float = 0.1
    head_parameter: int = 0
    amateur_temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ConfigError(f"alpha {self.alpha}: it is above 0 and at most 1")
        if not 0 <= self.head_parameter <= limits.ASKED_IDS:
            raise ConfigError(f"head_parameter {self.head_parameter}: it is 0 (off) to {limits.ASKED_IDS}")
        if not 0.01 <= self.amateur_temperature <= 100:
            raise ConfigError(f"amateur_temperature {self.amateur_temperature}: it is from 0.01 to 100")

    @property
    def sessions(self) -> int:
        """See `Strategy`."""
        return 1

    def check(self, sampling: Sampling) -> None:
        """See `Strategy`."""
        cuts = [name for name in sampling.drawing if name != "temperature"]
        if cuts:
            raise ConfigError(f"{self.name} says by alpha what is plausible: leave out {', '.join(cuts)}")

    def decode(self, task: Task) -> Decoding:
        """See `Strategy`."""
        return _contrast(task, self)


def _contrast(task: Task, how: Contrastive) -> Decoding:
    if task.amateur_vocab is None:
        raise LocalProtocolError("contrastive decoding has an amateur beside branch 0")
    rng = np.random.Generator(np.random.PCG64(task.sampling.seed))
    tokens, expert_has, amateur_has = list(task.prompt), task.begin, 0
    for _ in range(task.max_new_tokens):
        u = 0.0 if task.sampling.greedy else float(rng.random())
        place = _Place(task, how, tokens)
        found = yield Together((place.ask(expert_has), place.ask_amateur(amateur_has)))
        token = yield from place.settle(found[0], found[1], u)
        expert_has = amateur_has = len(tokens)
        tokens.append(token.id)
        yield token
        if token.id in task.eos:
            return Ending("eos")
    return Ending("length")


class _Place:
    """Where a token is to be chosen."""

    def __init__(self, task: Task, how: Contrastive, tokens: Sequence[int]) -> None:
        self._task = task
        self._how = how
        self._tokens = tokens
        self._edits: Edits = edits_of(task.sampling, tokens, len(task.prompt), task.eos)
        width = max(WIDTH, how.head_parameter, task.top_logprobs)
        self._want = want_row(self._edits, width, 1.0, task.vocab_size)
        most = WIDTH if self._amateur_vocab > WIDTH else 0
        self._amateur_want = Want(top=most, temperature=how.amateur_temperature)

    @property
    def _amateur_vocab(self) -> int:
        assert self._task.amateur_vocab is not None
        return self._task.amateur_vocab

    def ask(self, position: int) -> Ask:
        """Of the expert."""
        return Ask(tuple(self._tokens[position:]), position, self._want)

    def ask_amateur(self, position: int) -> Ask:
        """Of the amateur."""
        return Ask(tuple(self._tokens[position:]), position, self._amateur_want, AMATEUR)

    def settle(self, expert: Candidates, amateur: Candidates, u: float) -> Generator[Ask, Any, Token]:
        """The token; asks once more at the same place for what is lacking."""
        row = read_row(expert, self._want, self._edits, self._task.vocab_size)
        count = self._plausible(row)
        if count is None:
            self._want = Want(top=0)
            expert = yield self.ask(len(self._tokens) - 1)
            row = read_row(expert, self._want, self._edits, self._task.vocab_size)
            count = self._plausible(row)
            assert count is not None
        # A vocabulary may be padded further than the other: what only one of them has is not compared.
        entries = np.flatnonzero(row.ids[:count] < self._amateur_vocab)
        if not len(entries):
            raise ConfigError("no plausible token is one of the amateur's")
        ids = row.ids[entries]
        lacking = np.setdiff1d(ids, amateur.ids[0])
        by_name = None
        if len(lacking):
            self._amateur_want = _by_name(lacking, self._how.amateur_temperature)
            by_name = yield self.ask_amateur(len(self._tokens) - 1)
        theirs = _logprobs(ids, amateur, lacking, by_name, self._how.amateur_temperature)
        at = int(entries[_choose(ids, row.scores[entries] - theirs, self._task.sampling, u)])
        best = best_of_row(expert, self._want, self._task.top_logprobs)
        return Token(int(row.ids[at]), float(row.logprobs[at]), best)

    def _plausible(self, row: Row) -> int | None:
        """How many of the first entries are plausible; None, if unseen ones may be."""
        if self._how.head_parameter:
            count = min(self._how.head_parameter, len(row.scores))
            kept = int((row.scores[:count] > -np.inf).sum())
            return kept if row.whole or row.scores[count - 1] >= row.bound else None
        least = float(row.scores[0]) + math.log(self._how.alpha)
        return int((row.scores >= least).sum()) if row.bound < least else None


def _by_name(ids: NDArray[np.int64], temperature: float) -> Want:
    if len(ids) > limits.ASKED_IDS:
        return Want(top=0, temperature=temperature)
    return Want(top=1, ids=tuple(ids.tolist()), temperature=temperature)


def _logprobs(
    ids: NDArray[np.int64],
    best: Candidates,
    lacking: NDArray[np.int64],
    by_name: Candidates | None,
    temperature: float,
) -> NDArray[np.float64]:
    """The amateur's log-probabilities of `ids`."""
    known = dict(zip(best.ids[0].tolist(), best.logits[0].tolist(), strict=True))
    if by_name is not None:
        whole = by_name.ids.shape[1] > 1
        names = by_name.ids[0] if whole else lacking
        known |= dict(
            zip(names.tolist(), (by_name.logits if whole else by_name.asked)[0].tolist(), strict=True)
        )
    return np.array([known[token] for token in ids.tolist()]) / temperature - float(best.lse[0])


def _choose(ids: NDArray[np.int64], ratios: NDArray[np.float64], sampling: Sampling, u: float) -> int:
    """The place of the greatest ratio, of equal ones the lowest id; or what is drawn at `u`."""
    order = np.lexsort((ids, -ratios))
    if sampling.greedy:
        return int(order[0])
    mass = np.cumsum(np.exp((ratios[order] - ratios[order[0]]) / sampling.temperature))
    return int(order[min(int(np.searchsorted(mass, u * mass[-1], side="right")), len(order) - 1)])
