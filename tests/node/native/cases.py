"""Small models that use everything the kernels can do, and ways to run them that must not matter."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.native.blocks import Blocks, BlockWeights
from node.native.cache import PagedCache
from node.native.kernel import Kernel
from node.native.known_answer import made_up_block, made_up_shape, numbers
from node.native.packed import Kind
from node.native.shape import Experts, Latent, RotaryTable, Shape
from protocol.model import Span

States = NDArray[np.float32]


def table(pairs: int, base: float, gain: float = 1.0) -> RotaryTable:
    """Frequencies that fall by `base`."""
    return RotaryTable(np.cumprod(np.full(pairs, base, np.float32), dtype=np.float32), gain)


@dataclass(frozen=True)
class Case:
    """A model, a prompt, and how numbers are kept."""

    kind: Kind
    kv_bytes: int = 2
    tokens: int = 41
    every_norm: bool = False
    scale: float = 1.0  # of the states that come in
    outlier: float = 1.0  # what one of their numbers is multiplied by
    changed: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> Shape:
        """What the kernels know of it."""
        return made_up_shape(**self.changed)

    def weights(self, kernel: Kernel) -> list[BlockWeights]:
        """Packed by this kernel."""
        shape = self.shape
        return [
            made_up_block(kernel, shape, self.kind, seed, every_norm=self.every_norm)
            for seed in range(shape.blocks)
        ]

    def states(self) -> States:
        """[tokens, hidden]."""
        hidden = self.shape.hidden
        states = numbers(7, self.tokens * hidden, self.scale).reshape(self.tokens, hidden)
        states[:, 5] *= np.float32(self.outlier)
        return states


def latent(size: int, query_rank: int, own: int, value: int, *, heads: int, dim: int) -> dict[str, Any]:
    """What a shape has with latents; `dim` numbers of them and of the key that turns, of which eight do."""
    return {
        "latent": Latent(size, query_rank, own, value, 1e-5),
        "heads": heads,
        "kv_heads": 1,
        "head_dim": dim,
        "rotary_dims": 8,
        "rotary_tables": (table(4, 0.5, 1.1),),
    }


_ONE_BLOCK = {
    "blocks": 1,
    "rotary_of": (0,),
    "windows": (0,),
    "hidden": 64,
    "heads": 2,
    "kv_heads": 1,
    "intermediate": 64,
}
CASES = {
    "f32": Case(Kind.F32),
    "f32, f32 KV": Case(Kind.F32, kv_bytes=4),
    "bf16": Case(Kind.BF16, kv_bytes=4),
    "int8": Case(Kind.INT8),
    "int8, f32 KV": Case(Kind.INT8, kv_bytes=4),
    "int4": Case(Kind.INT4),
    "int8, every norm, GELU, part turns": Case(
        Kind.INT8,
        every_norm=True,
        changed={
            "activation": 1,
            "rotary_dims": 12,
            "rotary_tables": (table(6, 0.5),),
            "residual_scale": 0.4,
        },
    ),
    "f32, wide norms, two tables": Case(
        Kind.F32,
        every_norm=True,
        changed={
            "wide_norms": True,
            "rotary_tables": (table(16, 0.6), table(16, 0.8, 1.3)),
            "rotary_of": (0, 1, -1),
        },
    ),
    "int4, heads of 64": Case(
        Kind.INT4,
        changed={
            "head_dim": 64,
            "heads": 3,
            "kv_heads": 3,
            "query_scale": 1 / math.sqrt(64),
            "rotary_dims": 64,
            "rotary_tables": (table(32, 0.75),),
        },
    ),
    "int8, soft caps": Case(Kind.INT8, every_norm=True, changed={"activation": 1, "score_cap": 1.5}),
    "f32, soft caps": Case(Kind.F32, tokens=300, changed={**_ONE_BLOCK, "score_cap": 0.7}),
    "f32, centred norms, side by side, clipped": Case(
        Kind.F32, every_norm=True, changed={"centred": True, "side_by_side": True, "clip": 0.8}
    ),
    "int4, late norms, no gates, squares": Case(
        Kind.INT4, every_norm=True, changed={"late_norms": True, "gated": False, "activation": 2}
    ),
    "int8, experts beside an MLP": Case(
        Kind.INT8, changed={"experts": Experts(5, 2, 64, False, (True, False, True), shared=96)}
    ),
    "int4, experts with whole shares": Case(
        Kind.INT4, every_norm=True, changed={"experts": Experts(7, 3, 96, True, (True, True, True))}
    ),
    "int8, experts by themselves": Case(
        Kind.INT8,
        changed={
            "experts": Experts(5, 2, 32, True, (False, True, True), shared=32, lone_shares=True, scale=1.8)
        },
    ),
    "bf16, experts by themselves, shares as they are": Case(
        Kind.BF16,
        changed={"experts": Experts(6, 3, 32, False, (True, True, True), lone_shares=True)},
    ),
    "f32, experts, sinks, bounded": Case(
        Kind.F32,
        tokens=300,
        changed={
            **_ONE_BLOCK,
            "experts": Experts(6, 4, 32, True, (True,)),
            "sinks": True,
            "activation": 3,
        },
    ),
    "f32, latents": Case(Kind.F32, kv_bytes=4, changed=latent(96, 64, 32, 64, heads=5, dim=128)),
    "bf16, latents, queries of the states": Case(
        Kind.BF16, kv_bytes=4, changed=latent(64, 0, 64, 32, heads=3, dim=96)
    ),
    "int8, latents, experts in groups": Case(
        Kind.INT8,
        changed={
            **latent(160, 32, 32, 32, heads=18, dim=192),
            "experts": Experts(8, 3, 32, True, (False, True, True), 32, True, 2.5, 4, 2),
        },
    ),
    "int4, latents, experts in groups, shares of all": Case(
        Kind.INT4,
        changed={
            **latent(32, 0, 32, 32, heads=2, dim=64),
            "experts": Experts(9, 2, 32, False, (False, True, True), 64, False, 16.0, 3, 1),
        },
    ),
    "int8, latents over blocks of positions": Case(
        Kind.INT8, tokens=600, changed={**_ONE_BLOCK, **latent(64, 32, 32, 32, heads=17, dim=96)}
    ),
    "int8, outliers": Case(Kind.INT8, outlier=3e4),
    "int8, denormals": Case(Kind.INT8, scale=1e-38, tokens=21),
    "f32, denormals": Case(Kind.F32, scale=1e-40, tokens=21),
    "int8, three blocks of positions": Case(Kind.INT8, tokens=600, changed=_ONE_BLOCK),
    "f32, a window over blocks of positions": Case(
        Kind.F32, tokens=600, changed={**_ONE_BLOCK, "windows": (300,)}
    ),
}


@dataclass(frozen=True)
class Model:
    """A case's blocks on one kernel."""

    case: Case
    blocks: Blocks
    weights: list[BlockWeights]

    @classmethod
    def on(cls, kernel: Kernel, case: Case) -> Model:
        """Packed and ready."""
        weights = case.weights(kernel)
        return cls(case, Blocks(kernel, case.shape, 0, weights, case.kv_bytes), weights)

    def cache(self, tokens: int) -> PagedCache:
        """For a session of so many tokens, with room for them."""
        shape = self.case.shape
        cache = PagedCache(
            Span(1, 1 + shape.blocks), shape.blocks, shape.kv_row_bytes(self.case.kv_bytes), tokens
        )
        cache.reserve(0, tokens)
        return cache

    def run(self, states: States, chunk: int) -> States:
        """The states after all blocks, so many rows at a time."""
        out, cache = states.copy(), self.cache(len(states))
        for start in range(0, len(out), chunk):
            some = out[start : start + chunk]
            self.blocks.run(some, [(cache, start, len(some))], 0, len(self.blocks))
        return out


def whole(model: Model) -> States:
    """In one call."""
    return model.run(model.case.states(), model.case.tokens)


def in_chunks(model: Model) -> States:
    """Seven tokens at a time."""
    return model.run(model.case.states(), 7)


def one_by_one(model: Model) -> States:
    """A token at a time."""
    return model.run(model.case.states(), 1)


def block_by_block(model: Model) -> States:
    """As hops would run them, each with its own cache."""
    out, case = model.case.states(), model.case
    for index in range(len(model.blocks)):
        row_bytes = case.shape.kv_row_bytes(case.kv_bytes)
        cache = PagedCache(Span(1 + index, 2 + index), 1, row_bytes, case.tokens)
        cache.reserve(0, case.tokens)
        model.blocks.run(out, [(cache, 0, case.tokens)], index, 1)
    return out


def beside_others(model: Model) -> States:
    """Rows of four sessions in each call: the others are at other positions, and one prefills."""
    states = model.case.states()
    others = [(model.cache(len(states)), before) for before in (3, 9, 1)]
    for cache, before in others:
        model.blocks.run(states[:before].copy(), [(cache, 0, before)], 0, len(model.blocks))
    cache, half = model.cache(len(states)), len(states) // 2
    found = []
    for start, stop, counts in ((0, half, (1, 4, 1)), (half, len(states), (2, 1, 8))):
        rows, parts = [(cache, start, stop - start)], [states[start:stop]]
        for (other, before), count in zip(others, counts, strict=True):
            at = before if start == 0 else before + 4
            rows.append((other, at, count))
            parts.append(states[:count])
            if start == 0 and count < 4:  # positions in between have to be filled too
                model.blocks.run(states[:4].copy(), [(other, at, 4)], 0, len(model.blocks))
        batch = np.concatenate(parts)
        model.blocks.run(batch, rows, 0, len(model.blocks))
        found.append(batch[: stop - start])
    return np.concatenate(found)


WAYS: dict[str, Callable[[Model], States]] = {
    "whole": whole,
    "in chunks": in_chunks,
    "one by one": one_by_one,
    "block by block": block_by_block,
    "beside others": beside_others,
}


def digest(*arrays: NDArray[Any]) -> str:
    """16 hex digits of their bytes."""
    hasher = hashlib.sha256()
    for array in arrays:
        hasher.update(np.ascontiguousarray(array).tobytes())
    return hasher.hexdigest()[:16]


def packed_digest(weights: list[BlockWeights]) -> str:
    """Of all packed bytes."""
    matrices = [
        matrix
        for block in weights
        for matrix in (*block.matrices(), *chain.from_iterable(block.experts))
        if matrix is not None
    ]
    return digest(*(part for matrix in matrices for part in (matrix.codes, matrix.scales)))
