"""A small made-up model, and what it has to answer to the bit: an object that says anything else is not used."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from node.native.blocks import Blocks, BlockWeights
from node.native.cache import PagedCache
from node.native.kernel import Kernel
from node.native.packed import Kind, Matrix, Norm
from node.native.shape import Latent, RotaryTable, Shape
from protocol.model import Span

_TOKENS: Final = 21
# Of the states that leave the last block, by the kind of the weights and the bytes of a number in the caches.
ANSWERS: Final = {
    (Kind.F32, 2): "6901e3527717f820",
    (Kind.F32, 4): "8550ee0b1423b80b",
    (Kind.BF16, 2): "9316fd0220183ff2",
    (Kind.BF16, 4): "e4adc202cf61c870",
    (Kind.INT8, 2): "c6af87e7bd2d8fe3",
    (Kind.INT8, 4): "9d3ea5ba39b5214b",
    (Kind.INT4, 2): "c90ed902e5e8cee1",
    (Kind.INT4, 4): "273c4c0683d78410",
}
# The same of a model with latents.
LATENT_ANSWERS: Final = {(Kind.F32, 4): "435be272d795d0f7", (Kind.INT8, 2): "c9cacbf3ed295585"}
_LATENT: Final = {
    "kv_heads": 1,
    "head_dim": 96,
    "latent": Latent(size=64, query_rank=32, own=32, value=32, epsilon=1e-6),
}


def numbers(seed: int, count: int, scale: float = 1.0) -> NDArray[np.float32]:
    """Made-up numbers from -scale to scale, the same on every machine."""
    with np.errstate(over="ignore"):
        mixed = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    unit = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(40)).astype(np.float32) * np.float32(2**-23)
    return (unit - np.float32(1)) * np.float32(scale)


def made_up_shape(**changed: object) -> Shape:
    """A model of three small blocks: grouped queries, a window in one of them."""
    # Products one after the other: powers of a library are not the same everywhere.
    frequencies = np.cumprod(np.full(16, 0.6, np.float32), dtype=np.float32)
    fields: dict[str, object] = {
        "blocks": 3,
        "hidden": 96,
        "heads": 6,
        "kv_heads": 2,
        "head_dim": 32,
        "intermediate": 160,
        "vocabulary": 0,
        "activation": 0,
        "epsilon": 1e-6,
        "query_scale": 1 / math.sqrt(32),
        "residual_scale": 1.0,
        "embedding_scale": 1.0,
        "logits_divisor": 1.0,
        "rotary_dims": 32,
        "rotary_tables": (RotaryTable(frequencies),),
        "rotary_of": (0, 0, 0),
        "windows": (0, 11, 0),
        "wide_norms": False,
        **changed,
    }
    return Shape(**fields)  # type: ignore[arg-type]  # the names are those of the fields


def made_up_block(
    kernel: Kernel, shape: Shape, kind: Kind, seed: int, *, every_norm: bool = False
) -> BlockWeights:
    """A block with biases on queries, keys and values, and in experts."""
    seeds = iter(range(seed * 100, seed * 100 + 100))

    def matrix(outs: int, ins: int, bias: bool = False, kind: Kind = kind) -> Matrix:
        rows = numbers(next(seeds), outs * ins, 2 / math.sqrt(ins)).reshape(outs, ins)
        return kernel.pack(kind, (outs, ins), [rows], numbers(next(seeds), outs, 0.1) if bias else None)

    def norm(count: int) -> Norm:
        weight = 1 + numbers(next(seeds), count, 0.2)
        return Norm(weight, numbers(next(seeds), count, 0.1) if shape.centred else None)

    def mlp(intermediate: int, bias: bool = False) -> tuple[Matrix, Matrix]:
        opening = matrix((1 + shape.gated) * intermediate, shape.hidden, bias)
        return opening, matrix(shape.hidden, intermediate, bias)

    latent = shape.latent
    routed = shape.experts if shape.experts and shape.experts.blocks[seed] else None
    inside = shape.intermediate if routed is None else routed.shared
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    entering, leaving = queries + 2 * keys, queries
    heads = (queries, keys) if shape.wide_norms else (shape.head_dim, shape.head_dim)
    if latent is not None:
        queries = shape.heads * (latent.own + shape.head_dim - latent.size)
        entering, leaving = (latent.query_rank or queries) + keys, shape.heads * latent.value
        heads = latent.query_rank, latent.size
    qkv, out = matrix(entering, shape.hidden, bias=True), matrix(shape.hidden, leaving)
    gate_up, down = mlp(inside) if inside else (None, None)
    return BlockWeights(
        qkv=qkv,
        out=out,
        gate_up=gate_up,
        down=down,
        router=matrix(routed.count, shape.hidden, bias=True, kind=Kind.F32) if routed else None,
        shared_gate=matrix(1, shape.hidden, kind=Kind.F32) if routed and routed.shared else None,
        experts=tuple(mlp(routed.intermediate, bias=True) for _ in range(routed.count)) if routed else (),
        choice_bias=numbers(next(seeds), routed.count, 0.5) if routed and routed.lone_shares else None,
        sinks=numbers(next(seeds), shape.heads, 2.0) if shape.sinks else None,
        attention_norm=norm(shape.hidden),
        attention_post_norm=norm(shape.hidden) if every_norm else None,
        mlp_norm=norm(shape.hidden),
        mlp_post_norm=norm(shape.hidden) if every_norm else None,
        query_norm=norm(heads[0]) if (latent.query_rank if latent else every_norm) else None,
        key_norm=norm(heads[1]) if latent or every_norm else None,
        query_up=matrix(queries, latent.query_rank) if latent and latent.query_rank else None,
        key_up=matrix(shape.heads * latent.size, latent.own) if latent else None,
        value_up=matrix(shape.heads * latent.value, latent.size) if latent else None,
    )


def answer(kernel: Kernel, shape: Shape, kind: Kind, kv_bytes: int) -> str:
    """What the kernel makes of the small model: a prompt, then a token."""
    blocks = Blocks(
        kernel, shape, 0, [made_up_block(kernel, shape, kind, seed) for seed in range(3)], kv_bytes
    )
    cache = PagedCache(Span(1, 4), len(blocks), shape.kv_row_bytes(kv_bytes))
    cache.reserve(0, _TOKENS)
    states = numbers(999, _TOKENS * shape.hidden).reshape(_TOKENS, shape.hidden)
    blocks.run(states[:-1], [(cache, 0, _TOKENS - 1)], 0, len(blocks))
    blocks.run(states[-1:], [(cache, _TOKENS - 1, 1)], 0, len(blocks))
    return hashlib.sha256(states.tobytes()).hexdigest()[:16]


def wrong_answers(kernel: Kernel) -> Iterator[str]:
    """What this kernel computes otherwise than it should, in words."""
    for what, shape, answers in (
        ("heads", made_up_shape(), ANSWERS),
        ("latents", made_up_shape(**_LATENT), LATENT_ANSWERS),
    ):
        for (kind, kv_bytes), expected in answers.items():
            if (found := answer(kernel, shape, kind, kv_bytes)) != expected:
                said = f"{kernel.isa}, {what}, {kind.name}, {8 * kv_bytes} bits of KV"
                yield f"{said}: {found} instead of {expected}"
