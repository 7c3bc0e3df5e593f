"""Nodes are killed, frozen and dismissed all the time, and honest clients go on asking.

    python scripts/soak/kills.py [--kills 300] [--seed 0] [--json FILE]

Four node processes of the model that ships, in two chains whose borders differ, so that every layer is served twice.
Again and again something happens to one of them, or to two at once where the others still cover the model: `kill -9`,
a second one while it comes back, a freeze, a SIGTERM. Who is gone comes back empty, under its key, at its port. So
there always is a route, and every answer must be the undisturbed one, token for token.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import trio

# The node processes are started by what the tests start them with, which is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
# Before torch is imported anywhere: OpenMP threads that spin while they wait starve the other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import swarm
from protocol.candidates import Want
from protocol.errors import SwarmError
from swarm.cli.demo_layout import spread
from swarm.cli.demo_nodes import shipped_model
from tests.support.forge import Forge
from tests.support.local_swarm import LocalSwarm, RunningNode
from tests.support.processes import Processes

NODES: Final = 4
BLOCKS: Final = 8
TOKENS: Final = 96  # of an answer
TOKEN_EVERY_S: Final = 0.01  # as a larger model would: most faults then come in the middle of answers
ROOM: Final = 192
WAIT_S: Final = 20.0  # what a client says with --wait
# Two best tokens closer than this could change places by rounding, which differs with the cut of a prompt.
LEAST_MARGIN: Final = 1e-2
QUESTIONS_ASKED: Final = 4

Fault = str
# How often each comes, against the others.
FAULTS: Final[dict[Fault, int]] = {
    "kill": 4,
    "kill two": 4,
    "kill again": 2,
    "kill, other frozen": 1,
    "freeze": 1,
    "dismiss": 1,
}


@dataclass(frozen=True)
class Question:
    """A prompt and what undisturbed nodes say to it."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Given:
    """One answer that a client got."""

    client: str
    right: bool
    failure: str | None
    reroutes: int
    longest_s: float  # the longest wait for one token
    seconds: float


@dataclass
class Log:
    """What happened."""

    faults: Counter[Fault] = field(default_factory=Counter)
    kills: int = 0
    given: list[Given] = field(default_factory=list)
    recoveries_s: list[float] = field(default_factory=list)  # waits for a token in which a hop was replaced
    seconds: float = 0.0
    tracebacks: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[Given]:
        """Answers that are not the undisturbed ones."""
        return [given for given in self.given if given.failure is None and not given.right]

    @property
    def failed(self) -> list[Given]:
        """Answers that did not come, though there was a route."""
        return [given for given in self.given if given.failure is not None]

    def summary(self) -> dict[str, float]:
        """The figures."""
        times = sorted(self.recoveries_s) or [0.0]
        return {
            "kills": self.kills,
            "answers": len(self.given),
            "wrong": len(self.wrong),
            "failed": len(self.failed),
            "reroutes": sum(given.reroutes for given in self.given),
            "recovery_s_median": statistics.median(times),
            "recovery_s_p95": times[int(0.95 * (len(times) - 1))],
            "recovery_s_worst": times[-1],
            "tracebacks": len(self.tracebacks),
            "seconds": self.seconds,
        }


class Misfortune:
    """Does things to nodes, and brings them back."""

    def __init__(self, nodes: LocalSwarm, rng: random.Random, log: Log) -> None:
        self._nodes = nodes
        self._rng = rng
        self._log = log

    async def strike(self) -> None:
        """One fault of any kind, and its end: afterwards all nodes serve."""
        rng = self._rng
        fault = rng.choices(list(FAULTS), weights=list(FAULTS.values()))[0]
        self._log.faults[fault] += 1
        victims = self._victims(1 if fault in ("kill", "kill again", "dismiss") else 2)
        await trio.sleep(rng.uniform(0.0, 0.5))
        if fault in ("kill", "kill two", "kill again"):
            self._kill(*victims)
        elif fault == "kill, other frozen":
            victims[-1].process.stop()
            self._kill(victims[0])
        elif fault == "freeze":
            for victim in victims:
                victim.process.stop()
        else:
            victims[0].process.signal(signal.SIGTERM)
            await trio.to_thread.run_sync(victims[0].process.wait, 20)
        await trio.sleep(rng.uniform(0.0, 1.0) if "fr" not in fault else rng.uniform(0.5, 6.0))
        for victim in victims:
            victim.process.cont()
        dead = [victim for victim in victims if not victim.running]
        if dead and fault == "kill again":
            dead = await self._kill_as_it_comes(dead)
        if dead:
            await trio.to_thread.run_sync(self._nodes.restart, *dead)

    def _kill(self, *victims: RunningNode) -> None:
        for victim in victims:
            victim.process.signal(signal.SIGKILL)
        for victim in victims:
            victim.process.kill9()
            self._log.kills += 1

    async def _kill_as_it_comes(self, dead: Sequence[RunningNode]) -> list[RunningNode]:
        """Killed once more, as soon as it serves; that it has to be ready first keeps its output in order."""
        back = await trio.to_thread.run_sync(self._nodes.restart, *dead)
        await trio.sleep(self._rng.uniform(0.0, 0.2))
        self._kill(*back)
        return back

    def _victims(self, most: int) -> list[RunningNode]:
        """Nodes without which the others still cover the model: as many as wanted, or one."""
        nodes = self._nodes.nodes
        while True:
            chosen = self._rng.sample(nodes, most)
            if covers([node.layers for node in nodes if node not in chosen]):
                return chosen


def covers(layers: Sequence[str]) -> bool:
    """Whether these ranges hold every layer."""
    served: set[int] = set()
    for each in layers:
        start, stop = map(int, each.split(":"))
        served.update(range(start, stop))
    return len(served) == BLOCKS


async def ask_all_the_time(
    name: str, client: swarm.Client, questions: Sequence[Question], log: Log, rng: random.Random
) -> None:
    """One session for several answers, then a new one."""
    while True:
        question = rng.choice(questions)
        began = time.monotonic()
        try:
            async with client.session(max_tokens=ROOM) as session:
                log.given.append(await write(name, session, question, log))
        except SwarmError as error:
            log.given.append(failed(name, error, began))


async def come_and_ask(
    addrs: Sequence[str], questions: Sequence[Question], log: Log, rng: random.Random
) -> None:
    """A client that is new each time."""
    while True:
        question, began = rng.choice(questions), time.monotonic()
        try:
            async with (
                swarm.connect(*addrs, wait_s=WAIT_S) as client,
                client.session(max_tokens=ROOM) as session,
            ):
                log.given.append(await write("new", session, question, log))
        except SwarmError as error:
            log.given.append(failed("new", error, began))


def failed(name: str, error: SwarmError, began: float) -> Given:
    """An answer that did not come."""
    return Given(name, False, f"{type(error).__name__}: {error}", 0, 0.0, time.monotonic() - began)


async def write(name: str, session: swarm.Session, question: Question, log: Log) -> Given:
    """An answer, token by token."""
    answer: list[int] = []
    feed, began, longest_s, known = list(question.prompt), time.monotonic(), 0.0, len(session.reroutes)
    while len(answer) < len(question.answer):
        asked, before = time.monotonic(), len(session.reroutes)
        candidates = await session.step(feed)
        waited_s = time.monotonic() - asked
        longest_s = max(longest_s, waited_s)
        if len(session.reroutes) > before:
            log.recoveries_s.append(waited_s)
        assert candidates is not None
        feed = [int(candidates.ids[0, 0])]
        answer += feed
        await trio.sleep(TOKEN_EVERY_S)
    right = tuple(answer) == question.answer
    return Given(name, right, None, len(session.reroutes) - known, longest_s, time.monotonic() - began)


async def undisturbed(client: swarm.Client, rng: random.Random) -> list[Question]:
    """Questions whose answers leave no doubt, and the answers."""
    found: list[Question] = []
    while len(found) < QUESTIONS_ASKED:
        a, b = rng.randrange(10, 90), rng.randrange(10, 90)
        prompt = await client.text.encode_chat([{"role": "user", "content": f"What is {a} plus {b}?"}])
        answer: list[int] = []
        async with client.session(max_tokens=ROOM) as session:
            feed = list(prompt)
            while len(answer) < TOKENS:
                candidates = await session.step(feed, want=Want(top=2))
                assert candidates is not None
                if float(candidates.logits[0, 0] - candidates.logits[0, 1]) < LEAST_MARGIN:
                    break
                feed = [int(candidates.ids[0, 0])]
                answer += feed
        if len(answer) == TOKENS:
            found.append(Question(tuple(prompt), tuple(answer)))
    return found


@asynccontextmanager
async def clients(addrs: Sequence[str]) -> AsyncIterator[list[swarm.Client]]:
    """Two that stay; hops send to each other for one, all passes through the other."""
    async with (
        swarm.connect(*addrs, wait_s=WAIT_S) as direct,
        swarm.connect(*addrs, wait_s=WAIT_S, direct=False) as bridging,
    ):
        yield [direct, bridging]


async def soak(nodes: LocalSwarm, kills: int, seed: int, progress: Callable[[Log], None]) -> Log:
    """Faults until so many nodes were killed, while clients ask; what happened."""
    rng, log = random.Random(seed), Log()
    addrs = [node.addr for node in nodes.nodes]
    began = time.monotonic()
    async with clients(addrs) as (direct, bridging), trio.open_nursery() as nursery:
        questions = await undisturbed(direct, rng)
        nursery.start_soon(ask_all_the_time, "direct", direct, questions, log, random.Random(seed + 1))
        nursery.start_soon(ask_all_the_time, "bridging", bridging, questions, log, random.Random(seed + 2))
        nursery.start_soon(come_and_ask, addrs, questions, log, random.Random(seed + 3))
        misfortune = Misfortune(nodes, rng, log)
        while log.kills < kills:
            ended = [node.process for node in nodes.nodes]
            await misfortune.strike()
            log.tracebacks += [line for process in ended for line in process.lines if "Traceback" in line]
            progress(log)
        answers = len(log.given)
        with trio.fail_after(4 * WAIT_S):
            while len(log.given) < answers + 6:  # noqa: ASYNC110 - whatever the last fault broke has to come to an end
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    log.seconds = time.monotonic() - began
    return log


def run(kills: int, seed: int, progress: Callable[[Log], None] = lambda log: None) -> Log:
    """A swarm of its own for it."""
    with (
        tempfile.TemporaryDirectory() as home,
        Forge() as forge,
        Processes(launch=forge.start) as processes,
    ):
        os.environ.setdefault("SWARM_HOME", home)
        extra = ["--threads", "1", "--kv-tokens", "8192"]
        nodes = LocalSwarm(processes, shipped_model(), Path(home), extra=extra)
        nodes.start(*(f"{start}:{stop}" for start, stop in spread(BLOCKS, NODES)))
        return trio.run(soak, nodes, kills, seed, progress)


def main() -> int:
    """Run and print; status 1 if an answer was wrong or did not come."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()

    def progress(log: Log) -> None:
        print(
            f"\r{log.kills} kills, {len(log.given)} answers, {len(log.wrong)} wrong, {len(log.failed)} failed",
            end="",
            flush=True,
        )

    log = run(options.kills, options.seed, progress)
    print()
    for fault, count in sorted(log.faults.items()):
        print(f"{fault:>20}  {count}")
    for name in ("direct", "bridging", "new"):
        mine = [given for given in log.given if given.client == name]
        waits = sorted(given.longest_s for given in mine) or [0.0]
        print(
            f"{name:>20}  {len(mine)} answers, {sum(given.reroutes for given in mine)} reroutes, "
            f"longest wait for a token: median {statistics.median(waits):.2f} s, worst {waits[-1]:.2f} s"
        )
    for name, value in log.summary().items():
        print(f"{name:>20}  {value:g}")
    for given in (*log.wrong, *log.failed)[:10]:
        print(given)
    if options.json:
        found = {
            "summary": log.summary(),
            "faults": log.faults,
            "given": [asdict(given) for given in log.given],
        }
        options.json.write_text(json.dumps(found, indent=1))
    return 1 if log.wrong or log.failed or log.tracebacks else 0


if __name__ == "__main__":
    sys.exit(main())
