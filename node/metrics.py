"""A node's numbers for Prometheus, over HTTP: no label has a peer in it, nor anything that strangers choose.

One request at a time, answered by a thread that does nothing else; what it says is read in the event loop.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import trio
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from node.compute.counts import Histogram
from node.figures import Figures
from protocol.errors import ConfigError

LOOPBACK: Final = "127.0.0.1"
# Who asks for numbers asks at once; the thread is not held for longer by who does not.
REQUEST_S: Final = 2.0

_GAUGES: Final = {
    "serving": "1 once sessions are taken.",
    "sessions": "Sessions open.",
    "waiting": "Steps that wait to be computed.",
    "kv_tokens": "Tokens of KV cache that sessions may take together.",
    "kv_free": "Of these, tokens that nobody has reserved.",
    "kept_bytes": "Bytes of what sessions computed, kept for those that begin alike.",
    "peers_met": "Nodes that were met where they say they are.",
    "peers_known": "Nodes whose announcements are held.",
}
CODES: Final = ("busy", "model", "span", "capacity", "draining", "fork")


@contextmanager
def serving(
    place: str, look: Callable[[], Figures], statistics: Callable[[], Mapping[str, int]]
) -> Iterator[str]:
    """Answer at "ADDRESS:PORT", or at a port of loopback; the URL. `look` and `statistics` are called in trio's loop.

    Raises: ConfigError, where it cannot be listened.
    """
    host, port = parse_place(place)
    registry = CollectorRegistry()
    registry.register(_Collector(look, statistics, trio.lowlevel.current_trio_token()))
    kind = _Server6 if ":" in host else _Server
    try:
        server = kind((host, port), _Handler)
    except OSError as error:
        raise ConfigError(f"cannot listen for metrics on {place}: {error.strerror}") from error
    server.set_app(make_wsgi_app(registry))
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{server.server_address[1]}/metrics"
    finally:
        # Not waited for: it may be waiting for the loop that this runs in.
        threading.Thread(target=server.shutdown, daemon=True).start()
        server.socket.close()


def parse_place(place: str) -> tuple[str, int]:
    """Host and port. Raises: ConfigError."""
    host, _, port = place.rpartition(":")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise ConfigError(
            f"metrics {place!r}: give a port, as 9464, or an address and a port, as 0.0.0.0:9464"
        )
    return host.strip("[]") or LOOPBACK, int(port)


def families(figures: Figures, statistics: Mapping[str, int]) -> Iterator[Metric]:
    """All of it."""
    counts = figures.counts
    for name, about in _GAUGES.items():
        yield GaugeMetricFamily(f"swarm_node_{name}", about, float(getattr(figures, name)))
    connections = statistics.get("connections", 0)
    yield GaugeMetricFamily("swarm_node_connections", "Connections, verified or not yet.", connections)
    for name, about, value in (
        ("opened", "Sessions opened.", counts.opened),
        ("gave_way", "Sessions that lost their seats to others.", counts.gave_way),
        ("steps", "Steps computed.", counts.steps),
        ("tokens", "Tokens computed, one through all layers that are served here.", counts.rows),
        ("gossip_exchanges", "Maps exchanged with peers.", figures.exchanged),
        ("gossip_failures", "Exchanges that did not come about.", figures.not_exchanged),
    ):
        yield CounterMetricFamily(f"swarm_node_{name}", about, value)
    refused = CounterMetricFamily("swarm_node_refused", "Sessions refused, by why.", labels=["code"])
    for code in CODES:
        refused.add_metric([code], counts.refused[code])
    yield refused
    for what in ("bytes", "datagrams"):
        passed = CounterMetricFamily(f"swarm_node_{what}", f"UDP {what}, by way.", labels=["way"])
        for way in ("sent", "received"):
            passed.add_metric([way], statistics.get(f"{what}_{way}", 0))
        yield passed
    yield _histogram("swarm_node_batch_seconds", "What a batch takes.", counts.batch_s)
    yield _histogram("swarm_node_batch_tokens", "Tokens in a batch.", counts.batch_rows)
    yield _histogram("swarm_node_batch_sessions", "Sessions in a batch.", counts.batch_sessions)
    yield _histogram("swarm_node_queue_seconds", "What a step waits before it is computed.", counts.queue_s)


def _histogram(name: str, about: str, found: Histogram) -> Metric:
    bounds = [*map(str, found.bounds), "+Inf"]
    buckets = list(zip(bounds, map(float, found.cumulative), strict=True))
    return HistogramMetricFamily(name, about, buckets=buckets, sum_value=found.sum)


class _Collector(Collector):
    def __init__(
        self,
        look: Callable[[], Figures],
        statistics: Callable[[], Mapping[str, int]],
        token: trio.lowlevel.TrioToken,
    ) -> None:
        self._look = look
        self._statistics = statistics
        self._token = token

    def collect(self) -> list[Metric]:
        """In the server's thread."""
        return trio.from_thread.run_sync(
            lambda: list(families(self._look(), self._statistics())), trio_token=self._token
        )

    def describe(self) -> list[Metric]:
        """Nothing beforehand: it would have to be read in the loop that registers it."""
        return []


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_S

    def log_message(self, format: str, *args: Any) -> None:
        """Strangers write no lines."""


class _Server(WSGIServer):
    """Without the look-up of its own name, which may take seconds."""

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who hangs up, or asks while the node ends, is no news."""


class _Server6(_Server):
    address_family = socket.AF_INET6
