"""Runs one node as `swarm node` does, from a configuration in JSON: `python tests/net/run_node.py '{...}'`."""

import json
import sys
from pathlib import Path
from typing import Any

import trio

sys.path.insert(0, str(Path(__file__).parents[2]))

from node.config import NodeConfig
from node.daemon import SWITCH_INTERVAL_S, run
from protocol.errors import ConfigError, SwarmError


def config(fields: dict[str, Any]) -> NodeConfig:
    """The configuration whose lists are tuples and whose home is a path."""
    plain: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    plain["home"] = Path(fields["home"])
    return NodeConfig(**plain)


def main(config: NodeConfig) -> int:
    """Serve, with the node's lines on stdout; the exit status is that of `swarm node`."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)

    async def serve() -> None:
        await run(config, on_event=lambda line: print(line, flush=True))

    try:
        trio.run(serve)
    except SwarmError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(config(json.loads(sys.argv[1]))))
