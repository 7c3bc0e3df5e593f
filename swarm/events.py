"""What a client tells its user while it works, beside the answer.

`session` is the id of the session that it happened to, so that answers at the same time can be told apart; None where
it is the client's own affair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from protocol.model import Span
from protocol.numerics import Numerics

# Why a hop was given up: it ended or did not answer; broke the rules; had no room; did not get on; failed over what
# another hop sent it.
Fault = Literal["lost", "broke_rules", "full", "slow", "misled"]


@dataclass(frozen=True, slots=True)
class Rerouted:
    """Stages moved to other peers in mid-session; `seconds` from noticing the failure to going on."""

    session: str
    lost: str  # the peer that failed
    stages: Span
    reason: str
    replacements: tuple[str, ...]
    seconds: float
    fault: Fault = "lost"


@dataclass(frozen=True, slots=True)
class Altered:
    """Replacements compute some stages of a session otherwise than before: what follows may differ from what would
    have.
    """

    session: str
    stages: Span
    before: Numerics
    after: Numerics


@dataclass(frozen=True, slots=True)
class Bridged:
    """Two hops cannot reach each other; the client now carries what passes between them."""

    session: str
    peers: tuple[str, str]
    reason: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nobody serves some stages, or any model yet; whoever waits keeps looking for up to `seconds` more."""

    session: str | None
    missing: tuple[tuple[int, int], ...]
    text: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Noticed:
    """Something about the swarm that the user may want to know: one line."""

    text: str
    session: None = None


Event = Rerouted | Altered | Bridged | Waiting | Noticed
OnEvent = Callable[[Event], None]
