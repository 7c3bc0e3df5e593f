"""What a model takes of machines' memory in one precision, and how many machines hold it. Pure."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

from node.compute.kv import default_kv_tokens, prefix_bytes, token_bytes


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory, in bytes.

    stages    of the weights of each stage alone: the embedding, the blocks, the head
    kv        of the keys and values of one token in each block
    row       of the hidden states of one token between nodes
    shares_pages   whether sessions may have what is kept of others
    """

    stages: tuple[int, ...]
    kv: tuple[int, ...]
    row: int
    shares_pages: bool = False

    @property
    def blocks(self) -> int:
        """How many the model has."""
        return len(self.stages) - 2

    def weights(self, layers: tuple[int, int]) -> int:
        """Of these blocks, half-open, with the ends that adjoin them."""
        first, stop = layers
        return sum(self.stages[1 + first - (first == 0) : 1 + stop + (stop == self.blocks)])

    def machines(self, weights_bytes: int) -> int | None:
        """The least number of machines, each with so much for weights, that hold every stage between them.

        None: there is a stage that none of them could hold.
        """
        if max(self.stages) > weights_bytes:
            return None
        count, used = 1, 0
        for size in self.stages:
            if used + size > weights_bytes:
                count, used = count + 1, 0
            used += size
        return count

    def most_layers(self, weights_bytes: int) -> tuple[int, int] | None:
        """The longest run of blocks that fits with the ends adjoining it, the first of several; None if none does."""
        blocks = self.blocks
        before = [0, *accumulate(self.stages[1:-1])]
        best: tuple[int, int] | None = None
        for first in range(blocks):
            room = weights_bytes + before[first] - (self.stages[0] if first == 0 else 0)
            stop = bisect_right(before, room) - 1
            if stop == blocks and before[blocks] + self.stages[-1] > room:
                stop -= 1
            if stop > first and (best is None or stop - first > best[1] - best[0]):
                best = first, stop
        return best

    def tokens(self, layers: tuple[int, int], memory_bytes: int) -> int:
        """For how many tokens of all sessions a machine has room by default, with these blocks on it."""
        first, stop = layers
        free_bytes = max(0, memory_bytes - self.weights(layers))
        kept_bytes = prefix_bytes(free_bytes) if self.shares_pages else 0
        return default_kv_tokens(free_bytes, token_bytes(sum(self.kv[first:stop]), self.row), kept_bytes)
