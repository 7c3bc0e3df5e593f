"""What there is of an answer, and what it took."""

from __future__ import annotations

from dataclasses import dataclass

from swarm.decoding import Token
from swarm.events import Altered, Rerouted
from swarm.routing.route import Route


@dataclass(frozen=True, slots=True)
class Piece:
    """The next text of an answer, and the tokens that came since the piece before; the last of them completed it."""

    text: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class HopCost:
    """What a hop says that a step cost it."""

    peer: str
    queue_ms: float
    compute_ms: float


@dataclass(frozen=True, slots=True)
class Settled:
    """One token of an answer, as soon as it is settled.

    seconds  since the answer was first awaited
    hops     what hops of the answer's own session told of their steps since the token before, in the order of both
    """

    token: Token
    seconds: float
    hops: tuple[HopCost, ...]


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another answer that was found beside it; `score` is what the strategy went by, and higher is better."""

    text: str
    chosen: tuple[Token, ...]
    finish_reason: str
    score: float

    @property
    def tokens(self) -> tuple[int, ...]:
        """Its ids, the one that ended it included."""
        return tuple(token.id for token in self.chosen)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as far as it came and what it took. Times in seconds."""

    text: str
    chosen: tuple[Token, ...]  # with log-probabilities; the one that ended it included
    prompt_tokens: int
    finish_reason: str  # "eos", "length", "stop", "until", "time" or "cancelled"
    seconds: float
    ttft_s: float  # from the request to the first token
    route: Route  # the latest; without hops, if there was none yet
    reroutes: tuple[Rerouted, ...]
    altered: tuple[Altered, ...] = ()  # what was computed otherwise from some token on
    score: float | None = None  # of a strategy that compares answers
    alternatives: tuple[Alternative, ...] = ()  # the others of those, best first

    @property
    def tokens(self) -> tuple[int, ...]:
        """Its ids, the one that ended it included."""
        return tuple(token.id for token in self.chosen)

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed: tokens after the first over the time after the first."""
        decoding_s = self.seconds - self.ttft_s
        return (len(self.chosen) - 1) / decoding_s if len(self.chosen) > 1 and decoding_s > 0 else 0.0

    @property
    def peers(self) -> tuple[str, ...]:
        """Everybody who worked on it, lost ones included."""
        lost = [reroute.lost for reroute in self.reroutes]
        return tuple(dict.fromkeys([*lost, *self.route.peers]))
