"""What is counted, for Prometheus: no label has a peer in it, nor anything that strangers choose."""

from __future__ import annotations

from typing import Final, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from swarm.events import Fault
from swarm.http.answering import Ended
from swarm.http.line import Line
from swarm.http.place import Place
from swarm.http.pool import Pool

_TTFT: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_WAIT: Final = (0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60)
_TOKEN: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)


def _nodes(place: Place) -> int:
    return len(place.joined.rtt_ms) if place.joined is not None else 0


class Metrics:
    """Counts from any thread."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "swarm_http_requests", "Requests, by path and status.", ("path", "status"), registry=registry
        )
        self._answers = Counter(
            "swarm_answers", "Answers that are whole, by why they ended.", ("finish",), registry=registry
        )
        self._left = Counter("swarm_answers_left", "Answers given up by whoever asked.", registry=registry)
        self._prompt = Counter("swarm_prompt_tokens", "Tokens of prompts.", registry=registry)
        self._held = Counter(
            "swarm_held_tokens", "Tokens of prompts that idle sessions held already.", registry=registry
        )
        self._new = Counter("swarm_new_tokens", "Tokens of answers.", registry=registry)
        self._reroutes = Counter(
            "swarm_reroutes",
            "Hops that were replaced in mid-answer, by what was wrong.",
            ("fault",),
            registry=registry,
        )
        self._ttft = Histogram("swarm_ttft_seconds", "To the first token.", buckets=_TTFT, registry=registry)
        self._token = Histogram(
            "swarm_token_seconds", "A token after the first.", buckets=_TOKEN, registry=registry
        )

        self._mended = Histogram(
            "swarm_reroute_seconds", "From noticing a loss to going on.", buckets=_TTFT, registry=registry
        )
        self._waited = Histogram(
            "swarm_queue_seconds", "In line for a place.", buckets=_WAIT, registry=registry
        )
        for fault in get_args(Fault):
            self._reroutes.labels(fault)

    def watch(self, line: Line, pool: Pool, place: Place) -> None:
        """Read these whenever the numbers are asked for."""
        line.on_place = self._waited.observe
        for name, about, read in (
            ("swarm_answers_active", "Answers under way.", lambda: line.active),
            ("swarm_requests_waiting", "Requests in line.", lambda: line.waiting),
            ("swarm_places", "Answers that are computed at once.", lambda: line.places),
            ("swarm_joined", "1 once the swarm has been entered.", lambda: place.joined is not None),
            ("swarm_nodes", "Nodes that answered when they were asked last.", lambda: _nodes(place)),
            ("swarm_sessions_idle", "Sessions that wait to be gone on from.", lambda: pool.size),
            ("swarm_sessions_taken", "Idle sessions that were gone on from.", lambda: pool.taken),
        ):
            Gauge(name, about, registry=self._registry).set_function(read)

    def answered(self, said: Ended) -> None:
        """See `Tally`."""
        answer = said.answer
        self._answers.labels(answer.finish_reason).inc()
        self._prompt.inc(answer.prompt_tokens)
        self._held.inc(said.held)
        self._new.inc(len(answer.tokens))
        for each in answer.reroutes:
            self._reroutes.labels(each.fault).inc()
            self._mended.observe(each.seconds)
        self._ttft.observe(answer.ttft_s)
        if answer.tokens_per_s:
            self._token.observe(1 / answer.tokens_per_s)

    def left(self) -> None:
        """See `Tally`."""
        self._left.inc()

    def responded(self, path: str, status: int) -> None:
        """A request has got its status; `path` is one of the application's."""
        self._requests.labels(path, str(status)).inc()

    def text(self) -> bytes:
        """All of it, in Prometheus' form."""
        return generate_latest(self._registry)
