"""The `swarm` command. Knows the client; of the node daemon it knows only how to start it (`local`)."""

from swarm.cli.app import main

__all__ = ["main"]
