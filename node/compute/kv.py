"""How much memory sessions may take together. Pure."""

from __future__ import annotations

from typing import Final

from node.compute.interfaces import GROWTH_TOKENS, Engine
from protocol import limits
from protocol.tensors import ITEM_BYTES

# Above this a budget is no longer a limit: 256 sessions of a thousand tokens.
MOST_DEFAULT_TOKENS: Final = 256 * 1024
# Of what sessions computed, so much is kept for those that begin alike: on a large machine hundreds of conversations.
MOST_PREFIX_BYTES: Final = 4096 * limits.MIB
# Python's objects of a row in the journal, where each row came as a step of its own (measured).
ENTRY_BYTES: Final = 1024


def token_bytes(kv_bytes_per_token: int, row_bytes: int) -> int:
    """Memory that a token of a session costs: its keys and values and an entry of the journal."""
    return kv_bytes_per_token + row_bytes + ENTRY_BYTES


def token_bytes_at(engine: Engine) -> int:
    """The same, at a node of this engine."""
    return token_bytes(engine.kv_bytes_per_token(), engine.hidden_size * ITEM_BYTES[engine.dtype])


def default_kv_tokens(free_bytes: int, bytes_per_token: int, kept_bytes: int = 0) -> int:
    """A budget that takes a quarter of the memory that is free once the weights are loaded, and `kept_bytes` besides.

    At least one token, so that a machine that is nearly full says so by refusing sessions.
    """
    own = min(MOST_DEFAULT_TOKENS, free_bytes // 4 // bytes_per_token)
    return max(1, own + kept_bytes // bytes_per_token)


def prefix_bytes(free_bytes: int) -> int:
    """What may be kept of what sessions computed, as long as they do not need it: an eighth of the free memory."""
    return min(MOST_PREFIX_BYTES, free_bytes // 8)


def buffer_bytes(free_bytes: int) -> int:
    """What sessions may have in motion together: an eighth of the free memory, within bounds."""
    return max(limits.BUFFER_BYTES_LEAST, min(limits.BUFFER_BYTES_MOST, free_bytes // 8))


def room_for(tokens: int, most: int) -> int:
    """What a session of so many tokens, and of at most `most`, takes."""
    return min(most, -(-tokens // GROWTH_TOKENS) * GROWTH_TOKENS)
