"""What the API costs over the Python client: per token, until the first, for small answers; how soon a hang-up ends;
and what it costs that answers are held to a grammar.

    python scripts/bench/api.py [--quick] [--json FILE]

One node of the shipped model on this machine, `swarm.blocking` and the API by turns, in this process, over the same
swarm. The answers are of equal length; figures are medians.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from common import arguments

import swarm
from swarm.cli.demo_nodes import shipped_model
from swarm.http.serve import Serving, serve
from swarm.http.settings import Settings
from swarm.portal import Portal
from tests.support.local_swarm import LocalSwarm
from tests.support.processes import Processes
from tests.support.waiting import block_until

COUNT = "Count from 3 to 40."
SMALL = "What is 12 + 30?"
# Every answer is one: what masks cost, and nothing of what they change.
ANYTHING = swarm.Grammar.regex(r"(.|\n)*")


def timed(pieces: Callable[[], Any]) -> tuple[float, float]:
    """Milliseconds until the first piece, and for each after it."""
    began = time.perf_counter()
    moments = [time.perf_counter() for _ in pieces()]
    first = 1000 * (moments[0] - began)
    return first, 1000 * (moments[-1] - moments[0]) / (len(moments) - 1)


def by_http(asker: httpx.Client, prompt: str, most: int) -> Any:
    """The pieces of an answer by the API."""
    said = [{"role": "user", "content": prompt}]
    body = {"messages": said, "temperature": 0, "max_tokens": most, "stream": True}
    with asker.stream("POST", "/v1/chat/completions", json=body) as reply:
        for line in reply.iter_lines():
            if '"content":"' in line and '"content":""' not in line:
                yield line


def hang_up_ms(asker: httpx.Client, serving: Serving) -> float:
    """From closing the connection to the moment at which no answer is under way."""
    pieces = by_http(asker, COUNT, 100)
    next(pieces)
    began = time.perf_counter()
    pieces.close()
    line = serving.service.line
    while line.active:
        time.sleep(0.0005)
    return 1000 * (time.perf_counter() - began)


def small_per_second(url: str, seconds: float, askers: int) -> float:
    """Small answers in a second, asked by so many at once."""
    until = time.perf_counter() + seconds

    def ask(_: int) -> int:
        done = 0
        with httpx.Client(base_url=url, timeout=30) as asker:
            body = {"messages": [{"role": "user", "content": SMALL}], "temperature": 0}
            while time.perf_counter() < until:
                asker.post("/v1/chat/completions", json=body).raise_for_status()
                done += 1
        return done

    with ThreadPoolExecutor(askers) as pool:
        return sum(pool.map(ask, range(askers))) / seconds


def main() -> None:
    """Measure, and say it."""
    options = arguments(__doc__ or "").parse_args()
    rounds, seconds = (5, 2.0) if options.quick else (20, 8.0)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nodes = LocalSwarm(
            stack.enter_context(Processes()), shipped_model(), folder, extra=["--threads", "1"]
        )
        nodes.start("0:8")
        portal = stack.enter_context(Portal())
        enter = partial(swarm.connect, nodes.join, remember=False)
        serving = stack.enter_context(serve(portal, lambda tell: enter(on_event=tell), Settings(port=0)))
        client = stack.enter_context(swarm.blocking.connect(nodes.join, remember=False))
        block_until(lambda: serving.service.place.joined, 30)
        asker = stack.enter_context(httpx.Client(base_url=serving.url, timeout=30))
        ways = {
            "client": lambda: client.generate(COUNT, chat=True, max_new_tokens=100),
            "http": lambda: by_http(asker, COUNT, 100),
            "greedy": lambda: client.generate(COUNT, chat=True, max_new_tokens=100, strategy="greedy"),
            "grammar": lambda: client.generate(
                COUNT, chat=True, max_new_tokens=100, strategy="greedy", grammar=ANYTHING
            ),
        }
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for turn in range(rounds + 2):
            for way, pieces in ways.items():
                found = timed(pieces)
                if turn > 1:
                    times[way].append(found)
        first = {way: statistics.median(found[0] for found in all) for way, all in times.items()}
        token = {way: statistics.median(found[1] for found in all) for way, all in times.items()}
        figures = {
            "ms_per_token": {way: round(value, 3) for way, value in token.items()},
            "overhead_ms_per_token": round(token["http"] - token["client"], 3),
            "masks_ms_per_token": round(token["grammar"] - token["greedy"], 3),
            "overhead_ms_ttft": round(first["http"] - first["client"], 3),
            "hang_up_ms": round(statistics.median(hang_up_ms(asker, serving) for _ in range(rounds)), 2),
            "small_answers_per_s": round(small_per_second(serving.url, seconds, 8), 1),
        }
    print(json.dumps(figures, indent=2))
    if options.json:
        Path(options.json).write_text(json.dumps(figures))


if __name__ == "__main__":
    sys.exit(main())
