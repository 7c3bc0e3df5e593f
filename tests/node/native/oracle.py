"""docs/numerics.md once more, in numpy and as slowly as it reads: written from the page, not from the kernels."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from node.native.blocks import BlockWeights
from node.native.packed import Kind, Matrix, Norm
from node.native.shape import Experts, Shape

F = np.float32
Array = Any  # an array of numpy or one number of it


def fma(a: Array, b: Array, c: Array) -> Array:
    """a b + c rounded once: the exact product in doubles, the sum rounded to odd, then to a float."""
    product, c = np.asarray(a, np.float64) * np.asarray(b, np.float64), np.asarray(c, np.float64)
    total = np.asarray(product + c)
    back = total - product
    error = (product - (total - back)) + (c - back)
    bits = np.broadcast_to(total, error.shape).copy().view(np.int64)
    inexact = (error != 0) & (bits & 1 == 0)
    bits += np.where(inexact, np.where((error > 0) == (total > 0), 1, -1), 0)
    return bits.view(np.float64).astype(F)


def over_lanes(values: Array) -> Array:
    """Sums over the last axis, by 16 lanes."""
    lanes = np.zeros((*values.shape[:-1], 16), F)
    for i in range(values.shape[-1]):
        lanes[..., i % 16] += values[..., i]
    return folded(lanes)


def folded(lanes: Array) -> Array:
    """The sum of 16 lanes."""
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
    result: Array = lanes[..., 0]
    return result


def exp(x: Array) -> Array:
    """e^x."""
    x = np.clip(np.asarray(x, F), F(-86), F(86))
    shift = F(1.5 * 2**23)
    n = fma(x, F(float.fromhex("0x1.715476p+0")), shift) - shift
    r = fma(n, F(-0.693145751953125), x)
    r = fma(n, F(-float.fromhex("0x1.7f7d1cp-20")), r)
    p = np.full_like(r, F(1 / 5040))
    for c in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1, 1):
        p = fma(p, r, F(c))
    return np.ldexp(p, n.astype(np.int32))


def logistic(x: Array) -> Array:
    """1 / (1 + e^-x)."""
    return F(1) / (F(1) + exp(F(0) - x))


def activation(kind: int, x: Array) -> Array:
    """SiLU, GELU, or the square of what is positive."""
    if kind == 0:
        return np.asarray(x * logistic(x))
    if kind == 2:
        return np.asarray(np.where(x > 0, x, F(0)) ** 2)
    return np.asarray(x * logistic(F(1.5957691216057308) * fma(x * x * x, F(0.044715), x)))


def tanh(x: Array) -> Array:
    """By its series near 0, else by e^(-2|x|)."""
    z = x * x
    p = np.full_like(x, F(-1382 / 155925))
    for c in (62 / 2835, -17 / 315, 2 / 15, -1 / 3, 1):
        p = fma(p, z, F(c))
    u = exp(F(-2) * np.abs(x))
    return np.where(np.abs(x) < F(0.25), x * p, np.copysign((F(1) - u) / (F(1) + u), x))


def bent(x: Array, cap: float) -> Array:
    """Within the cap; 0: as it is."""
    return F(cap) * tanh(x / F(cap)) if cap else x


def sine_cosine(angle: Array) -> tuple[Array, Array]:
    """Of doubles, as floats."""
    big = 1.5 * 2.0**52
    n = (angle * (2 / math.pi) + big) - big
    parts = (float.fromhex(h) for h in ("0x1.921fb544p+0", "0x1.0b4611a6p-34", "0x1.3198a2e037073p-69"))
    r = angle
    for part in parts:
        r = r - n * part
    z = r * r
    odd = even = np.zeros_like(r)
    for k in range(15, 0, -2):
        odd = odd * z + (-1) ** (k // 2) / math.factorial(k)
    for k in range(16, -1, -2):
        even = even * z + (-1) ** (k // 2) / math.factorial(k)
    odd = odd * r
    quarter = n.astype(np.int64) % 4
    sine = np.choose(quarter, [odd, even, -odd, -even])
    cosine = np.choose(quarter, [even, -odd, -even, odd])
    return sine.astype(F), cosine.astype(F)


def quantised(x: Array) -> tuple[Array, Array]:
    """Codes [rows, groups, 32] and scales [rows, groups]."""
    groups = x.reshape(len(x), -1, 32)
    most = np.abs(groups).max(2)
    some = most >= F(1e-30)
    scale = np.where(some, most / F(127), F(0))
    inverse = np.where(some, F(127) / np.where(some, most, F(1)), F(0))
    return np.rint(groups * inverse[..., None]).astype(np.int64), scale


def unpacked(matrix: Matrix) -> Any:
    """Plain weights [outs, ins]; or codes [outs, groups, 32], scales and minima [outs, groups]."""
    tiles, groups = matrix.padded // 16, matrix.ins // 32
    if matrix.kind == Kind.F32:
        return matrix.codes.view(F).reshape(tiles, matrix.ins, 16).transpose(0, 2, 1).reshape(-1, matrix.ins)
    if matrix.kind == Kind.BF16:
        wide = (matrix.codes.view(np.uint16).astype(np.uint32) << 16).view(F)
        return wide.reshape(tiles, matrix.ins, 16).transpose(0, 2, 1).reshape(-1, matrix.ins)
    lanes = matrix.scales.view(np.float16).astype(F).reshape(tiles, groups, -1, 16).transpose(2, 0, 3, 1)
    scales = lanes.reshape(len(lanes), -1, groups)
    if matrix.kind == Kind.INT8:
        codes = matrix.codes.reshape(tiles, groups, 8, 16, 4).transpose(0, 3, 1, 2, 4).astype(np.int64) - 128
        return codes.reshape(-1, groups, 32), scales[0], None
    both = matrix.codes.reshape(tiles, groups, 4, 16, 4).transpose(0, 3, 1, 2, 4)
    codes = np.stack((both & 15, both >> 4), axis=4)  # [tile, row, group, pair, low or high, 4]
    return codes.reshape(-1, groups, 32).astype(np.int64), scales[0], scales[1]


def product(matrix: Matrix, x: Array) -> Array:
    """W x + bias for rows x."""
    y = np.zeros((len(x), matrix.padded), F)
    if matrix.kind in (Kind.F32, Kind.BF16):
        weights = unpacked(matrix)
        for k in range(matrix.ins):
            y = fma(weights[None, :, k], x[:, None, k], y)
    else:
        codes, scales, minima = unpacked(matrix)
        q, s = quantised(x)
        for g in range(matrix.ins // 32):
            dots = np.einsum("ok,rk->ro", codes[:, g], q[:, g]).astype(F)
            y = fma(dots, scales[None, :, g] * s[:, None, g], y)
            if minima is not None:
                y = fma(minima[None, :, g], (s[:, g] * q[:, g].sum(1).astype(F))[:, None], y)
    return y if matrix.bias is None else y + matrix.bias


def norm(x: Array, weights: Norm, shape: Shape) -> Array:
    """A norm over the last axis."""
    if shape.centred:
        x = x - (over_lanes(x) / F(x.shape[-1]))[..., None]
    lanes = np.zeros((*x.shape[:-1], 16), F)
    for i in range(x.shape[-1]):
        lanes[..., i % 16] = fma(x[..., i], x[..., i], lanes[..., i % 16])
    mean = folded(lanes) / F(x.shape[-1])
    y = np.asarray((x * (F(1) / np.sqrt(mean + F(shape.epsilon)))[..., None]) * weights.weight)
    return y if weights.bias is None else y + weights.bias


def turned(shape: Shape, table: int, x: Array) -> Array:
    """Heads [rows, heads, dim] at positions 0 and up."""
    if table < 0:
        return x
    half, rotary = shape.rotary_dims // 2, shape.rotary_tables[table]
    angles = np.arange(len(x), dtype=np.float64)[:, None] * rotary.frequencies.astype(np.float64)
    sine, cosine = sine_cosine(angles)
    s, c = (sine * F(rotary.gain))[:, None], (cosine * F(rotary.gain))[:, None]
    first, second = x[..., :half], x[..., half : 2 * half]
    out = x.copy()
    out[..., :half] = fma(first, c, second * -s)
    out[..., half : 2 * half] = fma(second, c, first * s)
    return out


def attended(
    shape: Shape, window: int, sink: Array | None, query: Array, keys: Array, values: Array
) -> Array:
    """The last of the positions, of a query that sees so many."""
    position = len(keys) - 1
    first = max(0, position - window + 1) if window else 0
    top: Array = None
    total: Array = None
    out: Array = None
    for base in range(first // 256 * 256, position + 1, 256):
        seen = np.arange(max(base, first), min(base + 256, position + 1))
        scores = np.zeros(len(seen), F)
        for d in range(len(query)):
            scores = fma(keys[seen, d], query[d], scores)
        scores = bent(scores, shape.score_cap)
        m = scores.max()
        e = exp(scores - m)
        spread = np.zeros(256, F)
        spread[seen - base] = e
        part, o = over_lanes(spread), np.zeros(values.shape[1], F)
        for i, t in enumerate(seen):
            o = fma(values[t], e[i], o)
        if out is None:
            top, total, out = m, part, o
        else:
            new = max(top, m)
            a, b = exp(top - new), exp(m - new)
            top, total, out = new, fma(total, a, part * b), fma(out, a, o * b)
    assert out is not None
    share = F(1) / total
    if sink is not None:
        new = max(top, sink)
        share = exp(top - new) * (F(1) / fma(total, exp(top - new), exp(sink - new)))
    return np.asarray(out * share + F(0))


def halved(x: Array, kv_bytes: int) -> Array:
    """As pages keep it."""
    return np.clip(x, -65504, 65504).astype(np.float16).astype(F) if kv_bytes == 2 else x


def normed(x: Array, weights: Norm | None, shape: Shape) -> Array:
    """Where there is a norm."""
    return x if weights is None else norm(x, weights, shape)


def heads_of(
    shape: Shape, index: int, weights: BlockWeights, kv_bytes: int, x: Array
) -> tuple[Array, Array, Array]:
    """Queries, keys and values [rows, heads, numbers], as they meet."""
    queries, keys, dim = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.head_dim

    def headed(value: Array, weights: Norm | None) -> Array:
        return value if shape.wide_norms else normed(value, weights, shape)

    def clipped(value: Array) -> Array:
        return np.clip(value, -F(shape.clip), F(shape.clip)) if shape.clip else value

    qkv = product(weights.qkv, x)
    q, k, v = qkv[:, :queries], qkv[:, queries : queries + keys], qkv[:, queries + keys :]
    if shape.wide_norms:
        q, k = normed(q, weights.query_norm, shape), normed(k, weights.key_norm, shape)
    q, k, v = (part.reshape(len(x), -1, dim) for part in (q, k, v))
    early, late = (headed, lambda value, _: value)[:: -1 if shape.late_norms else 1]
    q, k, v = clipped(early(q, weights.query_norm)), clipped(early(k, weights.key_norm)), clipped(v)
    q = late(turned(shape, shape.rotary_of[index], q), weights.query_norm) * F(shape.query_scale)
    k = late(turned(shape, shape.rotary_of[index], k), weights.key_norm)
    return q, halved(k, kv_bytes), halved(v, kv_bytes)


def latents_of(
    shape: Shape, index: int, weights: BlockWeights, kv_bytes: int, x: Array
) -> tuple[Array, Array, Array]:
    """The same where all heads meet the latents, which are their values too."""
    latent, table, qkv = shape.latent, shape.rotary_of[index], product(weights.qkv, x)
    assert latent is not None
    assert weights.key_up is not None
    inner, entering = replace(shape, epsilon=latent.epsilon), qkv.shape[1] - shape.head_dim
    q, kept, key = np.split(qkv, [entering, entering + latent.size], axis=1)
    if weights.query_up is not None:
        q = product(weights.query_up, normed(q, weights.query_norm, inner))
    q = q.reshape(len(x), shape.heads, -1)
    own, rest = q[..., : latent.own] * F(shape.query_scale), q[..., latent.own :]
    rest = turned(shape, table, rest) * F(shape.query_scale)
    taken = by_head(weights.key_up, own)
    key = np.concatenate((normed(kept, weights.key_norm, inner), turned(shape, table, key[:, None])[:, 0]), 1)
    key = halved(key, kv_bytes)[:, None]
    return np.concatenate((taken, rest), 2), key, key[..., : latent.size]


def by_head(matrix: Matrix, x: Array) -> Array:
    """Of each head the product of its rows of the matrix and what it has in x [rows, heads, ins]."""
    heads = x.shape[1]
    outs = matrix.padded // heads
    every = np.stack([product(matrix, x[:, h]) for h in range(heads)], axis=1)
    return np.stack([every[:, h, h * outs : (h + 1) * outs] for h in range(heads)], axis=1)


def block(shape: Shape, index: int, weights: BlockWeights, kv_bytes: int, x: Array) -> Array:
    """Rows of one session, from position 0 on, through one block."""
    entering = normed(x, weights.attention_norm, shape)
    meet = heads_of if shape.latent is None else latents_of
    q, k, v = meet(shape, index, weights, kv_bytes, entering)
    group = shape.heads // shape.kv_heads
    context = np.stack(
        [
            np.stack(
                [
                    attended(
                        shape,
                        shape.windows[index],
                        None if weights.sinks is None else weights.sinks[h],
                        q[t, h],
                        k[: t + 1, h // group],
                        v[: t + 1, h // group],
                    )
                    for h in range(shape.heads)
                ]
            )
            for t in range(len(x))
        ]
    )
    if weights.value_up is not None:
        context = by_head(weights.value_up, context)
    scale = F(shape.residual_scale)
    left = product(weights.out, context.reshape(len(x), -1))
    x = fma(normed(left, weights.attention_post_norm, shape), scale, x)
    entering = entering if shape.side_by_side else normed(x, weights.mlp_norm, shape)
    return fma(normed(through(shape, weights, entering), weights.mlp_post_norm, shape), scale, x)


def through(shape: Shape, weights: BlockWeights, x: Array) -> Array:
    """A block's MLP, or its experts."""
    if not weights.experts:
        return mlp(shape, weights.gate_up, weights.down, x)
    assert shape.experts is not None
    assert weights.router is not None
    logits = product(weights.router, x)[:, : shape.experts.count]
    y = np.stack([routed(shape, weights, row, row_logits) for row, row_logits in zip(x, logits, strict=True)])
    if weights.gate_up is not None:
        share = F(1)
        if weights.shared_gate is not None:
            share = logistic(product(weights.shared_gate, x)[:, :1])
        y = fma(mlp(shape, weights.gate_up, weights.down, x), share, y)
    return y


def routed(shape: Shape, weights: BlockWeights, x: Array, logits: Array) -> Array:
    """One row through the experts that are best, of equal ones the first."""
    assert shape.experts is not None
    alone = shape.experts.lone_shares
    e = logistic(logits) if alone else exp(logits - logits.max())
    marks = e if alone else logits
    if weights.choice_bias is not None:
        marks = marks + weights.choice_bias
    marks = allowed(shape.experts, marks)
    chosen = sorted(np.argsort(-marks, kind="stable")[: shape.experts.per_row])
    counted = e.copy()
    if shape.experts.whole_shares:
        counted[np.setdiff1d(np.arange(len(e)), chosen)] = 0
    divided = shape.experts.whole_shares or not alone
    total, y = over_lanes(counted) if divided else F(1), np.zeros_like(x)
    for expert in chosen:
        opening, closing = weights.experts[expert]
        y = fma(mlp(shape, opening, closing, x[None])[0], e[expert] / total * F(shape.experts.scale), y)
    return y


def allowed(experts: Experts, marks: Array) -> Array:
    """Marks, without those of experts in groups that are not among the best."""
    best = np.sort(marks.reshape(experts.groups, -1), axis=1)[:, ::-1]
    of_groups = best[:, 0] + best[:, 1] if experts.lone_shares and experts.groups > 1 else best[:, 0]
    open_ = np.argsort(-of_groups, kind="stable")[: experts.groups_per_row]
    groups = np.arange(len(marks)) // best.shape[1]
    return np.where(np.isin(groups, open_), marks, -np.inf)


def mlp(shape: Shape, opening: Matrix | None, closing: Matrix | None, x: Array) -> Array:
    """Gates and what they let through, or neither; then back."""
    assert opening is not None
    assert closing is not None
    both = product(opening, x)
    first, second = both[:, : closing.ins], both[:, closing.ins :]
    if shape.activation == 3:
        low = np.minimum(first, F(7))
        return product(closing, low * logistic(F(1.702) * low) * (np.clip(second, F(-7), F(7)) + F(1)))
    inner = activation(shape.activation, first)
    return product(closing, inner * second if shape.gated else inner)
