"""DeepSeek's attention in the kernels against heads of the same size with keys and values of their own.

    python scripts/bench/latents.py [--quick] [--json FILE]

Two random blocks in int8 with DeepSeek-V2-Lite's attention (hidden 2,048, 16 heads of 128 and 64 numbers, latents of
512) and a small MLP, on one thread: what a row of a prompt takes in pieces of 256, and what a decoded token takes,
behind so many positions. The best of several turns, in which both take theirs one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from common import arguments, report, seconds

from node.native.blocks import Blocks
from node.native.cache import PagedCache
from node.native.kernel import Kernel
from node.native.known_answer import made_up_block, made_up_shape, numbers
from node.native.load import load_kernel
from node.native.packed import Kind
from node.native.shape import Latent, RotaryTable, Shape
from protocol.model import Span

BLOCKS = 2
HEADS = 16
PIECE = 256
CONTEXTS = (128, 1024, 4096)
KV_BYTES = 2


def shape(latents: bool) -> Shape:
    """The same heads in either way."""
    turning = RotaryTable(np.cumprod(np.full(32, 0.75, np.float32), dtype=np.float32))
    own: dict[str, Any] = {"kv_heads": HEADS, "head_dim": 192}
    if latents:
        own = {"kv_heads": 1, "head_dim": 576, "latent": Latent(512, 0, 128, 128, 1e-6)}
    return made_up_shape(
        blocks=BLOCKS,
        hidden=2048,
        heads=HEADS,
        intermediate=1408,
        query_scale=192**-0.5,
        rotary_dims=64,
        rotary_tables=(turning,),
        rotary_of=(0,) * BLOCKS,
        windows=(0,) * BLOCKS,
        **own,
    )


class Session:
    """Some blocks and one session of theirs."""

    def __init__(self, kernel: Kernel, of: Shape) -> None:
        weights = [made_up_block(kernel, of, Kind.INT8, seed) for seed in range(BLOCKS)]
        self._blocks = Blocks(kernel, of, 0, weights, KV_BYTES)
        self._states = numbers(1, PIECE * of.hidden).reshape(PIECE, of.hidden)
        self._cache = PagedCache(Span(1, 1 + BLOCKS), BLOCKS, of.kv_row_bytes(KV_BYTES))
        self._cache.reserve(0, max(CONTEXTS) + PIECE)

    def rows(self, position: int, count: int) -> Callable[[], None]:
        """So many rows from a position on, to be run."""
        states = self._states[:count].copy()
        return lambda: self._blocks.run(states, [(self._cache, position, count)], 0, BLOCKS)

    def fill(self) -> None:
        """Everything that is seen later."""
        for position in range(0, max(CONTEXTS), PIECE):
            self.rows(position, PIECE)()


def main() -> None:
    """Measure and report."""
    options = arguments(__doc__ or "").parse_args()
    turns = 3 if options.quick else 9
    kernel = load_kernel(1)
    sessions = {name: Session(kernel, shape(name == "latents")) for name in ("latents", "heads")}
    for session in sessions.values():
        session.fill()
    rows: list[dict[str, Any]] = []
    for what, count in (("prefill", PIECE), ("decode", 1)):
        for context in CONTEXTS:
            best = dict.fromkeys(sessions, float("inf"))
            for _ in range(turns):
                for name, session in sessions.items():
                    best[name] = min(best[name], seconds(session.rows(context, count)))
            each = {f"{name}_us": 1e6 * took / count / BLOCKS for name, took in best.items()}
            ratio = best["heads"] / best["latents"]
            rows.append({"what": what, "context": context, **each, "ratio": ratio})
    summary = {f"{row['what']}_ratio_{row['context']}": row["ratio"] for row in rows}
    kept = [shape(latents).kv_row_bytes(KV_BYTES) for latents in (True, False)]
    report({**summary, "kv_ratio": kept[1] / kept[0]}, rows, options.json)


if __name__ == "__main__":
    main()
