"""What the kernels have to know of a model: sizes and scales, nothing of its family or its files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class RotaryTable:
    """Radians per position of each pair of numbers, and what cosines and sines are multiplied by."""

    frequencies: NDArray[np.float32]
    gain: float = 1.0


@dataclass(frozen=True, slots=True)
class Experts:
    """MLPs of which each row goes through the few that a router chooses.

    per_row        so many
    whole_shares   what they count adds up to 1; else it is what is left of 1 with all the others
    blocks         of each block whether it has them, or one MLP for all
    lone_shares    what an expert counts is told by its own logit before that, and a bias may have a say in the choice
    scale          shares are multiplied by it in the end
    shared         numbers inside the MLP that every row goes through as well, 0 for none
    groups         they are in so many groups of neighbours, and a row's are all of the best groups_per_row
    """

    count: int
    per_row: int
    intermediate: int
    whole_shares: bool
    blocks: tuple[bool, ...]
    shared: int = 0
    lone_shares: bool = False
    scale: float = 1.0
    groups: int = 1
    groups_per_row: int = 1


@dataclass(frozen=True, slots=True)
class Latent:
    """What stands for the keys and values of all heads at a position, and how queries and values go by way of it.

    size         numbers of the latent itself; behind it lie those of the one key that turns, `head_dim` together
    query_rank   numbers that queries are made of, 0: of the states
    own          numbers of a head's query that meet its share of the latent; the others turn
    value        numbers of a head's value
    epsilon      of the norm of latents, and of what queries are made of
    """

    size: int
    query_rank: int
    own: int
    value: int
    epsilon: float


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """One model.

    activation     0 SiLU, 1 GELU in its tanh form, 2 the square of what is positive, 3 SiLU as gpt-oss bounds it
    rotary_dims    numbers of a head that turn, from the first on
    rotary_of      of each block the table, -1 where nothing turns
    windows        of each block the positions that it sees, 0 for all
    wide_norms     norms of queries and keys are over all heads at once
    late_norms     they come after the rotation
    gated          gates are multiplied by what they let through; else there are none
    centred        norms take the mean away first
    side_by_side   the MLP reads what attention reads
    score_cap      scores are bent to stay within it, 0 for none; logits_cap alike
    reach          the longest sequence of which positions alone say how far things turn, 0 for any
    sinks          heads have a score of what is not there
    clip           queries, keys and values are cut off there, 0 for none
    latent         keys and values are not kept but what they are made of, as the only head of keys
    """

    blocks: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    activation: int
    epsilon: float
    query_scale: float
    residual_scale: float
    embedding_scale: float
    logits_divisor: float
    rotary_dims: int
    rotary_tables: tuple[RotaryTable, ...]
    rotary_of: tuple[int, ...]
    windows: tuple[int, ...]
    wide_norms: bool = False
    late_norms: bool = False
    gated: bool = True
    centred: bool = False
    side_by_side: bool = False
    score_cap: float = 0.0
    logits_cap: float = 0.0
    clip: float = 0.0
    experts: Experts | None = None
    sinks: bool = False
    reach: int = 0
    latent: Latent | None = None

    def kv_row_bytes(self, kv_bytes: int) -> int:
        """Memory that one position takes in one block."""
        return (2 if self.latent is None else 1) * self.kv_heads * self.head_dim * kv_bytes
