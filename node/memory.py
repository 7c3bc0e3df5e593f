"""What is free of the machine's memory, and what a node takes of it."""

from __future__ import annotations

from typing import Final

import psutil

# Of the memory that is free, what a node that chooses its own span takes for weights: the rest is for KV caches, for
# the activations of long prompts, and for whoever owns the machine.
_WEIGHTS_SHARE: Final = 0.6


def free_bytes() -> int:
    """Memory that nobody uses, or that the system gives back when asked."""
    return int(psutil.virtual_memory().available)


def for_weights(memory_bytes: int) -> int:
    """What of so much may be taken for weights, by a node that has the choice."""
    return int(_WEIGHTS_SHARE * memory_bytes)
