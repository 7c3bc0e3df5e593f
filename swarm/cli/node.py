"""`swarm node`: serve some layers of a model."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from rich.text import Text

from swarm.cli import joined, local
from swarm.cli.node_options import NodeOptions
from swarm.cli.node_process import Told
from swarm.cli.options import taking
from swarm.cli.streams import OutputLost
from swarm.cli.terminal import Terminal, open_terminal

# A node tells some twenty things as it starts, and then one an hour; more than this waits only where nobody reads.
EVENTS_WAITING: Final = 256
# How long the end of a node waits for its last events to be written.
LAST_NEWS_S: Final = 1.0


def _node(options: NodeOptions) -> None:
    """Serve some layers of a model to the swarm.

    The first node begins a swarm; every other joins it by the address of any node, and has the weights of its layers
    from the nodes there unless it is told where else they are. Without --layers it takes what the swarm lacks most.
    Stop it with Ctrl-C: it says goodbye, and running answers move to other nodes.

    ```
    swarm node --model ./llama --layers 0:16
    swarm node --join ADDRESS
    ```
    """
    config = options.config()
    if options.stop_on_eof:
        threading.Thread(target=_stop_at_eof, daemon=True).start()
    show = _show_json if options.as_json else partial(_show_line, terminal=open_terminal())
    with _News(show) as news:
        local.serve(config, news.tell)


# A function with the name of the command.
node = taking(NodeOptions, _node)


class _News:
    """The node's events on standard output; its addresses are kept, so that a chat on this machine finds it.

    Written by a thread of their own: a terminal that is stopped, or a pipe that nobody empties, holds no node up.
    """

    def __init__(self, show: Callable[[Told], None]) -> None:
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
            if event.name == "ready":
                joined.remember(event.fields["addrs"])
            with contextlib.suppress(OutputLost):  # a node serves on when nobody reads what it says
                self._show(event)


def _show_line(event: Told, terminal: Terminal) -> None:
    styles = {"ready": "bold green", "address": "dim", "warned": "yellow", "noted": "yellow"}
    terminal.out.print(Text(event.text, style=styles.get(event.name, "")), soft_wrap=True)


def _show_json(event: Told) -> None:
    print(json.dumps(event.fields))
    sys.stdout.flush()


def _stop_at_eof() -> None:
    """Leave when standard input ends: whoever started this node has ended, however it did."""
    with contextlib.suppress(OSError):
        while os.read(sys.stdin.fileno(), 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
