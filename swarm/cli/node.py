"""`swarm node`: serve some layers of a model."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from protocol.errors import ConfigError
from swarm.cli import joined, local
from swarm.cli.node_process import Told
from swarm.cli.options import NETWORK, JsonLines, Verbose
from swarm.cli.streams import OutputLost
from swarm.cli.terminal import Terminal, open_terminal

_ENGINE = "The engine"
# A node tells some twenty things as it starts, and then one an hour; more than this waits only where nobody reads.
EVENTS_WAITING: Final = 256
# How long the end of a node waits for its last events to be written.
LAST_NEWS_S: Final = 1.0


def node(
    model: Annotated[
        str,
        typer.Option("--model", "-m", metavar="MODEL", help="A checkpoint's folder, or org/name of the hub."),
    ],
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST:STOP",
            help="Which layers, counted from 0, the last excluded. Default: what the swarm lacks most.",
            show_default=False,
        ),
    ] = None,
    ends: Annotated[
        bool | None,
        typer.Option(
            "--ends/--no-ends",
            help="With the embedding or the head that adjoins the layers; by default where they adjoin.",
            show_default=False,
        ),
    ] = None,
    join: Annotated[
        list[str] | None,
        typer.Option(
            "--join",
            "-j",
            metavar="ADDRESS",
            help="A node of the swarm; can be repeated. Default: $SWARM_JOIN; without, a new swarm begins.",
            show_default=False,
            rich_help_panel=NETWORK,
        ),
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="Where to listen, as /ip4/0.0.0.0/udp/4001/quic-v1. Default: every interface, any port.",
            show_default=False,
            rich_help_panel=NETWORK,
        ),
    ] = None,
    announce: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="What to tell others instead, behind a forwarded port.",
            show_default=False,
            rich_help_panel=NETWORK,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.", rich_help_panel=_ENGINE)] = "cpu",
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="f32|f16|bf16",
            help="Default: what suits model and device.",
            show_default=False,
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    quant: Annotated[
        str,
        typer.Option(
            metavar="none|int8|int4",
            help="Keep the weights in eight or four bits: a quarter of the memory and less, and faster.",
            rich_help_panel=_ENGINE,
        ),
    ] = "none",
    kv_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens of KV cache for all sessions together. Default: by the free memory.",
            show_default=False,
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="For weights and KV cache together, as 6G. Default: by the free memory.",
            show_default=False,
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Cores for the engine. Default: all.", show_default=False, rich_help_panel=_ENGINE),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="What the swarm calls the model. Default: the checkpoint's name.", show_default=False
        ),
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option(help="Where the node's key is kept: one folder for each node.", show_default=False),
    ] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Where downloaded weights are kept.", show_default=False)
    ] = None,
    as_json: JsonLines = False,
    stop_on_eof: Annotated[bool, typer.Option(hidden=True)] = False,
    verbose: Verbose = 0,
) -> None:
    """Serve some layers of a model to the swarm.

    The first node begins a swarm; every other joins it by the address of any node. Without --layers it takes what the
    swarm lacks most. Stop it with Ctrl-C: it says goodbye, and running answers move to other nodes.

    ```
    swarm node --model ./llama --layers 0:16
    swarm node --model ./llama --join ADDRESS
    ```
    """
    from_environment = os.environ.get("SWARM_JOIN", "").replace(",", " ").split()
    options: dict[str, Any] = {
        "model": model,
        "layers": parse_layers(layers),
        "ends": ends,
        "join": tuple(join or from_environment),
        "announce": tuple(announce or ()),
        "device": device,
        "dtype": dtype,
        "quant": None if quant == "none" else quant,
        "kv_tokens": kv_tokens,
        "max_memory": parse_size(max_memory),
        "threads": threads,
        "name": name,
        "cache_dir": str(cache_dir) if cache_dir else None,
    }
    if listen:
        options["listen"] = tuple(listen)
    if home or os.environ.get("SWARM_HOME"):
        options["home"] = home or Path(os.environ["SWARM_HOME"])
    if stop_on_eof:
        threading.Thread(target=_stop_at_eof, daemon=True).start()
    show = _show_json if as_json else partial(_show_line, terminal=open_terminal())
    with _News(show) as news:
        local.serve(options, news.tell)


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


def parse_layers(text: str | None) -> tuple[int, int] | None:
    """ "4:8" as numbers. Raises: ConfigError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text)
    if match is None:
        raise ConfigError(f"layers {text!r}: give a first layer and the one after the last, as 0:8")
    return int(match[1]), int(match[2])


def parse_size(text: str | None) -> int | None:
    """ "6G", "500M" or bytes. Raises: ConfigError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.lower())
    if match is None:
        raise ConfigError(f"memory {text!r}: give a size, as 6G or 500M")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2] or " "))


def _stop_at_eof() -> None:
    """Leave when standard input ends: whoever started this node has ended, however it did."""
    with contextlib.suppress(OSError):
        while os.read(sys.stdin.fileno(), 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
