"""How a node is now, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

from node.compute.counts import Counts


@dataclass(frozen=True, slots=True)
class Figures:
    """One look. `counts` goes on counting."""

    counts: Counts
    serving: bool
    sessions: int
    waiting: int  # steps that have not begun, or not wholly
    kv_tokens: int
    kv_free: int
    kept_bytes: int  # of what sessions computed, for those that begin alike
    peers_met: int
    peers_known: int  # whose announcements are held
    exchanged: int  # maps, with peers
    not_exchanged: int
