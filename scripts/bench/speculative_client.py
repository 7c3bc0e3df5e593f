"""The client of scripts/bench/speculative.py, on a host of its own: decodes in each way by turns, and tells how fast.

Each line is an answer: its text, the way, tokens in a second, and tokens for each step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import swarm
from node.whole import WholeModel
from swarm.branches import Model
from swarm.cli.demo_nodes import shipped_model
from swarm.decoding import Strategy
from swarm.request import Request

WARM_UP = 8  # tokens


async def main(turns: int, tokens: int, addrs: list[str]) -> None:
    """Every text in every way, so many times."""
    draft = await trio.to_thread.run_sync(WholeModel.open, str(shipped_model().with_name("tiny-draft")))
    ways: dict[str, tuple[Strategy | str, Model | None]] = {
        "plain": ("greedy", None),
        "draft": (swarm.Speculative(run=0), draft),
        "ngram": (swarm.Speculative(), None),
    }
    async with swarm.connect(*addrs, remember=False, wait_s=30.0) as client:
        encode = client.text.encode_chat
        texts = {
            "counting": (await encode([{"role": "user", "content": "Count from 3 to 40."}]), None),
            # What the model says to this goes in circles, as lists and code of larger ones do.
            "repetitive": (await client.text.encode("1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2,"), ()),
        }
        for turn in range(turns + 1):
            for text, (ids, eos) in texts.items():
                for way, (strategy, model) in ways.items():
                    new = tokens if turn else WARM_UP
                    request = Request(new, strategy=strategy, draft=model, eos=eos)
                    async with client.session(max_tokens=len(ids) + new) as session:
                        generation = client.generate(ids, session=session, request=request)
                        async for _ in generation:
                            pass
                        answer = generation.answer
                        told = {"text": text, "way": way, "speed": answer.tokens_per_s,
                                "per_step": len(answer.tokens) / session.steps}  # fmt: skip
                    if turn:
                        print(json.dumps(told), flush=True)
    print("over", flush=True)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
