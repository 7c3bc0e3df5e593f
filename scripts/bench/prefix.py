"""The same prompt a second time, by another client: the time to the first token, and what crosses between hops.

    python scripts/bench/prefix.py [--quick] [--json FILE] [--plot FILE.png]

Three node processes serve a random Llama of a 0.5B model's shape in int8 (a smaller one with --quick). Each turn a
client puts a new prompt of 1,024 tokens, and another client, over connections of its own, puts the same; then one
whose prompt is new in its last quarter. All three go on for some tokens, and the first two have to say the same.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trio
from common import HALF_BILLION, Shape, arguments, local_swarm, report, spans
from plots import draw_bars

import swarm
from node.compute.prefix import GRAIN
from protocol.candidates import NOTHING, Want
from protocol.codec import encode
from protocol.messages import Known, Step
from protocol.tensors import from_numpy
from swarm.session.session import PREFILL_CHUNK

SMALL = Shape(layers=6, hidden=512, heads=8, kv_heads=2, intermediate=1536, vocabulary=4096)
HOPS = 3
PROMPT_TOKENS = 1024
ANSWER_TOKENS = 8
# What sessions leave is in place once their caches are closed; nobody tells a client when that is.
SETTLE_S = 0.5


@dataclass(frozen=True)
class Asked:
    """An answer, and the seconds to its first token."""

    tokens: list[int]
    ttft_s: float


async def ask(addr: str, prompt: Sequence[int]) -> Asked:
    """By a client of its own, in a session that is open before the time begins."""
    async with (
        swarm.connect(addr, remember=False) as client,
        client.session(max_tokens=PROMPT_TOKENS + ANSWER_TOKENS) as session,
    ):
        assert len(session.hops) == HOPS, session.route
        feed, found, ttft_s = list(prompt), list[int](), 0.0
        begin = time.perf_counter()
        for _ in range(ANSWER_TOKENS):
            candidates = await session.step(feed)
            assert candidates is not None
            ttft_s = ttft_s or time.perf_counter() - begin
            feed = [int(candidates.ids[0, 0])]
            found += feed
    await trio.sleep(SETTLE_S)
    return Asked(found, ttft_s)


async def turn(addr: str, rng: random.Random, vocabulary: int) -> dict[str, float]:
    """A prompt that is new, the same again, and one that begins alike."""

    def words(count: int) -> list[int]:
        return [rng.randrange(1, vocabulary) for _ in range(count)]

    prompt = words(PROMPT_TOKENS)
    part = PROMPT_TOKENS * 3 // 4
    new, again = await ask(addr, prompt), await ask(addr, prompt)
    assert new.tokens == again.tokens, (new, again)
    alike = await ask(addr, prompt[:part] + words(PROMPT_TOKENS - part))
    return {"new_s": new.ttft_s, "again_s": again.ttft_s, "alike_s": alike.ttft_s}


def link_bytes(hidden: int) -> tuple[int, int]:
    """What a prompt takes between two hops in frames: as states, and as it is named."""
    states = named = 0
    for start in range(0, PROMPT_TOKENS, PREFILL_CHUNK):
        last = start + PREFILL_CHUNK >= PROMPT_TOKENS
        want = Want(top=1) if last else NOTHING
        rows = from_numpy(np.zeros((PREFILL_CHUNK, hidden), np.float32))
        count = PREFILL_CHUNK - GRAIN * last
        rest = rows.row_slice(count, PREFILL_CHUNK) if last else None
        states += len(encode(Step(1, start, rows, want)))
        named += len(encode(Known(1, start, count, bytes(32), rest, want)))
    return states, named


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "", plot=True).parse_args()
    shape = SMALL if options.quick else HALF_BILLION
    rng, rows = random.Random(0), list[dict[str, float]]()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "random"
        shape.write(model)
        with local_swarm(model, spans(shape.layers, HOPS), ["--quant", "int8", "--threads", "1"]) as running:
            for _ in range(3 if options.quick else 5):
                rows.append(trio.run(turn, running.join, rng, shape.vocabulary))
    states, named = link_bytes(shape.hidden)
    median = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    summary = {
        "ttft_ratio": statistics.median(row["new_s"] / row["again_s"] for row in rows),
        "ttft_new_s": median["new_s"],
        "ttft_again_s": median["again_s"],
        "ttft_ratio_alike": median["new_s"] / median["alike_s"],
        "link_kib_states": states / 1024,
        "link_kib_named": named / 1024,
    }
    report(summary, rows, options.json)
    if options.plot is not None:
        title = f"{PROMPT_TOKENS} tokens over {HOPS} hops, int8"
        names = {"new_s": "new", "alike_s": "three quarters known", "again_s": "known"}
        bars = {"to the first token": {shown: 1e3 * median[name] for name, shown in names.items()}}
        draw_bars(options.plot, title, "ms", bars)


if __name__ == "__main__":
    main()
