"""The options of `swarm node`, and what of a node's configuration they mean."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from protocol.errors import ConfigError
from swarm.cli.api_options import API
from swarm.cli.options import NETWORK, OUTPUT, JsonLines, LogJson, StopOnEof, Verbose

_ENGINE = "The engine"
_PEERS = "Weights from peers, and to them"


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """As they are typed; see `swarm.cli.options.taking`."""

    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="A checkpoint's folder, a GGUF file, org/name of the hub (org/name:Q4_K_M of several files), or a "
            "model of the swarm by name or first digits, which its nodes give. Default: that of the node joined.",
            show_default=False,
        ),
    ] = None
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST:STOP",
            help="Which layers, counted from 0, the last excluded. Default: what the swarm lacks most.",
            show_default=False,
        ),
    ] = None
    ends: Annotated[
        bool | None,
        typer.Option(
            "--ends/--no-ends",
            help="With the embedding or the head that adjoins the layers; by default where they adjoin.",
            show_default=False,
        ),
    ] = None
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
    ] = None
    listen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="Where to listen, as /ip4/0.0.0.0/udp/4001/quic-v1. Default: every interface, any port.",
            show_default=False,
            rich_help_panel=NETWORK,
        ),
    ] = None
    announce: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="What to tell others instead, behind a forwarded port.",
            show_default=False,
            rich_help_panel=NETWORK,
        ),
    ] = None
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="DIGEST",
            help="The digest of the weights that peers may give, at least 32 digits. Default: those that most serve.",
            show_default=False,
            rich_help_panel=_PEERS,
        ),
    ] = None
    share: Annotated[
        bool,
        typer.Option(
            "--share/--no-share",
            help="Give the model's weights to nodes that join. Not where its licence forbids it.",
            rich_help_panel=_PEERS,
        ),
    ] = True
    upload: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="Bytes of weights that peers are given in a second; a sixteenth of it while sessions are computed.",
            rich_help_panel=_PEERS,
        ),
    ] = "20M"
    cache_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="How much of the disk weights from peers may take, as 50G: those used longest ago are removed. "
            "Default: all but 1 GiB of it.",
            show_default=False,
            rich_help_panel=_PEERS,
        ),
    ] = None
    device: Annotated[str, typer.Option(help="cpu or cuda.", rich_help_panel=_ENGINE)] = "cpu"
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="f32|f16|bf16",
            help="Default: what suits model and device.",
            show_default=False,
            rich_help_panel=_ENGINE,
        ),
    ] = None
    quant: Annotated[
        str,
        typer.Option(
            metavar="none|int8|int4|auto",
            help="Keep the weights in eight or four bits: a quarter of the memory and less, and faster. auto: the "
            "most precise in which the layers fit, or that leaves the fewest layers that nobody serves.",
            rich_help_panel=_ENGINE,
        ),
    ] = "none"
    engine: Annotated[
        str,
        typer.Option(
            metavar="auto|native|torch",
            help="Our own kernels, or torch. auto: torch for what those do not know, and with --device or --dtype.",
            rich_help_panel=_ENGINE,
        ),
    ] = "auto"
    kv_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens of KV cache for all sessions together. Default: by the free memory.",
            show_default=False,
            rich_help_panel=_ENGINE,
        ),
    ] = None
    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="For weights and KV cache together, as 6G. Default: by the free memory.",
            show_default=False,
            rich_help_panel=_ENGINE,
        ),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(help="Cores for the engine. Default: all.", show_default=False, rich_help_panel=_ENGINE),
    ] = None
    name: Annotated[
        str | None,
        typer.Option(
            help="What the swarm calls the model. Default: the checkpoint's name.", show_default=False
        ),
    ] = None
    home: Annotated[
        Path | None,
        typer.Option(help="Where the node's key is kept: one folder for each node.", show_default=False),
    ] = None
    cache_dir: Annotated[
        Path | None, typer.Option(help="Where downloaded weights are kept.", show_default=False)
    ] = None
    http: Annotated[
        bool,
        typer.Option(
            "--http",
            help="Serve the API of the swarm too, in a process beside this one, as `swarm serve` does.",
            rich_help_panel=API,
        ),
    ] = False
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS:]PORT",
            help="Where Prometheus may ask for the node's numbers; a port alone is for this machine only.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None
    as_json: JsonLines = False
    log_json: LogJson = False
    stop_on_eof: StopOnEof = False
    verbose: Verbose = 0

    def config(self) -> dict[str, Any]:
        """Fields of `node.config.NodeConfig`. Raises: ConfigError."""
        found: dict[str, Any] = {
            "model": self.model,
            "layers": parse_layers(self.layers),
            "ends": self.ends,
            "join": tuple(self.join or ()),
            "announce": tuple(self.announce or ()),
            "device": self.device,
            "dtype": self.dtype,
            "quant": None if self.quant == "none" else self.quant,
            "engine": self.engine,
            "kv_tokens": self.kv_tokens,
            "max_memory": parse_size(self.max_memory),
            "weights": self.weights,
            "share": self.share,
            "upload": parse_size(self.upload, "upload"),
            "cache_size": parse_size(self.cache_size, "cache size"),
            "threads": self.threads,
            "metrics": self.metrics,
            "name": self.name,
            "cache_dir": str(self.cache_dir) if self.cache_dir else None,
        }
        if self.listen:
            found["listen"] = tuple(self.listen)
        if self.home:
            found["home"] = self.home
        return found


def parse_layers(text: str | None) -> tuple[int, int] | None:
    """ "4:8" as numbers. Raises: ConfigError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text)
    if match is None:
        raise ConfigError(f"layers {text!r}: give a first layer and the one after the last, as 0:8")
    return int(match[1]), int(match[2])


def parse_size(text: str | None, what: str = "memory") -> int | None:
    """ "6G", "500M" or bytes. Raises: ConfigError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.lower())
    if match is None:
        raise ConfigError(f"{what} {text!r}: give a size, as 6G or 500M")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2] or " "))
