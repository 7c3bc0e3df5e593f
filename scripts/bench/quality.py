"""What strategies give in each precision: speed, time to the first token, right answers, and memory, of a swarm.

    python scripts/bench/quality.py [--model PATH] [--amateur PATH] [--quick] [--plot FILE.png] [--json FILE]

In each precision three node processes serve the model, and a thin client asks the same questions by each strategy.
The model that ships is asked its own held-out questions, and is right where the answer is letter by letter. Any other
(a folder or a GGUF file) is asked those that everybody can answer (sums, neighbours, capitals), alone, and is right
where all words of the right answer are in its own that the question has not. *F1* is the overlap of the words of both
(SQuAD's). Drafts and the contrast come from an amateur on the client's machine: the small sibling of the shipped
model, or `--amateur`.

Perplexity is that of the right answers, or of prose as in `precision.py`. Memory is what the node processes took at
most while that strategy was used, together (Linux). What is drawn has a seed, so only times differ between runs.
`--quick` has f32 and int8, and few questions.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import trio
from common import arguments, local_swarm, report, spans
from plots import draw_bars
from precision import SHIPPED, Model, prose, questions, windows
from tokenizers import Tokenizer

import swarm
from node.native.checkpoint import NativeCheckpoint
from node.native.precision import F32
from node.whole import WholeModel
from scripts.tiny.scoring import held_out_chats
from scripts.tiny.task import Turn
from swarm.request import Request
from tests.support.local_swarm import LocalSwarm

NODES: Final = 3
PRECISIONS: Final = {"f32": "none", "int8": "int8", "int4": "int4"}
DRAWN: Final = swarm.Sampling(0.7, top_p=0.9, seed=1)
BEST: Final = swarm.Sampling()
# Of its name a strategy, its settings, and whether it has a model beside it.
STRATEGIES: Final[Mapping[str, tuple[swarm.Strategy, swarm.Sampling, bool]]] = {
    "greedy": (swarm.Greedy(), BEST, False),
    "sample": (swarm.Sample(), DRAWN, False),
    "runs": (swarm.Speculative(), BEST, False),
    "draft": (swarm.Speculative(), BEST, True),
    "4 beams": (swarm.BeamSearch(4), BEST, False),
    "best of 4": (swarm.BestOf(4), DRAWN, False),
    "contrastive": (swarm.Contrastive(), BEST, True),
    "search": (swarm.ContrastiveSearch(), BEST, False),
}
# Tasks of the shipped model of which anybody knows the answer, in words that the question has not.
GENERAL: Final = ("sum", "small sum", "difference", "next number", "previous number", "capitals", "calendar")
LONGEST_ANSWER: Final = 160
SHORT_ANSWER: Final = 40


@dataclass(frozen=True)
class Asked:
    """A question, with all that was said before it, and the right answer."""

    messages: list[dict[str, str]]
    answer: str
    literal: bool

    @classmethod
    def of(cls, turns: Sequence[Turn], *, literal: bool) -> Asked:
        """literal: only the very letters are right"""
        said: list[dict[str, str]] = []
        for turn in turns:
            said += [
                {"role": "user", "content": turn.question},
                {"role": "assistant", "content": turn.answer},
            ]
        return cls(said[:-1], turns[-1].answer, literal)

    def right(self, told: str) -> bool:
        """Whether that answers it."""
        if self.literal:
            return told == self.answer
        return set(words(self.answer)) - set(words(self.messages[-1]["content"])) <= set(words(told))

    def f1(self, told: str) -> float:
        """The harmonic mean of precision and recall of its words."""
        theirs, ours = Counter(words(told)), Counter(words(self.answer))
        return 2 * (theirs & ours).total() / max(1, theirs.total() + ours.total())


def words(text: str) -> list[str]:
    """Without case and punctuation."""
    return re.findall(r"\w+", text.lower())


def asked_of(shipped: bool, quick: bool) -> list[Asked]:
    """The same each time."""
    chats = held_out_chats(1 if quick else 4)
    if shipped:
        return [Asked.of(chat, literal=True) for chat in chats[:: 5 if quick else 1]]
    return [Asked.of(chat[-1:], literal=False) for chat in chats if chat[-1].task in GENERAL]


@dataclass(frozen=True)
class Told:
    """What came of one question."""

    right: bool
    f1: float
    tokens: int
    ttft_s: float
    seconds: float


async def ask(client: swarm.Client, session: swarm.Session, asked: Asked, request: Request) -> Told:
    """By one strategy, on a session that others were answered on before: nodes bound how often links are made."""
    ids = await client.text.encode_chat(asked.messages)
    generation = client.generate(ids, session=session, request=request)
    async for _ in generation:
        pass
    answer = generation.answer
    assert not generation.events, generation.events
    return Told(
        asked.right(answer.text), asked.f1(answer.text), len(answer.tokens), answer.ttft_s, answer.seconds
    )


async def by_strategy(
    running: LocalSwarm, questions: Sequence[Asked], amateur: WholeModel | None
) -> list[dict[str, Any]]:
    """A row for each strategy that there is what it needs for."""
    rows = []
    async with swarm.connect(running.join, remember=False, reuse=False) as client:
        assert len((await client.plan_route()).hops) == NODES
        most = LONGEST_ANSWER if questions[0].literal else SHORT_ANSWER
        for name, (strategy, sampling, beside) in STRATEGIES.items():
            if beside and amateur is None:
                continue
            request = Request(most, sampling, strategy)
            if beside:
                contrasts = isinstance(strategy, swarm.Contrastive)
                request = replace(request, **{"amateur" if contrasts else "draft": amateur})
            async with client.session() as session:
                await ask(client, session, questions[0], request)
                forget_peaks(running)
                told = [await ask(client, session, question, request) for question in questions]
            rows.append({"strategy": name, **summed(told), "peak_mib": peak_mib(running)})
    return rows


def summed(told: Sequence[Told]) -> dict[str, float]:
    """Of all answers of a strategy; tokens a second over whole answers, the prompt's time included."""
    return {
        "tokens_s": sum(each.tokens for each in told) / sum(each.seconds for each in told),
        "ttft_ms": 1000 * statistics.median(each.ttft_s for each in told),
        "right": statistics.mean(each.right for each in told),
        "f1": statistics.mean(each.f1 for each in told),
    }


def forget_peaks(running: LocalSwarm) -> None:
    """What nodes took at most is counted from now on."""
    for node in running.nodes:
        Path(f"/proc/{node.process.pid}/clear_refs").write_text("5")


def peak_mib(running: LocalSwarm) -> float:
    """What all nodes took at most, together."""
    found = 0
    for node in running.nodes:
        status = Path(f"/proc/{node.process.pid}/status").read_text()
        peak = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        assert peak is not None
        found += int(peak[1])
    return found / 1024


def perplexity(path: Path, precision: str, quick: bool) -> float:
    """Of the right answers to its own questions, or of prose."""
    tokenizer = Tokenizer.from_buffer(NativeCheckpoint.open(str(path), F32).file("tokenizer.json"))
    model = Model(path, precision, None)
    if path == SHIPPED:
        asked = questions(tokenizer, model.context, 1 if quick else 4)
        passages = [question.passage(tokenizer) for question in asked]
    else:
        passages = windows(tokenizer, prose(), model.context, 1 if quick else 4)
    return math.exp(np.concatenate([model.forced(passage).nats for passage in passages]).mean())


def measured(path: Path, amateur: WholeModel | None, quick: bool) -> Iterator[dict[str, Any]]:
    """The rows, precision by precision."""
    blocks = NativeCheckpoint.open(str(path), F32).manifest.blocks
    asked = asked_of(path == SHIPPED, quick)
    for precision, quant in PRECISIONS.items():
        if quick and precision == "int4":
            continue
        row = {"precision": precision, "perplexity": perplexity(path, precision, quick)}
        with local_swarm(path, spans(blocks, NODES), ["--threads", "1", "--quant", quant]) as running:
            for each in trio.run(by_strategy, running, asked, amateur):
                yield {"strategy": each.pop("strategy"), **row, **each}


def main() -> None:
    """Measure, print the table, write the JSON, draw."""
    parser = arguments(__doc__ or "", plot=True)
    parser.add_argument(
        "--model", type=Path, default=SHIPPED, metavar="PATH", help="a checkpoint's folder, or a GGUF file"
    )
    parser.add_argument("--amateur", type=Path, metavar="PATH", help="a smaller model of the same tokenizer")
    options = parser.parse_args()
    beside = options.amateur or (SHIPPED.with_name("tiny-draft") if options.model == SHIPPED else None)
    amateur = None if beside is None else WholeModel.open(str(beside))
    rows = list(measured(options.model, amateur, options.quick))
    summary = {}
    for row in rows:
        name = f"{row['strategy']}_{row['precision']}".replace(" ", "_")
        summary |= {f"{what}_{name}": row[what] for what in ("tokens_s", "right", "f1")}
    report(summary, rows, options.json)
    if options.plot is not None:
        bars: dict[str, dict[str, float]] = {}
        for row in rows:
            bars.setdefault(row["strategy"], {})[row["precision"]] = row["tokens_s"]
        draw_bars(options.plot, "Whole answers over three nodes", "tokens/s", bars)


if __name__ == "__main__":
    main()
