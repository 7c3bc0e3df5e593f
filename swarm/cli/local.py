"""The one bridge to the node's side: starts the daemon, or runs both ends of a model for a full client.

Everything of `node` is imported inside functions, so that a client without its dependencies never notices.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from protocol.errors import ConfigError
from swarm.cli.node_process import Told

if TYPE_CHECKING:
    from swarm.session.session import Ends

# What the two extras of the package bring.
_NODE: Final = ("huggingface_hub", "psutil")
_TORCH: Final = ("torch", "transformers", "safetensors")


def serve(options: dict[str, Any], tell: Callable[[Told], None]) -> None:
    """Run a node until it is told to leave; `options` are fields of `node.config.NodeConfig`.

    Raises: ConfigError, also where the node's half is not installed; what `node.process.serve` raises.
    """
    _require("serving layers", _NODE, "node")
    from node import process
    from node.config import NodeConfig

    process.serve(NodeConfig(**options), lambda event: tell(Told(event.name, str(event), event.as_json())))


def load_ends(folder: str) -> Ends:
    """Both ends of the checkpoint in `folder`. Raises: ConfigError, BadCheckpoint, UnsupportedModel."""
    _require("running both ends of a model", (*_NODE, *_TORCH), "node,torch")
    from node.engine.checkpoint import Checkpoint
    from node.engine.ends import LocalEnds

    return LocalEnds.load(Checkpoint.open(folder))


def _require(what: str, names: tuple[str, ...], extras: str) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f'{what} needs {", ".join(missing)}: pip install "inference-swarm[{extras}]"')
