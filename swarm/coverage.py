"""Who serves which layers of a model, by what is announced and who answers; and what to run where nobody does."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protocol import limits
from protocol.model import Span, describe_stages
from protocol.plain import plain
from protocol.records import Announcement
from swarm.routing.precision import ANYTHING, Precisions
from swarm.routing.route import missing_stages, serve_command


@dataclass(frozen=True, slots=True)
class Coverage:
    """One model and the nodes that say they serve it, in the order of their spans.

    `rtt_ms` holds those that answered. A node that does not is drawn, but counts for nothing: an announcement
    outlives a node that died by up to a minute.
    """

    nodes: tuple[Announcement, ...]
    rtt_ms: Mapping[str, float]
    weights: str | None = None  # the digest of the weights of the whole, where every stage is served
    precisions: Precisions = ANYTHING  # a node that computes otherwise is drawn, but counts for nothing

    @property
    def one(self) -> Announcement:
        """Any of them, for what all say alike."""
        return self.nodes[0]

    @property
    def name(self) -> str:
        """What the model is called, to be shown."""
        return plain(self.one.model, limits.NAME_CELLS)

    @property
    def spans(self) -> list[Span]:
        """What is served now, by nodes that answer and are taken."""
        return [node.span for node in self.nodes if self.serves(node)]

    @property
    def missing(self) -> list[Span]:
        """Stages that nobody serves now."""
        return missing_stages(Span(0, self.one.stages), self.spans)

    @property
    def copies(self) -> list[int]:
        """How many serve each stage now."""
        spans = self.spans
        return [sum(stage in span for span in spans) for stage in range(self.one.stages)]

    def state(self, node: Announcement) -> str:
        """What the node says it does; "silent" if it does not answer."""
        return node.state if node.peer in self.rtt_ms else "silent"

    def serves(self, node: Announcement) -> bool:
        """Whether a client that takes these precisions would use the node now."""
        return self.state(node) == "serving" and self.precisions.take(node.numerics)

    def hole(self, hole: Span) -> str:
        """That nobody serves some stages, in words."""
        asked = f" in {self.precisions}" if self.precisions.taken is not None else ""
        return f"nobody serves {describe_stages(hole, self.one.blocks)}{asked}"

    def fill(self, hole: Span, join: str) -> str:
        """The command that fills a hole."""
        name, option = shlex.quote(self.name), self.precisions.node_option
        return serve_command(hole, self.one.blocks, name, shlex.quote(join), option)


def by_model(
    announcements: Sequence[Announcement],
    rtt_ms: Mapping[str, float],
    weights: Mapping[bytes, str | None] | None = None,
    precisions: Precisions = ANYTHING,
) -> list[Coverage]:
    """The models of a swarm, the one with the most nodes first; `weights` by model digest, where they are known."""
    digests = dict.fromkeys(a.digest for a in announcements)
    groups = [
        sorted((a for a in announcements if a.digest == d), key=lambda a: (a.span, a.peer)) for d in digests
    ]
    groups.sort(key=lambda group: (-len(group), group[0].model))
    known = weights or {}
    return [Coverage(tuple(group), rtt_ms, known.get(group[0].digest), precisions) for group in groups]


def coverage_fields(coverage: Coverage, join: str) -> dict[str, Any]:
    """A model for --json."""
    one = coverage.one
    return {
        "model": coverage.name,
        "digest": one.digest.hex(),
        "weights": coverage.weights,
        "precision": str(coverage.precisions),
        "layers": one.blocks,
        "complete": not coverage.missing,
        "copies": coverage.copies,
        "missing": [
            {
                "stages": [hole.start, hole.stop],
                "serves": describe_stages(hole, one.blocks),
                "command": coverage.fill(hole, join),
            }
            for hole in coverage.missing
        ],
        "nodes": [_node_fields(coverage, node) for node in coverage.nodes],
    }


def _node_fields(coverage: Coverage, node: Announcement) -> dict[str, Any]:
    rtt_ms = coverage.rtt_ms.get(node.peer)
    return {
        "peer": node.peer,
        "addrs": list(node.addrs),
        "stages": [node.span.start, node.span.stop],
        "serves": describe_stages(node.span, node.blocks),
        "dtype": node.dtype,
        "numerics": str(node.numerics),
        "state": coverage.state(node),
        "taken": coverage.serves(node),
        "decode_ms": node.decode_ms,
        "prefill_ms": node.prefill_ms,
        "queue_ms": node.queue_ms,
        "kv_tokens": node.kv_tokens,
        "kv_tokens_total": node.kv_tokens_total,
        "rtt_ms": None if rtt_ms is None else round(rtt_ms, 3),
    }
