"""The route planner: pure, so every case is a table of announcements."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.errors import NoRoute
from protocol.model import Span
from protocol.numerics import Numerics, parse_numerics
from protocol.records import Announcement, RoundTrip
from swarm.routing.precision import loss
from swarm.routing.route import (
    CHANGE_MS,
    HOP_MS,
    LOSS,
    OTHERWISE_MS,
    SCATTER,
    Need,
    Network,
    compute_ms,
    missing_stages,
    plan_route,
    serve_command,
)

BLOCKS = 10
F32 = Numerics("f32")
ALL = Span(0, BLOCKS + 2)


def node(
    peer: str,
    start: int,
    stop: int,
    *,
    decode_ms: float = 1.0,
    queue_ms: float = 0.0,
    kv: int = 1000,
    **more: object,
) -> Announcement:
    fields: dict[str, object] = {
        "peer": peer, "addrs": (f"/{peer}",), "model": "m", "digest": b"d" * 32, "blocks": BLOCKS, "hidden_size": 8,
        "span": Span(start, stop), "dtype": "f32", "numerics": F32,
        "weights": (b"w" * 8,) * (stop - start), "state": "serving",
        "decode_ms": decode_ms, "prefill_ms": decode_ms, "head_ms": 0.0, "queue_ms": queue_ms, "kv_tokens": kv,
        "kv_tokens_total": kv, "links": (), "sequence": 1, "issued": 0.0, "expires": 60.0,
    }  # fmt: skip
    return Announcement(**{**fields, **more})  # type: ignore[arg-type]


def plan(nodes: list[Announcement], rtt: dict[str, float] | None = None, tokens: int = 10, seed: int = 0):  # type: ignore[no-untyped-def]
    known = {n.peer: 2.0 for n in nodes} | (rtt or {})
    return plan_route(Need(ALL, BLOCKS, tokens), nodes, Network(known), random.Random(seed))


def test_one_node_serves_all() -> None:
    """A node that has everything is a route of one hop."""
    route = plan([node("a", 0, 12)])
    assert [(hop.peer, hop.span) for hop in route.hops] == [("a", ALL)]


def test_hops_meet_exactly_and_cover_all() -> None:
    """Overlapping spans are cut so that every stage is computed once."""
    route = plan([node("a", 0, 7), node("b", 4, 9), node("c", 8, 12)])
    stages = [stage for hop in route.hops for stage in hop.span]
    assert stages == list(ALL)


def test_layers_count() -> None:
    """A slow node is used for as few layers as its neighbours allow: cost is per layer, not per hop."""
    route = plan([node("slow", 0, 9, decode_ms=20), node("fast", 3, 12, decode_ms=1)])
    assert [(hop.peer, hop.span) for hop in route.hops] == [("slow", Span(0, 3)), ("fast", Span(3, 12))]


def test_distance_counts() -> None:
    """A near chain of slower nodes beats a far single one, if the way costs more than the computing."""
    far = node("far", 0, 12)
    near = [node("n1", 0, 6, decode_ms=2), node("n2", 6, 12, decode_ms=2)]
    assert plan([far, *near], rtt={"far": 200.0}).peers == ("n1", "n2")
    assert plan([far, *near], rtt={"far": 5.0}).peers == ("far",)


def test_announced_links_count() -> None:
    """Round-trip times that nodes measured to each other decide between equal pairs."""
    near = node("a1", 0, 6, links=(RoundTrip("b1", 1.0),))
    nodes = [near, node("a2", 0, 6, links=(RoundTrip("b1", 300.0),)), node("b1", 6, 12)]
    assert plan(nodes).peers == ("a1", "b1")


def test_queues_count() -> None:
    """A node with a queue is passed over."""
    assert plan([node("idle", 0, 12), node("busy", 0, 12, queue_ms=50)]).peers == ("idle",)


def test_room_counts() -> None:
    """Nodes whose free KV cannot hold the session are no candidates, and the error says so."""
    assert plan([node("full", 0, 12, kv=5), node("free", 0, 12, decode_ms=9)]).peers == ("free",)
    with pytest.raises(NoRoute, match="room for 10 tokens"):
        plan([node("full", 0, 12, kv=5)])


def test_room_for_a_beginning_is_room_where_nobody_has_more() -> None:
    """For stages that somebody with all the room serves nobody else is asked."""
    nodes = [node("tight", 0, 12, kv=1500), node("roomy", 0, 6, decode_ms=9, kv=5000)]
    route = plan(nodes, tokens=4096)
    assert [(hop.peer, hop.span) for hop in route.hops] == [("roomy", Span(0, 6)), ("tight", Span(6, 12))]
    with pytest.raises(NoRoute, match="room for 4096 tokens"):
        plan([node("full", 0, 12, kv=1000)], tokens=4096)


def test_only_serving_nodes_are_used() -> None:
    """Nodes that join or are gone take no sessions."""
    for state in ("joining", "gone"):
        with pytest.raises(NoRoute):
            plan([node("a", 0, 12, state=state)])


def test_measured_peers_win_over_unmeasured() -> None:
    """A peer that did not answer a probe is used only where nobody else serves."""
    nodes = [node("silent", 0, 12), node("answers", 0, 12, decode_ms=5)]
    route = plan_route(Need(ALL, BLOCKS, 1), nodes, Network({"answers": 20.0}), random.Random(0))
    assert route.peers == ("answers",)


def test_equal_nodes_share_the_clients() -> None:
    """Between equals the choice is random, so that clients do not herd."""
    nodes = [node("a", 0, 12), node("b", 0, 12)]
    assert {plan(nodes, seed=seed).peers for seed in range(20)} == {("a",), ("b",)}


def test_missing_stages_are_named() -> None:
    """The error names exactly the holes, in the user's words."""
    with pytest.raises(NoRoute, match=r"nobody serves layers 3:5 and layers 7:10 \+ head") as error:
        plan([node("a", 0, 4), node("b", 6, 8)])
    assert error.value.missing == ((4, 6), (8, 12))
    assert "--layers 3:5" in serve_command(Span(4, 6), BLOCKS)
    assert "--layers 9:10" in serve_command(Span(11, 12), BLOCKS)


def test_a_route_prints_as_a_table() -> None:
    """One line a hop: number, peer, layers, milliseconds."""
    lines = str(plan([node("a", 0, 4), node("b", 4, 12)])).splitlines()
    assert lines[0].split() == ["hop", "peer", "layers", "numerics", "ms"]
    assert [line.split()[1] for line in lines[1:3]] == ["a", "b"]


spans = st.tuples(st.integers(0, 11), st.integers(1, 12)).filter(lambda pair: pair[0] < pair[1])


@given(st.lists(st.tuples(spans, st.integers(1, 20), st.integers(0, 50)), min_size=1, max_size=5))
@example([((0, 2), 2, 0), ((0, 12), 1, 0)])  # the best way is to change right after the embedding
def test_no_route_is_better(shapes: list[tuple[tuple[int, int], int, int]]) -> None:
    """The route found costs no more than the best of all routes, tried one by one (but for the scatter)."""
    nodes = [
        node(f"n{i}", *span, decode_ms=float(ms), queue_ms=float(queue))
        for i, (span, ms, queue) in enumerate(shapes)
    ]
    network = Network({n.peer: 10.0 * i for i, n in enumerate(nodes)})
    best = best_by_trying_all(nodes, network)
    if best is None:
        assert missing_stages(ALL, [n.span for n in nodes])
        return
    route = plan_route(Need(ALL, BLOCKS, 1), nodes, network, random.Random(1))
    assert best - 1e-6 <= route.expected_ms <= best * (1 + SCATTER) + 1e-6


def best_by_trying_all(nodes: list[Announcement], network: Network) -> float | None:
    """The least cost over every assignment of stages to nodes, by dynamic programming stage by stage."""
    cost: dict[int, float] = {-1: 0.0}
    for stage in ALL:
        after: dict[int, float] = {}
        for (at, spent), (index, candidate) in itertools.product(cost.items(), enumerate(nodes)):
            if stage not in candidate.span:
                continue
            total = spent + compute_ms(candidate, Span(stage, stage + 1))
            if at != index:
                before = nodes[at] if at >= 0 else None
                total += HOP_MS + candidate.queue_ms + network.one_way_ms(before, candidate)
            after[index] = min(after.get(index, float("inf")), total)
        cost = after
    ends = [spent + network.one_way_ms(nodes[at], None) for at, spent in cost.items()]
    return min(ends) if ends else None


def test_a_hop_carries_what_it_is_judged_by() -> None:
    """Its announced times are those of the stages that the route uses; many rows are never slower than each alone."""
    first, last = plan(
        [node("a", 0, 7, decode_ms=3.0, queue_ms=5.0, prefill_ms=1.0), node("b", 6, 12, prefill_ms=99.0)]
    ).hops
    assert first.span.start == 0
    assert (first.token_ms, first.row_ms) == (3.0 * (len(first.span) - 1), 1.0 * len(first.span))
    assert (first.queue_ms, first.dtype) == (5.0, "f32")
    assert last.row_ms == last.token_ms


F32_NATIVE, INT8, INT4, ODD = (parse_numerics(word) for word in ("f32/1", "int8/1", "int4/1", "q3/9"))


def test_a_route_is_of_one_kind_where_that_costs_little() -> None:
    """A change of numerics is worth CHANGE_MS a token, to be faster by more than that it is made."""
    first, last = node("int8", 0, 6, numerics=INT8), node("int4", 6, 12, numerics=INT4)
    slow_ms = 1 + CHANGE_MS / 6 * 0.9
    assert plan([first, last, node("slow", 6, 12, decode_ms=slow_ms, numerics=INT8)]).peers == (
        "int8",
        "slow",
    )
    slow_ms = 1 + CHANGE_MS / 5 * 1.5
    assert plan([first, last, node("slow", 6, 12, decode_ms=slow_ms, numerics=INT8)]).peers == (
        "int8",
        "int4",
    )


@pytest.mark.parametrize("fewer", [INT8, INT4, ODD])
@pytest.mark.parametrize("exact", [F32, F32_NATIVE])
def test_of_equals_the_one_that_gives_up_less(exact: Numerics, fewer: Numerics) -> None:
    """However the costs are scattered; a node that is faster by far wins all the same."""
    equals = [node("fewer", 0, 12, numerics=fewer), node("exact", 0, 12, numerics=exact)]
    assert {plan(equals, seed=seed).peers for seed in range(50)} == {("exact",)}
    faster = [node("fewer", 0, 12, numerics=fewer, decode_ms=0.5), equals[1]]
    assert {plan(faster, seed=seed).peers for seed in range(50)} == {("fewer",)}


def test_an_answer_under_way_stays_with_its_kind() -> None:
    """A replacement computes as what it replaces if anybody does, however far and slow; else somebody goes on."""
    nodes = [
        node("far", 0, 12, numerics=INT8, decode_ms=5),
        node("near", 0, 12),
        node("int4", 0, 12, numerics=INT4),
    ]
    need = Need(Span(3, 6), BLOCKS, 1, dict.fromkeys(range(12), INT8))
    rtt = {"far": 150.0, "near": 1.0, "int4": 1.0}
    assert plan_route(need, nodes, Network(rtt), random.Random(0)).peers == ("far",)
    assert plan_route(need, nodes[1:], Network(rtt), random.Random(0)).peers == ("near",)


def test_only_the_stages_that_were_of_a_kind_bind() -> None:
    """A gap over hops of two kinds is filled by both, cut where they met."""
    nodes = [node("a", 0, 12, numerics=INT8), node("b", 0, 12, numerics=INT4)]
    so_far = {**dict.fromkeys(range(2, 5), INT8), **dict.fromkeys(range(5, 9), INT4)}
    route = plan_route(Need(Span(2, 9), BLOCKS, 1, so_far), nodes, Network({}), random.Random(0))
    assert [(hop.peer, hop.span, hop.numerics) for hop in route.hops] == [
        ("a", Span(2, 5), INT8),
        ("b", Span(5, 9), INT4),
    ]


def test_a_replacement_fits_its_neighbours() -> None:
    """Where what it replaces is served by nobody, it is of the kind beside it."""
    nodes = [node("int8", 0, 12, numerics=INT8), node("f32", 0, 12)]
    so_far = {stage: INT8 if stage not in range(3, 6) else INT4 for stage in range(12)}
    route = plan_route(Need(Span(3, 6), BLOCKS, 1, so_far), nodes, Network({}), random.Random(0))
    assert route.peers == ("int8",)


kinds = st.sampled_from([F32, F32_NATIVE, INT8, INT4, ODD])


@given(
    st.lists(st.tuples(spans, st.integers(1, 20), kinds), min_size=1, max_size=5),
    st.dictionaries(st.integers(0, 11), kinds),
)
@example([((0, 12), 3, F32), ((0, 6), 1, F32)], {})
def test_no_route_costs_less(
    shapes: list[tuple[tuple[int, int], int, Numerics]], so_far: dict[int, Numerics]
) -> None:
    """What a route costs, with all that is disliked about it, is the least of all routes (but for the scatter)."""
    nodes = [
        node(f"n{i}", *span, decode_ms=float(ms), numerics=numerics)
        for i, (span, ms, numerics) in enumerate(shapes)
    ]
    if missing_stages(ALL, [n.span for n in nodes]):
        return
    network = Network({n.peer: 10.0 * i for i, n in enumerate(nodes)})
    route = plan_route(Need(ALL, BLOCKS, 1, so_far), nodes, network, random.Random(1))
    at_stage = [index for hop in route.hops for index in [int(hop.peer[1:])] * len(hop.span)]
    least = min(least_costs(nodes, network, so_far).values())
    assert least - 1e-6 <= cost_of(at_stage, nodes, network, so_far) <= least * (1 + SCATTER) + 1e-6
    assert route.expected_ms == pytest.approx(time_of(at_stage, nodes, network))


def step_cost(
    stage: int,
    before: int,
    index: int,
    nodes: list[Announcement],
    network: Network,
    so_far: dict[int, Numerics],
) -> float:
    """What one stage at one node costs after another, by the rules as they are written, one after the other."""
    here, there = nodes[index], nodes[before] if before >= 0 else None
    time_ms = compute_ms(here, Span(stage, stage + 1))
    if before != index:
        time_ms += HOP_MS + here.queue_ms + network.one_way_ms(there, here)
    cost = time_ms * (1 + LOSS) ** loss(here.numerics)
    if before != index and there is not None and there.numerics != here.numerics:
        cost += CHANGE_MS
    if so_far.get(stage, here.numerics) != here.numerics:
        cost += OTHERWISE_MS
    return cost


def cost_of(
    at_stage: list[int], nodes: list[Announcement], network: Network, so_far: dict[int, Numerics]
) -> float:
    """Of a route, given by the node at each stage."""
    ways = zip(ALL, [-1, *at_stage], at_stage, strict=False)
    there = sum(step_cost(stage, before, index, nodes, network, so_far) for stage, before, index in ways)
    return there + network.one_way_ms(nodes[at_stage[-1]], None)


def least_costs(nodes: list[Announcement], network: Network, so_far: dict[int, Numerics]) -> dict[int, float]:
    """The least cost by the node that has the last stage, stage by stage."""
    cost: dict[int, float] = {-1: 0.0}
    for stage in ALL:
        cost = {
            index: min(
                spent + step_cost(stage, before, index, nodes, network, so_far)
                for before, spent in cost.items()
            )
            for index, candidate in enumerate(nodes)
            if stage in candidate.span
        }
    return {at: spent + network.one_way_ms(nodes[at], None) for at, spent in cost.items()}


def time_of(at_stage: list[int], nodes: list[Announcement], network: Network) -> float:
    """Of a route, without anything that is but disliked."""
    total = network.one_way_ms(nodes[at_stage[-1]], None)
    for stage, before, index in zip(ALL, [-1, *at_stage], at_stage, strict=False):
        total += compute_ms(nodes[index], Span(stage, stage + 1))
        if before != index:
            total += HOP_MS + network.one_way_ms(nodes[before] if before >= 0 else None, nodes[index])
    return total
