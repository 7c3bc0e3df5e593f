"""The client of a peer-to-peer swarm that serves large language models. Knows no torch and no node."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protocol.errors import NoRoute, SwarmError
    from swarm import blocking
    from swarm.answer import Alternative, Answer, Piece, Settled
    from swarm.answers import Answered, Answers, Several
    from swarm.client import Client
    from swarm.conversation import Conversation
    from swarm.decoding import (
        BeamSearch,
        BestOf,
        Contrastive,
        ContrastiveSearch,
        Grammar,
        Greedy,
        Sample,
        Sampling,
        Speculative,
        Strategy,
        Token,
    )
    from swarm.entry import connect
    from swarm.events import Event
    from swarm.generation import Generation
    from swarm.request import Request
    from swarm.routing.route import Hop, Route
    from swarm.session.session import Session

__all__ = [
    "Alternative",
    "Answer",
    "Answered",
    "Answers",
    "BeamSearch",
    "BestOf",
    "Client",
    "Contrastive",
    "ContrastiveSearch",
    "Conversation",
    "Event",
    "Generation",
    "Grammar",
    "Greedy",
    "Hop",
    "NoRoute",
    "Piece",
    "Request",
    "Route",
    "Sample",
    "Sampling",
    "Session",
    "Settled",
    "Several",
    "Speculative",
    "Strategy",
    "SwarmError",
    "Token",
    "blocking",
    "connect",
]
# Imported when they are asked for: a node, which is started by the same command line, needs nothing of a client.
_PLACES = {
    "Alternative": "swarm.answer",
    "Answer": "swarm.answer",
    "Answered": "swarm.answers",
    "Answers": "swarm.answers",
    "BeamSearch": "swarm.decoding",
    "BestOf": "swarm.decoding",
    "Client": "swarm.client",
    "Contrastive": "swarm.decoding",
    "ContrastiveSearch": "swarm.decoding",
    "Conversation": "swarm.conversation",
    "Event": "swarm.events",
    "Generation": "swarm.generation",
    "Grammar": "swarm.decoding",
    "Greedy": "swarm.decoding",
    "Hop": "swarm.routing.route",
    "NoRoute": "protocol.errors",
    "Piece": "swarm.answer",
    "Request": "swarm.request",
    "Route": "swarm.routing.route",
    "Sample": "swarm.decoding",
    "Sampling": "swarm.decoding",
    "Speculative": "swarm.decoding",
    "Session": "swarm.session.session",
    "Settled": "swarm.answer",
    "Several": "swarm.answers",
    "Strategy": "swarm.decoding",
    "SwarmError": "protocol.errors",
    "Token": "swarm.decoding",
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
