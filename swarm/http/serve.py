"""Everything together: a client in its loop, the API in its thread, for as long as the `with` block lasts."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

from swarm.http.app import application
from swarm.http.bridge import Bridge
from swarm.http.line import Line
from swarm.http.metrics import Metrics
from swarm.http.place import Enter
from swarm.http.server import bind, serving
from swarm.http.service import Service
from swarm.http.settings import Settings
from swarm.portal import Portal


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that listens. `ended` is done when the client has ended, which it does only by an error."""

    url: str
    service: Service
    ended: Future[None]


@contextmanager
def serve(portal: Portal, enter: Enter, settings: Settings) -> Iterator[Serving]:
    """Listen at once, and enter the swarm meanwhile. Raises: ConfigError, where it cannot be listened."""
    bound = bind(settings.host, settings.port)
    metrics = Metrics()
    line = Line(settings.places, settings.queued, settings.share)
    service = Service(Bridge(portal), enter, line, metrics)
    metrics.watch(service.line, service.pool, service.place)
    job = portal.start(service.run)
    try:
        with serving(application(service, settings, metrics), bound):
            yield Serving(_url(bound), service, job.outcome)
    finally:
        job.cancel()


def _url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
