"""What a client tells its user while it works, beside the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from protocol.model import Span


@dataclass(frozen=True, slots=True)
class Rerouted:
    """Stages moved to other peers in mid-session; `seconds` from noticing the failure to going on."""

    lost: str  # the peer that failed
    stages: Span
    reason: str
    replacements: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Bridged:
    """Two hops cannot reach each other; the client now carries what passes between them."""

    peers: tuple[str, str]
    reason: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nobody serves some stages; the client keeps looking for up to `seconds` more."""

    missing: tuple[tuple[int, int], ...]
    text: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Noticed:
    """Something the user may want to know: one line."""

    text: str


Event = Rerouted | Bridged | Waiting | Noticed
OnEvent = Callable[[Event], None]
