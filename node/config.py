"""What a node's owner asks for, and whether it can be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from node.engine.sources import is_hub_id
from protocol.errors import ConfigError
from protocol.model import Span
from protocol.transport.addresses import parse_address, peer_at
from protocol.weights import parse_pin

DEFAULT_LISTEN = ("/ip4/0.0.0.0/udp/0/quic-v1",)
DTYPES = ("f32", "f16", "bf16")
QUANTS = ("int8", "int4")
# Of all, the most precise that fits.
AUTO = "auto"
ENGINES = ("auto", "native", "torch")
# Bytes of weights that are given to peers in a second: two thirds of what the event loop manages, or 160 Mbit/s.
UPLOAD_BYTES_PER_S = 20 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One node.

    model       a folder, a GGUF file, a hub id, or the name or first digits of a model of the swarm; None: its model
    layers      the transformer blocks to serve, half-open, numbered from 0; None: what the swarm lacks
    ends        serve the embedding or the head that adjoins the layers; None: where they adjoin
    join        addresses of nodes of the swarm; none: begin a new one
    announce    addresses to tell others instead of those listened on
    device      torch's name of it, "cpu" or "cuda"
    dtype       "f32", "f16", "bf16", by torch; None: what suits the checkpoint and the device
    quant       "int8", "int4"; None: the weights as they are stored; "auto": of these the most precise that fits
    engine      "native", "torch"; "auto": the native kernels for what they know completely
    kv_tokens   tokens of KV cache that sessions may take together; None: from the free memory
    threads     cores for the engine; None: torch's choice
    home        where the key is kept that makes the node's name
    name        what the model is called in the swarm; None: the checkpoint's name
    cache_dir   where fetched weights are kept; None: the user's cache folder, for those of the hub the hub's
    cache_size  bytes that those of peers may take there; None: what the disk has
    weights     the digest of the weights that peers may give, at least 32 digits of it; None: what counts there
    share       whether peers are given weights
    upload      bytes of them in a second
    metrics     "ADDRESS:PORT" or a port of this machine alone where its numbers can be asked for; None: nowhere
    max_memory  bytes for weights and KV cache together; None: what is free, with room left for others
    """

    model: str | None = None
    layers: tuple[int, int] | None = None
    ends: bool | None = None
    join: tuple[str, ...] = ()
    listen: tuple[str, ...] = DEFAULT_LISTEN
    announce: tuple[str, ...] = ()
    device: str = "cpu"
    dtype: str | None = None
    quant: str | None = None
    engine: str = "auto"
    kv_tokens: int | None = None
    threads: int | None = None
    home: Path = Path("~/.inference-swarm")
    name: str | None = None
    cache_dir: str | None = None
    cache_size: int | None = None
    weights: str | None = None
    share: bool = True
    upload: int = UPLOAD_BYTES_PER_S
    metrics: str | None = None
    max_memory: int | None = None

    def check(self) -> None:
        """What can be checked without the model. Raises: ConfigError, one line."""
        if self.model == "" or (self.model is None and not self.join):
            raise ConfigError(
                "no model given: name a folder, a GGUF file or a model of the hub, or join a swarm that serves one"
            )
        if self.weights is not None:
            parse_pin(self.weights)
        if self.layers is not None:
            first, stop = self.layers
            if not 0 <= first < stop:
                raise ConfigError(
                    f"layers {first}:{stop}: give a first layer and the one after the last, as 0:8"
                )
        if self.layers is None and self.ends is not None:
            raise ConfigError("ends are chosen with the layers: give the layers too")
        for name, value in (
            ("kv tokens", self.kv_tokens),
            ("threads", self.threads),
            ("memory", self.max_memory),
            ("upload", self.upload),
            ("cache size", self.cache_size),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"{name} {value}: at least 1 is needed")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConfigError(f"there is no dtype {self.dtype!r}: {', '.join(DTYPES)}")
        self._check_engine()
        for addr in self.join:
            peer_at(addr)
        for addr in (*self.listen, *self.announce):
            parse_address(addr)

    @property
    def names_checkpoint(self) -> bool:
        """Whether `model` is on this machine or on the hub, and not what the swarm serves."""
        if self.model is None:
            return False
        return not self.join or Path(self.model).expanduser().exists() or is_hub_id(self.model)

    @property
    def names_hub(self) -> bool:
        """Whether `model` is one of the hub."""
        return self.model is not None and is_hub_id(self.model) and not Path(self.model).expanduser().exists()

    @property
    def suits_kernels(self) -> bool:
        """Whether it asks for nothing that only torch has."""
        return self.device == "cpu" and self.dtype is None

    def _check_engine(self) -> None:
        if self.engine not in ENGINES:
            raise ConfigError(f"there is no engine {self.engine!r}: {', '.join(ENGINES)}")
        if self.quant is not None and self.quant not in (*QUANTS, AUTO):
            raise ConfigError(f"weights cannot be kept in {self.quant!r}: {', '.join(QUANTS)}, or {AUTO}")
        if self.engine == "native" and not self.suits_kernels:
            raise ConfigError("the native kernels compute on the CPU: leave device and dtype out")
        if self.quant is not None and self.dtype is not None:
            raise ConfigError(
                f"weights in {self.quant} are computed in a dtype of their own: leave dtype out"
            )

    def span(self, blocks: int) -> Span | None:
        """The stages that `layers` and `ends` mean in a model of `blocks`; None if the swarm's need decides.

        Raises: ConfigError.
        """
        if self.layers is None:
            return None
        first, stop = self.layers
        if stop > blocks:
            raise ConfigError(
                f"layers {first}:{stop}: the model has {blocks} layers, so use 0:{blocks} or less"
            )
        at_ends = (first == 0, stop == blocks)
        if self.ends and not any(at_ends):
            raise ConfigError(
                f"layers {first}:{stop} touch neither end of the model, so there is no end to serve"
            )
        with_ends = self.ends is not False
        return Span(1 + first - (with_ends and at_ends[0]), 1 + stop + (with_ends and at_ends[1]))
