"""The client of a peer-to-peer swarm that serves large language models. Knows no torch and no node."""

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
