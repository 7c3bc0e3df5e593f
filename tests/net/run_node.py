"""Runs one node as `swarm node` does, from a configuration in JSON: `python tests/net/run_node.py '{...}'`."""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from node.config import NodeConfig
from node.daemon import main


def config(fields: dict[str, Any]) -> NodeConfig:
    """The configuration whose lists are tuples and whose home is a path."""
    plain: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    plain["home"] = Path(fields["home"])
    return NodeConfig(**plain)


if __name__ == "__main__":
    sys.exit(main(config(json.loads(sys.argv[1]))))
