"""`swarm node`: serve some layers of a model."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from swarm.cli import joined, local
from swarm.cli.api_options import ApiOptions
from swarm.cli.api_process import ApiBeside
from swarm.cli.local_nodes import reached_at
from swarm.cli.node_options import NodeOptions
from swarm.cli.node_process import Told
from swarm.cli.options import taking
from swarm.cli.streams import OutputLost, stop_at_eof
from swarm.cli.telling import teller

# A node tells some twenty things as it starts, and then one an hour; more than this waits only where nobody reads.
EVENTS_WAITING: Final = 256
# How long the end of a node waits for its last events to be written.
LAST_NEWS_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Options(ApiOptions, NodeOptions):
    """Of a node, and of the API beside it."""


def _node(options: _Options) -> None:
    """Serve some layers of a model to the swarm.

    The first node begins a swarm; every other joins it by the address of any node, and has the weights of its layers
    from the nodes there unless it is told where else they are. Without --layers it takes what the swarm lacks most.
    Stop it with Ctrl-C: it says goodbye, and running answers move to other nodes.

    ```
    swarm node --model ./llama --layers 0:16
    swarm node --join ADDRESS
    swarm node --join ADDRESS --http
    ```
    """
    config = options.config()
    if options.http:
        options.settings()  # what cannot be is said before a model is loaded
    if options.stop_on_eof:
        stop_at_eof()
    with _News(teller(options.as_json or options.log_json)) as news, contextlib.ExitStack() as stack:
        if options.http:
            words = [*options.words(), *["--log-json"] * options.log_json]
            news.api = stack.enter_context(ApiBeside(words, news.tell))
            news.doors = _own_doors(config)
        local.serve(config, news.tell)


# A function with the name of the command.
node = taking(_Options, _node)


def _own_doors(config: dict[str, Any]) -> list[str]:
    """Where this machine reaches the node, as far as that is said beforehand."""
    return [reached_at(place) for place in config.get("listen", ()) if "/udp/0/" not in place]


class _News:
    """The node's events on standard output; its addresses are kept, so that a chat on this machine finds it.

    Written by a thread of their own: a terminal that is stopped, or a pipe that nobody empties, holds no node up.
    """

    def __init__(self, show: Callable[[Told], None]) -> None:
        self.api: ApiBeside | None = None
        self.doors: list[str] = []
        self._show = show
        self._told: queue.Queue[Told | None] = queue.Queue(EVENTS_WAITING)
        self._writer = threading.Thread(target=self._write, name="news", daemon=True)

    def __enter__(self) -> _News:
        self._writer.start()
        return self

    def __exit__(self, *_: object) -> None:
        """What was told is written, if it can be; what went wrong is said after it."""
        self._put(None)
        self._writer.join(LAST_NEWS_S)

    def tell(self, event: Told) -> None:
        """Write the event soon. Never blocks: where too many wait already, it is dropped."""
        self._put(event)

    def _put(self, event: Told | None) -> None:
        with contextlib.suppress(queue.Full):
            self._told.put_nowait(event)

    def _write(self) -> None:
        while (event := self._told.get()) is not None:
            with contextlib.suppress(OutputLost):  # a node serves on when nobody reads what it says
                self._show(event)
            if event.name == "ready":
                joined.remember(event.fields["addrs"])
                if self.api is not None:
                    peer = event.fields["peer"]
                    own = [f"{place}/p2p/{peer}" for place in self.doors]
                    self.api.start([*own, *event.fields["addrs"]][: joined.DOORS])
