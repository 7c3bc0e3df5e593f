"""The one bridge to the node's side: starts the daemon, or runs both ends of a model for a full client.

Everything of `node` is imported inside functions, so that a client without torch never notices.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import trio

from protocol.errors import ConfigError

if TYPE_CHECKING:
    from swarm.session.session import Ends

_INSTALL: Final = 'pip install "inference-swarm[node]"'
_NEEDED: Final = ("torch", "transformers", "safetensors", "huggingface_hub", "psutil")


def serve(options: dict[str, Any], on_line: Callable[[str], None]) -> None:
    """Run a node until it is told to leave; `options` are fields of `node.config.NodeConfig`.

    Raises: ConfigError, also where the node's half is not installed; what `node.daemon.run` raises.
    """
    _require("serving layers")
    from node import daemon
    from node.config import NodeConfig

    config = NodeConfig(**options)
    config.check()
    sys.setswitchinterval(daemon.SWITCH_INTERVAL_S)

    async def run() -> None:
        await daemon.run(config, on_event=on_line)

    trio.run(run)


def load_ends(folder: str) -> Ends:
    """Both ends of the checkpoint in `folder`. Raises: ConfigError, BadCheckpoint, UnsupportedModel."""
    _require("running both ends of a model")
    from node.engine.checkpoint import Checkpoint
    from node.engine.ends import LocalEnds

    return LocalEnds.load(Checkpoint.open(folder))


def _require(what: str) -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"{what} needs {', '.join(missing)}: {_INSTALL}")
