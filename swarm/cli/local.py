"""The one bridge to the node's side: starts the daemon, runs both ends of a model for a full client, plans.

Everything of `node` is imported inside functions, so that a client without its dependencies never notices.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from protocol.errors import ConfigError
from swarm.cli.node_process import Told

if TYPE_CHECKING:
    from node.store.cache import KeptModel
    from swarm.branches import Model
    from swarm.cli.demo_layout import Weights
    from swarm.session.ends import Ends

_INSTALL: Final = 'pip install "inference-swarm[node]"'
_NEEDED: Final = ("huggingface_hub", "psutil")


def serve(options: dict[str, Any], tell: Callable[[Told], None]) -> None:
    """Run a node until it is told to leave; `options` are fields of `node.config.NodeConfig`.

    Raises: ConfigError, also where the node's half is not installed; what `node.process.serve` raises.
    """
    _require("serving layers")
    from node import process
    from node.config import NodeConfig

    process.serve(NodeConfig(**options), lambda event: tell(Told(event.name, str(event), event.as_json())))


def load_ends(folder: str) -> Ends:
    """Both ends of the checkpoint in `folder`. Raises: ConfigError, BadCheckpoint, UnsupportedModel."""
    _require("running both ends of a model")
    from node.backend import open_ends

    return open_ends(folder)


def load_whole(model: str) -> Model:
    """All of a checkpoint, to draft or to be an amateur. Raises: ConfigError, BadCheckpoint, UnsupportedModel."""
    _require("a model beside the swarm's")
    from node.whole import WholeModel

    return WholeModel.open(model)


def plan(model: str, memories: Sequence[int], cache_dir: str | None) -> dict[str, Any]:
    """What `model` would take, and machines with so much free memory for it; see `node.advice.advise`.

    Raises: ConfigError, BadCheckpoint, UnsupportedModel.
    """
    _require("planning")
    from node import memory
    from node.advice import advise
    from node.estimate import estimate

    asked = (
        "MODEL" if Path(model).suffix == ".json" else model
    )  # a config.json by itself can be served by nobody
    return advise(estimate(model, cache_dir=cache_dir), asked, memories, memory.free_bytes())


def weights(model: str) -> Weights:
    """What the stages of `model` take, and what is free here for them.

    Raises: ConfigError, BadCheckpoint, UnsupportedModel.
    """
    _require("running nodes")
    from node import memory
    from node.estimate import estimate
    from swarm.cli.demo_layout import Weights

    said = estimate(model)
    if said.refused:
        raise ConfigError(f"{said.name}: {said.refused}")
    by_quant = {
        quant if quant in ("int8", "int4") else "none": of.stages for quant, of in said.served().items()
    }
    return Weights(said.name, by_quant, memory.for_weights(memory.free_bytes()))


def fetch(model: str) -> None:
    """Have all weights of `model` on this machine; the hub's own package tells how far it is.

    Raises: ConfigError, BadCheckpoint.
    """
    from node.native.checkpoint import open_files

    files = open_files(model)
    for tensor in files.tensors:
        files.stored(tensor)


def models(cache_dir: str | None) -> list[dict[str, Any]]:
    """The models whose weights are kept on this machine, what was used last first.

    `size` is in bytes, `used_at` in seconds since the Unix epoch.
    """
    _require("keeping models")
    from node.store.cache import Cache, default_folder

    cache = Cache(Path(cache_dir) if cache_dir else default_folder())
    return [_kept_fields(model) for model in cache.models() if model.stages]


def remove_model(name: str, cache_dir: str | None) -> dict[str, Any]:
    """Remove a model from this machine; what it was. Raises: ConfigError, if there is none, or a node uses it."""
    _require("keeping models")
    from node.store.cache import Cache, choose, default_folder

    cache = Cache(Path(cache_dir) if cache_dir else default_folder())
    model = choose(cache.models(), name)
    cache.remove(model)
    return _kept_fields(model)


def kernels() -> tuple[str | None, str, list[str]]:
    """The kernels that this machine computes with, or None and why there are none; and what its processor has."""
    from node.native import build
    from node.native.load import NoKernels, load_kernel, usable_object

    processor = [isa for isa in build.isas() if isa != "plain" and usable_object(isa, build.BUILT)]
    try:
        return load_kernel(1).isa, "", processor
    except ConfigError as error:
        return None, str(error).removeprefix("there are ") if isinstance(error, NoKernels) else str(error), []


def memory() -> tuple[int, int]:
    """Bytes that are free here, and of these what may be taken for weights."""
    _require("serving layers")
    from node import memory as of_machine

    free = of_machine.free_bytes()
    return free, of_machine.for_weights(free)


def _kept_fields(model: KeptModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "digest": model.digest.hex(),
        "stages": model.stages,
        "size": model.size_bytes,
        "used_at": model.used_at,
        "in_use": model.in_use,
    }


def _require(what: str) -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"{what} needs {', '.join(missing)}: {_INSTALL}")
