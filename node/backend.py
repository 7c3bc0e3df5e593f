"""The way from the daemon to its engines: which of them computes, and all that blocks or imports torch behind it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from node.compute.interfaces import Engine
from node.config import NodeConfig
from node.engine.files import CheckpointFiles
from node.engine.shards import StoredTensor
from node.native.checkpoint import ModelFiles, open_files
from node.native.load import NoKernels, load_kernel
from node.store.files import FetchedFiles
from protocol.errors import ConfigError, UnsupportedModel
from protocol.inventory import Inventory
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

    def inventory(self, stage: int) -> Inventory:
        """What the weights of a stage consist of, as they are stored; read once. Raises: BadCheckpoint."""

    def stored(self, stage: int) -> Mapping[str, tuple[Path, StoredTensor]]:
        """Where the tensors of a stage lie. Raises: BadCheckpoint."""


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


class OpenBackend(Protocol):
    """Opens what a node serves. Raises BadCheckpoint, UnsupportedModel, ConfigError."""

    def __call__(self, config: NodeConfig, fetched: FetchedFiles | None = None) -> Backend:
        """The checkpoint that `config` names, or the one that was fetched from peers. Blocks."""


def open_backend(config: NodeConfig, fetched: FetchedFiles | None = None) -> Backend:
    """The checkpoint that `config` names, or that was fetched, for the engine that `config` asks for.

    Its small files are read once.

    Left to choose, that is the native one, unless the kernels do not know the model completely or are not there. A
    GGUF file is for the native one alone.
    """
    model = fetched.name if fetched is not None else str(config.model)
    torch_asked = config.engine == "torch" or not config.suits_kernels
    if torch_asked:
        need_torch(model, "as asked")
    files = fetched or _open_files(model, config.cache_dir)
    if torch_asked:
        return _open_torch(config, files, "as asked")
    try:
        return _open_native(config, files)
    except (UnsupportedModel, NoKernels) as error:
        if config.engine == "native":
            raise ConfigError(f"{model} cannot be served by the native kernels: {error}") from error
        return _open_torch(config, files, str(error))


def _open_native(config: NodeConfig, files: ModelFiles) -> Backend:
    """For the engine in `node.native`; nothing imports torch.

    Raises: UnsupportedModel, if the kernels do not know the model; NoKernels.
    """
    from node.native.backend import NativeBackend

    return NativeBackend.open(files, config.quant, threads=config.threads)


def _open_torch(config: NodeConfig, files: ModelFiles, why: str) -> Backend:
    """For the engine in `node.engine`; torch is imported here. why: it is this engine, for people."""
    plain = _for_torch(files.name, files, why)
    from node.engine.threads import OPENMP_ENVIRONMENT, configure_threads

    for name, value in OPENMP_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from node.engine.backend import TorchBackend

    if config.threads is not None:
        configure_threads(config.threads)
    return TorchBackend.open(
        plain,
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

    files = _open_files(model, None)
    try:
        return NativeEnds.load(NativeCheckpoint(files, F32), load_kernel())
    except (UnsupportedModel, NoKernels) as error:
        plain = _for_torch(model, files, str(error))
    from node.engine.checkpoint import Checkpoint
    from node.engine.ends import LocalEnds

    return LocalEnds.load(Checkpoint(plain))


def _open_files(model: str, cache_dir: str | None) -> ModelFiles:
    """The small files of a checkpoint, and where its weights lie. Raises: ConfigError, BadCheckpoint."""
    try:
        return open_files(model, cache_dir)
    except UnsupportedModel as error:
        raise ConfigError(f"{model} cannot be served by the native kernels: {error}") from error


def _for_torch(model: str, files: ModelFiles, why: str) -> CheckpointFiles:
    """The same, if torch reads them and is here. Raises: ConfigError, which says why torch would have to."""
    if not isinstance(files, CheckpointFiles) or (isinstance(files, FetchedFiles) and files.of_gguf):
        raise ConfigError(f"{model} is a GGUF file, which only the native kernels serve ({why})")
    need_torch(model, why)
    return files


def need_torch(model: str, why: str) -> None:
    """Raises ConfigError with what is missing and how to get it."""
    if missing := [name for name in _TORCH if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"{model} needs {', '.join(missing)}: {_INSTALL} ({why})")
