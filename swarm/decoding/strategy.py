"""Greedy decoding and sampling as a generator: it yields Ask and is sent Candidates, and yields Emit.

It does not know who answers: a swarm, a model on this machine, or a list in a test.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from protocol import limits
from protocol.candidates import Candidates, Want
from protocol.errors import ConfigError, LocalProtocolError
from swarm.decoding.choose import Choice, choose_best, choose_sampled
from swarm.decoding.row import read_row
from swarm.decoding.sampling import Sampling

# Candidates asked for where nothing bounds the choice: 8 KiB, and little mass is left past them.
OPEN_WIDTH: Final = 1024
# Beyond top-k: equal logits at the k-th place, common in bf16, are all left by top-k and so must be seen.
TIES: Final = 32


@dataclass(frozen=True, slots=True)
class Ask:
    """Run `tokens` at `position` and send back the candidates after the last of them.

    The position may be one before the end of what was asked already: the same place again, with another want.
    """

    tokens: tuple[int, ...]
    position: int
    want: Want


@dataclass(frozen=True, slots=True)
class Emit:
    """The next token. `logprob` is that of logits / temperature, before penalties and truncation."""

    token: int
    logprob: float | None


def decode(
    prompt: Sequence[int],
    *,
    cached: int = 0,
    sampling: Sampling,
    eos: frozenset[int],
    max_new_tokens: int,
    vocab_size: int,
) -> Generator[Ask | Emit, Candidates | None, str]:
    """Continue `prompt`; return "eos" or "length".

    Each Ask is answered by sending Candidates, each Emit by sending None. The first Ask starts after the
    `cached` tokens that the session's caches hold, or at the prompt's last token if they hold all. The token
    that ends the text is emitted too. The last token emitted was never asked about, so caches end before it.

    What is drawn depends on the seed and the logits alone: not on the route, nor on how many candidates came.
    Raises: ConfigError, for a prompt that is empty or not of this vocabulary. An answer is what was asked for.
    """
    tokens = [int(token) for token in prompt]
    if not tokens:
        raise ConfigError("the prompt is empty: there is nothing to continue")
    if not 0 <= min(tokens) <= max(tokens) < vocab_size:
        raise ConfigError(f"the prompt has a token outside the model's vocabulary of {vocab_size}")
    chooser = _Chooser(sampling, vocab_size)
    window = set(tokens) if sampling.repetition_penalty != 1 else set()
    done = min(cached, len(tokens) - 1)
    for _ in range(max_new_tokens):
        choice = yield from chooser.choose(tuple(tokens[done:]), done, tuple(sorted(window)))
        done = len(tokens)
        yield Emit(choice.token, choice.logprob)
        if choice.token in eos:
            return "eos"
        tokens.append(choice.token)
        if sampling.repetition_penalty != 1:
            window.add(choice.token)
    return "length"


class _Chooser:
    """Asks for as many candidates as are likely to do, and for the whole vocabulary where they do not."""

    def __init__(self, sampling: Sampling, vocab_size: int) -> None:
        self._sampling = sampling
        self._vocab_size = vocab_size
        self._rng = np.random.Generator(np.random.PCG64(sampling.seed))
        self._flat = False  # the last distribution was too flat for the usual number of candidates

    def choose(
        self, tokens: tuple[int, ...], position: int, window: tuple[int, ...]
    ) -> Generator[Ask, Candidates | None, Choice]:
        want = self._want(window, whole=self._flat)
        u = 0.0 if self._sampling.greedy else float(self._rng.random())
        choice = yield from self._try(tokens, position, want, window, u)
        if choice is None:
            # The same place once more: the last token one position back, which every hop rolls back to.
            want = self._want(window, whole=True)
            choice = yield from self._try(tokens[-1:], position + len(tokens) - 1, want, window, u)
        if choice is None:
            raise LocalProtocolError("the whole vocabulary did not settle a token")
        self._flat = not self._sampling.top_k and choice.depth > OPEN_WIDTH
        return choice

    def _want(self, window: tuple[int, ...], whole: bool) -> Want:
        sampling = self._sampling
        if sampling.greedy:
            # One more than can be penalised: so the best id that no penalty touches is always among them.
            width = len(window) + 1
        elif sampling.top_k:
            width = sampling.top_k + len(window) + TIES
        else:
            width = OPEN_WIDTH
        if whole or width >= self._vocab_size or len(window) > limits.ASKED_IDS:
            return Want(top=0, temperature=sampling.divisor)
        return Want(top=width, ids=window, temperature=sampling.divisor)

    def _try(
        self, tokens: tuple[int, ...], position: int, want: Want, window: tuple[int, ...], u: float
    ) -> Generator[Ask, Candidates | None, Choice | None]:
        candidates = yield Ask(tokens, position, want)
        if candidates is None:
            raise LocalProtocolError("an Ask is answered with candidates")
        row = read_row(candidates, want, window, self._sampling, self._vocab_size)
        return choose_best(row) if self._sampling.greedy else choose_sampled(row, self._sampling, u)
