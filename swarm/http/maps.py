"""Who serves what, as the client sees it, and the commands for what nobody serves. In the trio loop."""

from __future__ import annotations

import shlex
from typing import Final

from protocol.errors import NoRoute
from swarm.client import Client
from swarm.coverage import Coverage, by_model
from swarm.http.errors import ApiError, unavailable

# Nodes that are shown though they do not answer; an announcement outlives a node that died by up to a minute.
SILENT_SHOWN: Final = 16
# When somebody may serve what is missing: a node needs some seconds to begin.
RETRY_S: Final = 5.0


def coverages(client: Client) -> list[Coverage]:
    """All models that are served where the client is."""
    weights = {client.model.digest: client.weights}
    announced = (*client.nodes, *client.silent(SILENT_SHOWN))
    return by_model(announced, client.rtt_ms, weights, client.precisions)


def own_coverage(client: Client) -> Coverage | None:
    """That of the client's model, if anybody is left who serves a part of it."""
    return next((each for each in coverages(client) if each.one.digest == client.model.digest), None)


def door(client: Client) -> str:
    """For a command: where a node of this model was met; what is only announced may be anybody's place."""
    said = (a for a in client.nodes if a.digest == client.model.digest)
    return next((addr for a in said for addr in client.book.proven(a.peer)), "ADDRESS")


def commands(client: Client) -> dict[str, str]:
    """What to run elsewhere: to serve the model too, and to use the swarm without this server."""
    join = shlex.quote(door(client))
    return {"node": f"swarm node --join {join}", "chat": f"swarm chat --join {join}"}


def no_route(error: NoRoute, client: Client) -> ApiError:
    """503, with the commands that fill the holes."""
    own = own_coverage(client)
    commands = [own.fill(hole, door(client)) for hole in own.missing] if own is not None else []
    text = f"{error}; to serve it: {'; '.join(commands)}" if commands else str(error)
    return unavailable(text, "no_route", RETRY_S, error.missing)
