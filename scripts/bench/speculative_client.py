"""The client of scripts/bench/speculative.py, on a host of its own: decodes in each way by turns, and tells how fast.

Each line is an answer: its text, the way, tokens in a second and for each step, how many of its drafted tokens held,
and, of those that a model drafted wrongly, how many times the second best would have been right.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import swarm
from node.whole import WholeModel
from protocol.candidates import Want
from swarm.branches import Model
from swarm.decoding import DRAFT, Ask, Begin, Decoding, Speculative, Strategy, Task, Token
from swarm.request import Request

WARM_UP = 8  # tokens
REPEATED = "1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2,"


@dataclass
class Seen:
    """What became of drafted tokens, by their places."""

    held: int = 0
    missed: int = 0
    second: int = 0
    drafted: dict[int, int] = field(default_factory=dict)
    seconds: dict[int, int] = field(default_factory=dict)

    def begun(self, ask: Ask, length: int) -> None:
        """A step is sent where so many tokens are known."""
        for place, token in enumerate(ask.tokens, ask.position):
            if place >= length:
                self.drafted[place] = token

    def came(self, token: int, place: int) -> None:
        """The model's own token."""
        drafted = self.drafted.pop(place, None)
        self.held += drafted == token
        if drafted not in (None, token):
            self.missed += 1
            self.second += self.seconds.get(place) == token
            self.drafted.clear()


def watched(strategy: Strategy, task: Task, seen: Seen) -> Decoding:
    """What the strategy says, and is told; the model that drafts is asked for its second best as well."""
    running = strategy.decode(task)
    length, told = len(task.prompt), None
    while True:
        try:
            said = running.send(told)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        if isinstance(said, Ask) and said.branch == DRAFT:
            told = yield replace(said, want=Want(top=2))
            seen.seconds[said.position + len(said.tokens)] = int(told.ids[0, 1])
            continue
        if isinstance(said, Begin):
            seen.begun(said.ask, length)
        elif isinstance(said, Token):
            seen.came(said.id, length)
            length += 1
        told = yield said


@dataclass(frozen=True)
class Watched(Speculative):
    """The strategy, watched."""

    seen: Seen = field(default_factory=Seen)

    def decode(self, task: Task) -> Decoding:
        """See `Strategy`."""
        return watched(Speculative(self.drafts, self.run, self.ahead), task, self.seen)


async def answer(
    client: swarm.Client, ids: list[int], eos: Any, new: int, strategy: Strategy, draft: Model | None
) -> dict[str, Any]:
    """One answer, in a session of its own."""
    request = Request(new, strategy=strategy, draft=draft, eos=eos)
    async with client.session(max_tokens=len(ids) + new) as session:
        generation = client.generate(ids, session=session, request=request)
        async for _ in generation:
            pass
        found = generation.answer
        told = {"speed": found.tokens_per_s, "per_step": len(found.tokens) / session.steps}
    seen = strategy.seen if isinstance(strategy, Watched) else Seen()
    judged = seen.held + seen.missed
    told["acceptance"] = seen.held / judged if judged else 0.0
    told["second"] = seen.second / seen.missed if seen.missed else 0.0
    return told


async def main(turns: int, tokens: int, draft: str, ahead: int, addrs: list[str]) -> None:
    """Every text in every way, so many times; without a model that drafts if its name is empty."""
    model = await trio.to_thread.run_sync(WholeModel.open, draft) if draft else None
    async with swarm.connect(*addrs, remember=False, wait_s=30.0) as client:
        question = [{"role": "user", "content": "Count from 3 to 40."}]
        texts = {
            "counting": (await client.text.encode_chat(question), None if draft else ()),
            # What the model says to this goes in circles, as lists and code of larger ones do.
            "repetitive": (await client.text.encode(REPEATED), ()),
        }
        for turn in range(turns + 1):
            for text, (ids, eos) in texts.items():
                ways: dict[str, tuple[Strategy, Model | None]] = {"plain": (swarm.Greedy(), None)}
                if model is not None:
                    ways["draft"] = (Watched(run=0, ahead=ahead), model)
                ways["ngram"] = (Watched(ahead=ahead), None)
                for way, (strategy, drafts) in ways.items():
                    told = await answer(client, ids, eos, tokens if turn else WARM_UP, strategy, drafts)
                    if turn:
                        print(json.dumps({"text": text, "way": way, **told}), flush=True)
    print("over", flush=True)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5:])
