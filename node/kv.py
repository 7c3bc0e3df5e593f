"""How many tokens of KV cache are promised to whom. Pure: counts tokens, holds none."""

from __future__ import annotations

from protocol.errors import CacheFull

# Above this a budget is no longer a limit: 256 sessions of a thousand tokens.
MOST_DEFAULT_TOKENS = 256 * 1024


class KvBudget:
    """A number of tokens, of which sessions reserve as many as they may grow to."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._reserved = 0

    @property
    def free(self) -> int:
        """Tokens that nobody has reserved."""
        return self.total - self._reserved

    def reserve(self, tokens: int) -> Reservation:
        """Promise `tokens`. Raises: CacheFull, if they are not free."""
        if tokens > self.free:
            raise CacheFull(f"{tokens} tokens asked for, {self.free} of {self.total} are free")
        self._reserved += tokens
        return Reservation(self, tokens)

    def _take_back(self, tokens: int) -> None:
        self._reserved -= tokens


class Reservation:
    """Tokens promised to one session, until they are released."""

    def __init__(self, budget: KvBudget, tokens: int) -> None:
        self._budget: KvBudget | None = budget
        self._tokens = tokens

    def release(self) -> None:
        """Give them back. Safe to call twice."""
        if self._budget is not None:
            self._budget._take_back(self._tokens)
            self._budget = None


def default_kv_tokens(free_bytes: int, kv_bytes_per_token: int, row_bytes: int) -> int:
    """A budget that takes a quarter of the memory that is free once the weights are loaded.

    A token costs its keys and values and a row of the journal. At least one token, so that a machine that is
    nearly full says so by refusing sessions.
    """
    per_token = kv_bytes_per_token + row_bytes
    return max(1, min(MOST_DEFAULT_TOKENS, free_bytes // 4 // per_token))
