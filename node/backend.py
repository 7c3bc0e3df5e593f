"""The way from the daemon to its engines: which of them computes, and all that blocks or imports torch behind it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from node.compute.interfaces import Engine
from node.config import NodeConfig
from node.native.gguf.files import find_gguf
from node.native.load import NoKernels, load_kernel
from protocol.errors import ConfigError, UnsupportedModel
from protocol.model import Manifest, Span
from protocol.numerics import Numerics

if TYPE_CHECKING:
    from node.engine.ends import LocalEnds
    from node.native.ends import NativeEnds

# What an installation for native nodes alone lacks, and what brings it.
_TORCH: Final = ("torch", "transformers", "safetensors")
_INSTALL: Final = 'pip install "inference-swarm[node,torch]"'


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
    """What computes a model, and where. Blocking: called in worker threads."""

    @property
    def model(self) -> Model:
        """The checkpoint, its small files read."""

    def dtype(self) -> str:
        """Of the hidden states that its engines take and give. Raises: ConfigError, UnsupportedModel."""

    def numerics(self) -> Numerics:
        """What its engines compute in. Raises: ConfigError, UnsupportedModel."""

    def kernels(self) -> str:
        """Whose code computes, for people; where it is not the native one, why."""

    def load(self, span: Span) -> Engine:
        """An engine for `span`, its weights loaded. Raises: BadCheckpoint, UnsupportedModel, ConfigError."""

    def free_bytes(self) -> int:
        """Memory of the device that nobody uses."""


# Raises BadCheckpoint, UnsupportedModel, ConfigError.
OpenBackend = Callable[[NodeConfig], Backend]


def open_backend(config: NodeConfig) -> Backend:
    """The checkpoint that `config` names, for the engine that it asks for.

    Left to choose, that is the native one, unless the kernels do not know the model completely or are not there. A
    GGUF file is for the native one alone.
    """
    single = find_gguf(config.model) is not None
    if single and (config.engine == "torch" or not config.suits_kernels):
        raise ConfigError(
            f"{config.model} is a GGUF file, which only the native kernels serve, in --quant's precision"
        )
    if config.engine == "torch" or not config.suits_kernels:
        return open_torch(config, "as asked")
    try:
        return open_native(config)
    except (UnsupportedModel, NoKernels) as error:
        if config.engine == "native" or single:
            raise ConfigError(f"{config.model} cannot be served by the native kernels: {error}") from error
        return open_torch(config, str(error))


def open_native(config: NodeConfig) -> Backend:
    """The checkpoint that `config` names, for the engine in `node.native`; nothing imports torch.

    Raises: UnsupportedModel, if the kernels do not know the model; NoKernels.
    """
    from node.native.backend import NativeBackend

    return NativeBackend.open(config.model, config.quant, cache_dir=config.cache_dir, threads=config.threads)


def open_torch(config: NodeConfig, why: str) -> Backend:
    """The checkpoint that `config` names, for the engine in `node.engine`; torch is imported here.

    why: it is this engine, for people.
    """
    need_torch(config.model, why)
    from node.engine.threads import OPENMP_ENVIRONMENT, configure_threads

    for name, value in OPENMP_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from node.engine.backend import TorchBackend

    if config.threads is not None:
        configure_threads(config.threads)
    return TorchBackend.open(
        config.model,
        cache_dir=config.cache_dir,
        dtype=config.dtype,
        device=config.device,
        quant=config.quant,
        threads=config.threads,
        why=why,
    )


def open_ends(model: str) -> NativeEnds | LocalEnds:
    """Both ends of a checkpoint, for a client that runs them itself, by the engine that a node would choose.

    Raises: ConfigError, BadCheckpoint, UnsupportedModel.
    """
    from node.native.checkpoint import NativeCheckpoint
    from node.native.ends import NativeEnds
    from node.native.precision import F32

    try:
        return NativeEnds.load(NativeCheckpoint.open(model, F32), load_kernel())
    except (UnsupportedModel, NoKernels) as error:
        if find_gguf(model) is not None:
            raise ConfigError(f"{model} cannot be served by the native kernels: {error}") from error
        need_torch(model, str(error))
    from node.engine.checkpoint import Checkpoint
    from node.engine.ends import LocalEnds

    return LocalEnds.load(Checkpoint.open(model))


def need_torch(model: str, why: str) -> None:
    """Raises ConfigError with what is missing and how to get it."""
    if missing := [name for name in _TORCH if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"{model} needs {', '.join(missing)}: {_INSTALL} ({why})")
