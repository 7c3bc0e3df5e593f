"""The client of scripts/bench/fetch.py, on a host of its own: decodes, and tells when each token came."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import swarm

PROMPT = list(range(1, 17))
say = partial(print, flush=True)


async def main(count: int, addrs: list[str]) -> None:
    """One answer of `count` tokens, greedily."""
    async with (
        swarm.connect(*addrs, remember=False) as client,
        client.session(max_tokens=len(PROMPT) + count) as session,
    ):
        feed = PROMPT
        for _ in range(count):
            candidates = await session.step(feed)
            assert candidates is not None
            feed = [int(candidates.ids[0, 0])]
            say("token", time.perf_counter())
    say("over")


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2:])
