"""The way from the daemon to the engine: everything that imports torch, and blocks, is behind this."""

from __future__ import annotations

import os
from typing import Protocol

from node.compute.interfaces import Engine, Speed
from node.config import NodeConfig
from protocol.model import Manifest, Span


class Model(Protocol):
    """An open checkpoint. Its methods read files and may block for long."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def manifest(self) -> Manifest:
        """What its nodes agree on."""

    def file(self, name: str) -> bytes:
        """The bytes of a file of the manifest."""

    def require(self, span: Span) -> None:
        """Make sure of the weights of `span`, fetching them if need be. Raises: BadCheckpoint."""

    def has(self, stage: int) -> bool:
        """Whether the weights of a stage are on this machine already."""

    def stage_bytes(self, stage: int, dtype: str) -> int:
        """Memory that one stage takes."""

    def stage_digests(self, span: Span) -> tuple[bytes, ...]:
        """8 bytes per stage that name its weights. Raises: BadCheckpoint."""


class Backend(Protocol):
    """Blocking; called in worker threads. Raises: BadCheckpoint, UnsupportedModel, ConfigError."""

    def open(self, config: NodeConfig) -> Model:
        """The checkpoint, its small files read."""

    def dtype(self, model: Model, config: NodeConfig) -> str:
        """What the engine will compute in."""

    def load(self, model: Model, span: Span, config: NodeConfig) -> Engine:
        """The engine, its weights loaded."""

    def measure(self, engine: Engine) -> Speed:
        """How fast it is."""

    def free_bytes(self, config: NodeConfig) -> int:
        """Memory of the device that nobody uses."""


class TorchBackend:
    """The engine in `node.engine`; torch is imported when a model is opened."""

    def open(self, config: NodeConfig) -> Model:
        """See `Backend`."""
        from node.engine.threads import OPENMP_ENVIRONMENT, configure_threads

        for name, value in OPENMP_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from node.engine.checkpoint import Checkpoint

        if config.threads is not None:
            configure_threads(config.threads)
        return Checkpoint.open(config.model, cache_dir=config.cache_dir)

    def dtype(self, model: Model, config: NodeConfig) -> str:
        """See `Backend`."""
        from node.engine.checkpoint import Checkpoint
        from node.engine.span import choose_dtype

        assert isinstance(model, Checkpoint)
        return choose_dtype(model, config.dtype, config.device)

    def load(self, model: Model, span: Span, config: NodeConfig) -> Engine:
        """See `Backend`."""
        from node.engine.checkpoint import Checkpoint
        from node.engine.span import SpanEngine

        assert isinstance(model, Checkpoint)
        return SpanEngine.load(model, span, dtype=config.dtype, device=config.device)

    def measure(self, engine: Engine) -> Speed:
        """See `Backend`."""
        from node.engine.measure import measure
        from node.engine.span import SpanEngine

        assert isinstance(engine, SpanEngine)
        return measure(engine)

    def free_bytes(self, config: NodeConfig) -> int:
        """See `Backend`."""
        from node.engine.device import free_bytes

        return free_bytes(config.device)
