"""From `kill -9` of a node in use to the next token of the answer.

    python scripts/bench/recovery.py [--quick] [--json FILE]

Two nodes serve each half of a small random Llama. A thin client decodes through one of each; again and again one of
those in use is killed between two tokens, the next token is timed, and the node is started again.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import trio
from common import SMALL, arguments, local_swarm, report

import swarm
from tests.support.local_swarm import LocalSwarm

PROMPT = list(range(1, 65))
BEFORE, AFTER = 20, 5


async def one_kill(running: LocalSwarm, rng: random.Random) -> dict[str, object]:
    """Decode, kill a node in use, decode on; what it took."""
    async with (
        swarm.connect(running.join, remember=False) as client,
        client.session(max_tokens=256) as session,
    ):
        feed = PROMPT
        usual: list[float] = []
        for _ in range(BEFORE):
            usual.append(trio.current_time())
            feed = [await next_token(session, feed)]
        victim = rng.randrange(2)
        peer = session.hops[victim].peer
        node = next(node for node in running.nodes if node.peer == peer)
        node.process.kill9()
        killed = time.perf_counter()
        feed = [await next_token(session, feed)]
        recovery_s = time.perf_counter() - killed
        for _ in range(AFTER):
            feed = [await next_token(session, feed)]
        assert len(session.reroutes) == 1, session.reroutes
        token_s = statistics.median(b - a for a, b in pairwise(usual[1:]))
    await trio.to_thread.run_sync(running.restart, node)
    return {
        "hop": victim + 1,
        "tokens held": len(PROMPT) + BEFORE,
        "token_s": token_s,
        "recovery_s": recovery_s,
    }


async def next_token(session: swarm.Session, feed: list[int]) -> int:
    """The best next token."""
    candidates = await session.step(feed)
    assert candidates is not None
    return int(candidates.ids[0, 0])


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "").parse_args()
    rng = random.Random(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "random"
        SMALL.write(model)
        halves = ["0:2", "2:4", "0:2", "2:4"]
        with local_swarm(model, halves, ["--threads", "1"]) as running:
            for _ in range(5 if options.quick else 20):
                rows.append(trio.run(one_kill, running, rng))
    times = [float(row["recovery_s"]) for row in rows]  # type: ignore[arg-type]
    summary = {"recovery_s_median": statistics.median(times), "recovery_s_worst": max(times)}
    report(summary, rows, options.json)


if __name__ == "__main__":
    main()
