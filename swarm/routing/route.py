"""From a map of the swarm to a route: pure, so `rng` and every measurement are arguments.

The route is the least cost per token, found by Dijkstra's algorithm over states (stage, peer): a peer computes some
of its stages, then either goes on or hands over to another that serves the next one. Costs are linear in the stages
used, so an optimal hand-over lies where some span starts or ends; only those stages are states.

A cost is an expected time and what a client would rather not have, as the time that it would wait instead: fewer
bits, a change of numerics along the way, and most of all stages of an answer under way that would be computed
otherwise than so far. So of equally fast routes the one of one numerics and of the most bits is taken, and a route
that is faster by far whatever it is of.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final

from protocol.errors import NoRoute
from protocol.model import Span, describe_stages
from protocol.numerics import Numerics
from protocol.records import Announcement
from swarm.routing.precision import loss

# What one more hop costs besides distance: framing, wake-ups and thread hand-over at the hop.
HOP_MS: Final = 1.0
# Where nobody measured: a long but usual internet path. Measured peers win against unmeasured ones.
UNKNOWN_ONE_WAY_MS: Final = 100.0
# Costs are scattered by up to this share, so that clients with one map do not all herd to one peer.
SCATTER: Final = 0.05
# A node costs this share more for each step of `loss`: of nodes that are equally fast, also by the scatter, the one
# that gives up less is taken. Fewer bits are there to be faster by far, or they are worth nothing.
LOSS: Final = SCATTER
# A change of numerics from one hop to the next: ten hops more would cost as much. A mix is no worse than its worst
# part, but a route of one kind is repaired by its kind and gives the same answer another time.
CHANGE_MS: Final = 10.0
# Each stage that would be computed otherwise than so far in the session: a stage at a distant, slow node costs less.
OTHERWISE_MS: Final = 100.0
# A session takes room as it grows, and most end long before they are as long as they might be: where nobody has all
# that it may need, who has this much is asked.
BEGIN_TOKENS: Final = 1024


@dataclass(frozen=True, slots=True)
class Hop:
    """One peer's part of a route. `expected_ms` per token: the way to it, its queue and its computing.

    What it announces of itself, by which it is judged: `token_ms` for a token through its span, `row_ms` for each
    row of many, `queue_ms` until it begins, the `dtype` of its hidden states ("": not known) and its `numerics`.
    """

    peer: str
    addrs: tuple[str, ...]
    span: Span
    expected_ms: float
    token_ms: float = 0.0
    row_ms: float = 0.0
    queue_ms: float = 0.0
    dtype: str = ""
    numerics: Numerics | None = None


@dataclass(frozen=True, slots=True)
class Need:
    """What a route is for: `stages` of a model of `blocks`, with room for `tokens` at each hop.

    `so_far` has what stages of the session were computed in up to now, those beside the route's as well.
    """

    stages: Span
    blocks: int
    tokens: int
    so_far: Mapping[int, Numerics] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route:
    """Hops that together cover the stages the client does not run itself; prints as a table."""

    hops: tuple[Hop, ...]
    blocks: int
    expected_ms: float  # per token, the way back included

    @property
    def peers(self) -> tuple[str, ...]:
        """The peers used, each once, in order."""
        return tuple(dict.fromkeys(hop.peer for hop in self.hops))

    def __str__(self) -> str:
        rows = [("hop", "peer", "layers", "numerics", "ms")]
        for number, hop in enumerate(self.hops, 1):
            stages, numerics = describe_stages(hop.span, self.blocks), str(hop.numerics or "?")
            rows.append((str(number), hop.peer, stages, numerics, f"{hop.expected_ms:.1f}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
        ]
        return "\n".join([*(line.rstrip() for line in lines), f"expected: {self.expected_ms:.1f} ms a token"])


@dataclass(frozen=True, slots=True)
class Network:
    """What is known of distances. `rtt_ms`: client to peer, measured; nodes announce theirs to each other."""

    rtt_ms: Mapping[str, float] = field(default_factory=dict)

    def one_way_ms(self, a: Announcement | None, b: Announcement | None) -> float:
        """Expected one-way time between two nodes, or a node and the client (None)."""
        if a is None or b is None:
            node = a or b
            rtt = self.rtt_ms.get(node.peer) if node else 0.0
            return UNKNOWN_ONE_WAY_MS if rtt is None else rtt / 2
        for here, there in ((a, b), (b, a)):
            for link in here.links:
                if link.peer == there.peer:
                    return link.rtt_ms / 2
        return (self.one_way_ms(None, a) + self.one_way_ms(None, b)) / 2


def missing_stages(wanted: Span, spans: Iterable[Span]) -> list[Span]:
    """The parts of `wanted` that no span covers, in order."""
    missing, at = [], wanted.start
    for span in sorted(spans):
        if span.start > at:
            if span.start >= wanted.stop:
                break
            missing.append(Span(at, span.start))
        at = max(at, span.stop)
    if at < wanted.stop:
        missing.append(Span(at, wanted.stop))
    return missing


def plan_route(need: Need, nodes: Sequence[Announcement], network: Network, rng: random.Random) -> Route:
    """The route of the least cost for `need` along nodes that have room for its tokens in their KV caches.

    Raises: NoRoute, naming the stages that nobody (or nobody with room) serves.
    """
    able = [n for n in nodes if n.state == "serving" and n.kv_tokens >= need.tokens]
    missing = missing_stages(need.stages, (n.span for n in able))
    if missing:
        able += _beginners(nodes, missing, need.tokens)
        missing = missing_stages(need.stages, (n.span for n in able))
    if missing:
        raise _no_route(missing, nodes, need)
    return _Search(need, able, network, rng).run()


def _beginners(nodes: Sequence[Announcement], missing: list[Span], tokens: int) -> list[Announcement]:
    """Nodes with room for the beginning of a session, as if they served no more than what is missing of it."""
    able = (n for n in nodes if n.state == "serving" and n.kv_tokens >= min(tokens, BEGIN_TOKENS))
    parts = ((n, max(n.span.start, s.start), min(n.span.stop, s.stop)) for n in able for s in missing)
    return [replace(n, span=Span(start, stop)) for n, start, stop in parts if start < stop]


def _no_route(missing: list[Span], nodes: Sequence[Announcement], need: Need) -> NoRoute:
    names = [describe_stages(span, need.blocks) for span in missing]
    full = [
        n for n in nodes if n.kv_tokens < need.tokens and any(s in n.span for span in missing for s in span)
    ]
    what = " and ".join(names)
    if full:
        room = max(n.kv_tokens for n in full)
        text = f"nobody who serves {what} has room for {need.tokens} tokens (at most {room} are free)"
    else:
        text = f"nobody serves {what}"
    return NoRoute(text, [(span.start, span.stop) for span in missing])


_State = tuple[int, int]  # (stage reached, index of the node there); (wanted.start, -1) is the client


class _Search:
    """Dijkstra's algorithm from the client through the nodes and back."""

    def __init__(
        self, need: Need, nodes: Sequence[Announcement], network: Network, rng: random.Random
    ) -> None:
        self.wanted, self.so_far, self.nodes, self.network = need.stages, need.so_far, nodes, network
        wanted, so_far = need.stages, need.so_far
        # Where a node's time bends: embedding and head cost otherwise than blocks, so a change there may be the best.
        edges = {wanted.start, 1, need.blocks + 1, wanted.stop}
        edges.update(stage for n in nodes for stage in (n.span.start, n.span.stop))
        edges.update(stage for stage in wanted if so_far.get(stage) != so_far.get(stage - 1))
        self.stops = sorted(stage for stage in edges if wanted.start <= stage <= wanted.stop)
        self.following = dict(pairwise(self.stops))
        self.scatter = [(1.0 + rng.uniform(0.0, SCATTER)) * (1.0 + LOSS) ** loss(n.numerics) for n in nodes]
        self.serving: dict[int, list[int]] = {
            stage: [i for i, n in enumerate(nodes) if stage in n.span] for stage in self.stops
        }

    def run(self) -> Route:
        """The route; one exists, since every stage is covered."""
        start: _State = (self.wanted.start, -1)
        best: dict[_State, float] = {start: 0.0}
        came: dict[_State, _State] = {}
        queue: list[tuple[float, _State]] = [(0.0, start)]
        goal, goal_cost = start, float("inf")
        while queue:
            cost, state = heapq.heappop(queue)
            if cost > best[state] or cost >= goal_cost:
                continue
            stage, at = state
            if stage == self.wanted.stop:
                back = cost + self.network.one_way_ms(self.nodes[at], None)
                back += self._change_ms(self.nodes[at].numerics, self.so_far.get(stage))
                if back < goal_cost:
                    goal, goal_cost = state, back
                continue
            for follower in self.serving[stage]:
                reached = (self.following[stage], follower)
                total = cost + self._edge_cost(stage, at, follower)
                if total < best.get(reached, float("inf")):
                    best[reached], came[reached] = total, state
                    heapq.heappush(queue, (total, reached))
        return self._route(goal, came)

    def _edge_ms(self, stage: int, at: int, follower: int) -> float:
        """Time to compute from `stage` to the next stop at `follower`, coming from node `at`."""
        node = self.nodes[follower]
        time_ms = compute_ms(node, Span(stage, self.following[stage]))
        if follower != at:
            came_from = self.nodes[at] if at >= 0 else None
            time_ms += HOP_MS + node.queue_ms + self.network.one_way_ms(came_from, node)
        return time_ms

    def _edge_cost(self, stage: int, at: int, follower: int) -> float:
        """The same, and what is disliked about it."""
        numerics = self.nodes[follower].numerics
        cost = self._edge_ms(stage, at, follower) * self.scatter[follower]
        if self.so_far.get(stage, numerics) != numerics:
            cost += OTHERWISE_MS * (self.following[stage] - stage)
        if follower != at:
            before = self.nodes[at].numerics if at >= 0 else self.so_far.get(stage - 1)
            cost += self._change_ms(before, numerics)
        return cost

    def _change_ms(self, before: Numerics | None, after: Numerics | None) -> float:
        return CHANGE_MS if before is not None and after is not None and before != after else 0.0

    def _route(self, goal: _State, came: Mapping[_State, _State]) -> Route:
        states = [goal]
        while states[-1] in came:
            states.append(came[states[-1]])
        states.reverse()
        hops: list[Hop] = []
        for before, after in pairwise(states):
            node, start, spent = self.nodes[after[1]], before[0], self._edge_ms(*before, after[1])
            if hops and before[1] == after[1]:
                last = hops.pop()
                start, spent = last.span.start, last.expected_ms + spent
            hops.append(_hop(node, Span(start, after[0]), spent))
        last_node = self.nodes[goal[1]]
        expected_ms = sum(hop.expected_ms for hop in hops) + self.network.one_way_ms(last_node, None)
        return Route(tuple(hops), last_node.blocks, expected_ms)


def _hop(node: Announcement, span: Span, expected_ms: float) -> Hop:
    token_ms = compute_ms(node, span)
    # many rows at once are never slower than each alone, whatever a node says of them
    row_ms = min(len(span) * node.prefill_ms, token_ms)
    return Hop(
        node.peer, node.addrs, span, expected_ms, token_ms, row_ms, node.queue_ms, node.dtype, node.numerics
    )


def compute_ms(node: Announcement, span: Span) -> float:
    """Expected time to compute one token through `span` at `node`; embedding counts as nothing."""
    blocks = min(span.stop, node.blocks + 1) - max(span.start, 1)
    head = node.head_ms if span.stop == node.stages else 0.0
    return max(blocks, 0) * node.decode_ms + head


def serve_command(
    span: Span, blocks: int, model: str = "MODEL", join: str = "ADDRESS", option: str = ""
) -> str:
    """The command by which somebody serves `span`; `option` has a blank before it."""
    first, last = max(span.start, 1) - 1, min(span.stop, blocks + 1) - 1
    if first >= last:  # an end alone: serve it with the block beside it
        first, last = (0, 1) if span.start == 0 else (blocks - 1, blocks)
    return f"swarm node --model {model} --layers {first}:{last}{option} --join {join}"
