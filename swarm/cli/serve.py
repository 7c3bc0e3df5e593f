"""`swarm serve`: an OpenAI-compatible API over a swarm."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from swarm import entry
from swarm.cli import joined
from swarm.cli.api_options import ApiOptions
from swarm.cli.node_process import Told
from swarm.cli.options import (
    Join,
    JsonLines,
    LogJson,
    Model,
    NoReuse,
    Precision,
    StopOnEof,
    Verbose,
    Wait,
    Weights,
    taking,
)
from swarm.cli.streams import stop_at_eof
from swarm.cli.telling import event, teller
from swarm.portal import Portal

if TYPE_CHECKING:
    from swarm.http.settings import Settings


@dataclass(frozen=True, slots=True)
class ServeOptions(ApiOptions):
    """What `swarm serve` takes."""

    join: Join = None
    model: Model = None
    weights: Weights = None
    precision: Precision = "any"
    wait: Wait = 0.0
    no_reuse: NoReuse = False
    as_json: JsonLines = False
    log_json: LogJson = False
    stop_on_eof: StopOnEof = False
    verbose: Verbose = 0


def _serve(options: ServeOptions) -> None:
    """Serve a swarm to programs that speak OpenAI's API.

    It listens at once, on this machine only, and answers as soon as it is in the swarm. Others reach it with --host
    and a key.

    ```
    swarm serve --join ADDRESS
    curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' -d \\
      '{"messages": [{"role": "user", "content": "What is 12 + 30?"}]}'
    SWARM_API_KEY=$(openssl rand -hex 32) swarm serve --host 0.0.0.0
    ```
    """
    settings = options.settings()
    from swarm.http.serve import serve as serving

    doors = joined.find_doors(options.join or ())
    enter = partial(
        entry.connect,
        *doors.addrs,
        model=options.model,
        wait_s=options.wait,
        weights=options.weights,
        precision=options.precision,
        reuse=not options.no_reuse,
    )
    tell, leave = teller(options.as_json or options.log_json), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: leave.set())
    if options.stop_on_eof:
        stop_at_eof()
    with Portal() as portal, serving(portal, lambda heard: enter(on_event=heard), settings) as found:
        found.ended.add_done_callback(lambda _: leave.set())
        found.service.place.on_entered = lambda client: joined.remember(
            doors.addrs, joined.places(client.book)
        )
        for said in listening(found.url, settings):
            tell(said)
        leave.wait()
        if found.ended.done():
            with suppress(CancelledError):
                found.ended.result()


# A function with the name of the command.
serve = taking(ServeOptions, _serve)


def listening(url: str, settings: Settings) -> Iterator[Told]:
    """What is told of an API that listens."""
    key = "" if settings.keys else " (no key needed)"
    yield event("listening", f"listening at {url}{key}", url=url, key=bool(settings.keys))
    yield event("openai", f"for OpenAI's clients: base_url={url}/v1", base_url=f"{url}/v1")
