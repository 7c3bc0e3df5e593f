"""The client of a peer-to-peer swarm that serves large language models. Knows no torch and no node."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protocol.errors import NoRoute, SwarmError
    from swarm import blocking
    from swarm.client import Client
    from swarm.conversation import Conversation
    from swarm.decoding import Sampling
    from swarm.entry import connect
    from swarm.events import Event
    from swarm.generation import Answer, Generation, Piece
    from swarm.routing.route import Hop, Route
    from swarm.session.session import Session

__all__ = [
    "Answer",
    "Client",
    "Conversation",
    "Event",
    "Generation",
    "Hop",
    "NoRoute",
    "Piece",
    "Route",
    "Sampling",
    "Session",
    "SwarmError",
    "blocking",
    "connect",
]
# Imported when they are asked for: a node, which is started by the same command line, needs nothing of a client.
_PLACES = {
    "Answer": "swarm.generation",
    "Client": "swarm.client",
    "Conversation": "swarm.conversation",
    "Event": "swarm.events",
    "Generation": "swarm.generation",
    "Hop": "swarm.routing.route",
    "NoRoute": "protocol.errors",
    "Piece": "swarm.generation",
    "Route": "swarm.routing.route",
    "Sampling": "swarm.decoding",
    "Session": "swarm.session.session",
    "SwarmError": "protocol.errors",
    "connect": "swarm.entry",
}


def __getattr__(name: str) -> object:
    if name == "blocking":
        return import_module("swarm.blocking")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
