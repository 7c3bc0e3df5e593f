"""A client on a host of the emulated network: `python tests/wan/write_answer.py PROMPT COUNT ADDRESS...`.

Prints what it does, a line each: `hop 0 PEER` for the route, `chunk 0` once a hop has computed a part of the prompt,
`token 17` for each token of the answer, `reroute`, `bridge` when it had to mend something, `over` at the end.
PROMPT is `short` or `long`.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import swarm
from swarm.events import Bridged, Event, Rerouted
from tests.support.prompts import LONG, SHORT

say = partial(print, flush=True)


def tell(event: Event) -> None:
    """A line about what was mended."""
    if isinstance(event, Rerouted):
        say("reroute", event.reason, f"{event.seconds:.2f} s")
    elif isinstance(event, Bridged):
        say("bridge", event.reason)


async def watch_prefill(session: swarm.Session) -> None:
    """A line for each hop that has computed the first chunk."""
    told: set[int] = set()
    while len(told) < len(session.hops):
        for number, hop in enumerate(session.hops):
            if hop.claims.acked and number not in told:
                told.add(number)
                say("chunk", number)
        await trio.sleep(0.005)


async def main(prompt: list[int], count: int, addrs: list[str]) -> None:
    """One answer, greedily."""
    async with (
        swarm.connect(*addrs, on_event=tell) as client,
        client.session(max_tokens=len(prompt) + count) as session,
        trio.open_nursery() as nursery,
    ):
        for number, hop in enumerate(session.hops):
            say("hop", number, hop.peer)
        nursery.start_soon(watch_prefill, session)
        feed = prompt
        for _ in range(count):
            candidates = await session.step(feed)
            assert candidates is not None
            feed = [int(candidates.ids[0, 0])]
            say("token", feed[0])
        nursery.cancel_scope.cancel()
    say("over")


if __name__ == "__main__":
    trio.run(main, {"short": SHORT, "long": LONG}[sys.argv[1]], int(sys.argv[2]), sys.argv[3:])
