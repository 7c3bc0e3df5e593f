"""The client of a peer-to-peer swarm that serves large language models. Knows no torch and no node."""

from protocol.errors import SwarmError
from swarm.client import Client, Conversation, connect
from swarm.decoding import Sampling
from swarm.generation import Answer, Piece
from swarm.route import Hop, Route
from swarm.session import Session

__all__ = [
    "Answer", "Client", "Conversation", "Hop", "Piece", "Route", "Sampling", "Session", "SwarmError", "connect",
]  # fmt: skip
