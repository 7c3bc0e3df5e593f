"""How much memory sessions may take together. Pure."""

from __future__ import annotations

from typing import Final

from node.compute.interfaces import GROWTH_TOKENS
from protocol import limits

# Above this a budget is no longer a limit: 256 sessions of a thousand tokens.
MOST_DEFAULT_TOKENS: Final = 256 * 1024
# Of what sessions computed, so much is kept for those that begin alike: on a large machine hundreds of conversations.
MOST_PREFIX_BYTES: Final = 4096 * limits.MIB
# Python's objects of a row in the journal, where each row came as a step of its own (measured).
ENTRY_BYTES: Final = 1024


def default_kv_tokens(free_bytes: int, kv_bytes_per_token: int, row_bytes: int) -> int:
    """A budget that takes a quarter of the memory that is free once the weights are loaded.

    A token costs its keys and values and an entry of the journal. At least one token, so that a machine that is
    nearly full says so by refusing sessions.
    """
    per_token = kv_bytes_per_token + row_bytes + ENTRY_BYTES
    return max(1, min(MOST_DEFAULT_TOKENS, free_bytes // 4 // per_token))


def prefix_bytes(free_bytes: int) -> int:
    """What may be kept of what sessions computed: an eighth of the free memory, which sessions do not get."""
    return min(MOST_PREFIX_BYTES, free_bytes // 8)


def buffer_bytes(free_bytes: int) -> int:
    """What sessions may have in motion together: an eighth of the free memory, within bounds."""
    return max(limits.BUFFER_BYTES_LEAST, min(limits.BUFFER_BYTES_MOST, free_bytes // 8))


def room_for(tokens: int, most: int) -> int:
    """What a session of so many tokens, and of at most `most`, takes."""
    return min(most, -(-tokens // GROWTH_TOKENS) * GROWTH_TOKENS)
