"""Where the time of one token goes, by timestamps at named points of the client and of each hop.

    python scripts/bench/journey.py [--quick] [--json FILE] [--hops N] [--quant NAME]

The processes are those of `hop.py`. Their methods are wrapped from here: the points cost nothing where nobody asks,
and a token some percent more here. A row is the way from one point to the next, in microseconds, over all tokens and
hops, and what all such ways add to a token. Processes on one machine share CLOCK_MONOTONIC.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import trio
from common import SMALL, arguments, forget_torch, report, spans

import swarm
from protocol.messages import Output, Step
from protocol.talk import channel as talk
from protocol.transport.quic.core import QuicCore
from protocol.transport.quic.port import Port
from tests.support.local_swarm import LocalSwarm
from tests.support.processes import Launched, Processes, run_program

PROMPT = [1, 2, 3, 4, 5, 6, 7, 8]
WARM_UP = 20
LOG_TO = "SWARM_JOURNEY"  # the environment variable that names a node's file
# What a step passes at a hop, in order.
AT_HOP = ("read", "heard", "parsed", "queued", "begun", "ended", "taken", "sending", "encoded", "sent")
AT_CLIENT = ("asked", "encoded", "sent", "read", "heard", "parsed", "given")
WAYS = {
    "asked > encoded": "client: step noted, posted, encoded",
    "encoded > sent": "QUIC packs and sends it",
    "sent > read": "on the way, until the next process runs",
    "read > heard": "QUIC takes it",
    "heard > parsed": "to the reading task, frame to message",
    "parsed > queued": "checked, accepted, queued",
    "queued > begun": "to the engine's thread",
    "begun > ended": "computing",
    "ended > taken": "back to the event loop",
    "taken > sending": "the thread is given the next batch",
    "sending > encoded": "into the journal, message to frame",
    "parsed > given": "client: checked, given to the caller",
}

Moment = tuple[str, int, int]  # point, step (-1: it knows of none), nanoseconds


class Log:
    """Moments of one process."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []

    def note(self, point: str, number: int = -1) -> None:
        """It is passed now."""
        self.moments.append((point, number, time.perf_counter_ns()))

    def before(
        self, owner: Any, name: str, point: str, number_of: Callable[..., int] = lambda *_: -1
    ) -> None:
        """Note each call of `owner.name`. Raises: AttributeError, if there is no such function."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def noted(*given: Any, **named: Any) -> Any:
            self.note(point, number_of(*given))
            return inner(*given, **named)

        setattr(owner, name, noted)

    def after(self, owner: Any, name: str, point: str, number_of: Callable[..., int | None]) -> None:
        """Note the end of each call whose result (and arguments behind it) `number_of` finds to be of a step."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def noted(*given: Any, **named: Any) -> Any:
            result = inner(*given, **named)
            number = number_of(result, *given)
            if number is not None:
                self.note(point, number)
            return result

        setattr(owner, name, noted)

    def wrap_transport(self) -> None:
        """The points that client and hops have in common."""
        self.before(Port, "_receive_batch", "read")
        self.after(QuicCore, "receive_datagram", "heard", lambda *_: -1)
        self.after(talk.FrameReader, "next", "parsed", lambda message, *_: _number(message))
        self.after(talk, "encode", "encoded", lambda _, message: _number(message))
        self.before(Port, "send", "sent")

    def wrap_hop(self) -> None:
        """Those of a hop."""
        from node.compute.loop import EngineLoop
        from node.hop.emitter import Emitter
        from node.hop.session import HopSession

        self.wrap_transport()
        self.before(EngineLoop, "submit", "queued", lambda loop, runnable, number, *_: number)
        self.before(Emitter, "emit", "sending", lambda emitter, pending: pending.step.number)
        inner = HopSession.take

        def noted(session: HopSession, piece: Any, outcome: Any, *, alone: bool) -> None:
            self.moments.append(("begun", piece.number, round(1e9 * outcome.started)))
            self.moments.append(("ended", piece.number, round(1e9 * outcome.ended)))
            self.note("taken", piece.number)
            inner(session, piece, outcome, alone=alone)

        HopSession.take = noted  # type: ignore[method-assign]


def _number(message: object) -> int | None:
    return message.number if isinstance(message, Step | Output) else None


# --- a node


def run_node(words: list[str]) -> None:
    """`swarm` with these words, wrapped; its moments are in the file that LOG_TO names when it has ended."""
    from swarm.cli import main as swarm_command

    log = Log()
    log.wrap_hop()
    sys.argv = ["swarm", *words]
    try:
        swarm_command()
    finally:
        Path(os.environ[LOG_TO]).write_text(json.dumps(log.moments))


def launch_in(folder: Path) -> Callable[..., Launched]:
    """Starts nodes by way of this file."""
    count = iter(range(1_000))

    def launch(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path | None) -> Launched:
        words = argv[argv.index("swarm") + 1 :]
        ours = {**env, LOG_TO: str(folder / f"{next(count)}.json")}
        return run_program([sys.executable, __file__, "--node", *words], env=ours, cwd=cwd)

    return launch


# --- the client


async def decode(addr: str, hops: int, tokens: int, log: Log) -> None:
    """Greedy, each step noted from its asking to its answer."""
    async with (
        swarm.connect(addr, remember=False) as client,
        client.session(max_tokens=tokens + len(PROMPT) + 1) as session,
    ):
        assert len(session.hops) == hops, session.route
        feed = PROMPT
        for _ in range(tokens):
            number = session.steps
            log.note("asked", number)
            candidates = await session.step(feed)
            log.note("given", number)
            assert candidates is not None
            feed = [int(candidates.ids[0, 0])]


# --- what came of it


def passed(moments: Sequence[Moment], points: Sequence[str], numbers: range) -> dict[int, dict[str, int]]:
    """For each step, when it passed each point; of those that know no step the one nearest to one that does."""
    ordered = sorted(moments, key=lambda moment: moment[2])
    at = {point: [when for name, _, when in ordered if name == point] for point in points}
    own = {(name, number): when for name, number, when in reversed(ordered) if number >= 0}
    found: dict[int, dict[str, int]] = {}
    for number in numbers:
        times = {point: own[point, number] for point in points if (point, number) in own}
        heard = bisect_left(at["heard"], times["parsed"]) - 1
        times["heard"] = at["heard"][heard]
        times["read"] = at["read"][bisect_right(at["read"], times["heard"]) - 1]
        times["sent"] = at["sent"][bisect_right(at["sent"], times["encoded"])]
        found[number] = times
    return found


def ways(
    client: Sequence[Moment], hops: Sequence[Sequence[Moment]], numbers: range
) -> dict[str, list[float]]:
    """Microseconds of each way, of all steps and hops."""
    found: dict[str, list[float]] = {}
    of_client = passed(client, AT_CLIENT, numbers)
    of_hops = [passed(moments, AT_HOP, numbers) for moments in hops]
    for number in numbers:
        ours = of_client[number]
        track = [("client", point, ours[point]) for point in AT_CLIENT[:3]]
        for times in of_hops:
            track += [("hop", point, times[number][point]) for point in AT_HOP]
        track += [("client", point, ours[point]) for point in AT_CLIENT[3:]]
        for (_, before, began), (_, after, ended) in pairwise(track):
            found.setdefault(f"{before} > {after}", []).append((ended - began) / 1e3)
    return found


def measure(model: Path, hops: int, tokens: int, extra: list[str]) -> tuple[Log, list[list[Moment]]]:
    """What the client and the hops in their order noted."""
    log = Log()
    log.wrap_transport()
    with tempfile.TemporaryDirectory() as home, Processes(launch_in(Path(home))) as processes:
        running = LocalSwarm(processes, model, Path(home), extra=extra)
        running.start(*spans(SMALL.layers, hops))
        trio.run(decode, running.join, hops, tokens, log)
        for node in running.nodes:
            node.process.signal(signal.SIGTERM)
        for node in running.nodes:
            node.process.wait(10)
        return log, [json.loads((Path(home) / f"{index}.json").read_text()) for index in range(hops)]


def main() -> None:
    """Measure and print."""
    if "--node" in sys.argv:
        run_node(sys.argv[2:])
        return
    parser = arguments(__doc__ or "")
    parser.add_argument("--hops", type=int, default=4, help="nodes in the route (default: 4)")
    parser.add_argument("--quant", help="compute by the native kernels, in this precision")
    options = parser.parse_args()
    tokens = 150 if options.quick else 600
    extra = ["--threads", "1", *(["--quant", options.quant] if options.quant else [])]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "random"
        SMALL.write(model)
        forget_torch()
        log, hops = measure(model, options.hops, tokens, extra)
    found = ways(log.moments, hops, range(WARM_UP, tokens))
    rows = [
        {
            "way": WAYS.get(way, way),
            "times": len(values) / (tokens - WARM_UP),
            "best_us": min(values),
            "median_us": statistics.median(values),
            "p90_us": statistics.quantiles(values, n=10)[-1],
            "of_a_token_us": sum(values) / (tokens - WARM_UP),
        }
        for way, values in found.items()
    ]
    apart = sum(float(str(row["of_a_token_us"])) for row in rows if row["way"] != WAYS["begun > ended"])
    everyone = [log.moments, *hops]
    counts = [Counter(point for point, _, _ in moments) for moments in everyone]
    summary = {
        "token_us": sum(float(str(row["of_a_token_us"])) for row in rows),
        "overhead_us_per_hop": apart / options.hops,
        "datagrams_of_a_token": sum(count["sent"] for count in counts) / tokens,
        "turns_of_a_token": sum(count["read"] for count in counts) / tokens,
    }
    report(summary, rows, options.json)


if __name__ == "__main__":
    main()
