"""Whose weights count: pins, memory, votes; all pure."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ConfigError, NoRoute
from protocol.model import Span, weights_digest
from protocol.weights import SEARCH_STEPS, Pin, Trust, Verdict, Witness, find_pinned, judge, parse_pin

STAGES = 8
BLOCKS = STAGES - 2


def digest(stage: int, version: int) -> bytes:
    """Of one stage of the true weights (version 0) or of others."""
    return bytes([stage, version]) * 4


def node(name: str, origin: str, start: int, stop: int, version: int = 0, at: int | None = None) -> Witness:
    """A node that serves `version`, or does so at one stage only."""
    span = Span(start, stop)
    said = tuple(digest(stage, version if at in (None, stage) else 0) for stage in span)
    return Witness(name, origin, span, said)


def right(chosen: object, stages: range = range(STAGES)) -> bool:
    """Whether the true weights count at all these stages."""
    return chosen == {stage: digest(stage, 0) for stage in stages}


TRUE = tuple(digest(stage, 0) for stage in range(STAGES))
PIN = Pin(weights_digest(TRUE).hex())

# --- votes


@pytest.mark.parametrize("liars", [2, 50, 1000])
def test_one_block_has_one_vote(liars: int) -> None:
    """However many identities a block has, it loses against two blocks."""
    honest = [node("a", "A", 0, 8), node("b", "B", 0, 8)]
    assert right(judge([*(node(f"x{i}", "X", 0, 8, 1) for i in range(liars)), *honest], {}))


@pytest.mark.parametrize("liars", [2, 50])
def test_the_door_decides_within_one_block(liars: int) -> None:
    """On one machine, say, the node through which the user came in counts more than all others together."""
    crowd = [node(f"x{i}", "A", 0, 8, 1) for i in range(liars)]
    assert right(judge([*crowd, node("door", "A", 0, 8)], {}, {"door"}))
    assert not right(judge([*crowd, node("door", "A", 0, 8)], {}))


def test_a_door_does_not_outvote_two_blocks() -> None:
    """A liar that sits at the door, in one block, loses against honest nodes in two."""
    honest = [node("a", "A", 0, 8), node("b", "B", 0, 8)]
    assert right(judge([node("door", "X", 0, 8, 1), *honest], {}, {"door"}))


def test_a_liar_does_not_silence_the_block_that_it_shares() -> None:
    """Honest nodes have their block's vote though a liar in the same block says something else."""
    honest = [node("a", "A", 0, 8), node("b", "B", 0, 8)]
    assert right(judge([*(node(f"x{i}", "A", 0, 8, i + 1) for i in range(20)), *honest], {}))


def test_who_is_wrong_somewhere_has_no_say_anywhere() -> None:
    """A liar found out at one stage does not decide others, where it would have won."""
    honest = [node("a", "A", 0, 4), node("b", "B", 0, 4), node("c", "C", 4, 8)]
    liars = [node("x", "X", 0, 8, 1), node("y", "X", 4, 8, 0)]
    assert right(judge([*honest, *liars], {}))


def test_what_was_used_before_outvotes_everybody() -> None:
    """Settled stages stay as they are, and who contradicts them has no say about the others."""
    crowd = [node(f"x{i}", f"X{i}", 0, 8, 1) for i in range(50)]
    assert right(judge([*crowd, node("a", "A", 0, 8)], {2: digest(2, 0)}))


witnesses = st.lists(
    st.tuples(st.integers(0, 7), st.integers(1, 8), st.integers(0, 2), st.sampled_from("ABCD")), max_size=12
).map(
    lambda drawn: [
        node(f"n{i}", origin, start, min(8, start + length), version)
        for i, (start, length, version, origin) in enumerate(drawn)
    ]
)


@given(witnesses, st.randoms())
def test_a_verdict_is_consistent(heard: list[Witness], rng: random.Random) -> None:
    """Order does not matter; whoever is accepted agrees with all who are; no stage counts unheard."""
    chosen = judge(heard, {})
    assert judge(rng.sample(heard, len(heard)), {}) == chosen
    accepted = [w for w in heard if Verdict(chosen).accepts(w.span, w.weights)]
    said: dict[int, set[bytes]] = {}
    for witness in accepted:
        for stage, found in witness:
            said.setdefault(stage, set()).add(found)
    assert {stage: {found} for stage, found in chosen.items()} == said
    assert heard == [] or accepted != []


@given(witnesses)
def test_liars_of_one_block_never_turn_two(heard: list[Witness]) -> None:
    """Honest nodes in two blocks serve every stage: no crowd in one other block changes anything."""
    liars = [Witness(w.peer, "X", w.span, w.weights) for w in heard]
    honest = [node("a", "A", 0, 5), node("b", "B", 0, 5), node("c", "A", 5, 8), node("d", "B", 5, 8)]
    assert right(judge([*liars, *honest], {}, {liars[0].peer} if liars else ()))


# --- pins


def test_a_pin_is_found_among_liars() -> None:
    """Liars in the majority announce other weights; the true ones are put together from honest nodes."""
    liars = [node(f"x{i}", f"X{i}", 0, 8, 1) for i in range(5)]
    liars += [node(f"y{i}", "Y", 0, 4, i + 2) for i in range(20)]
    honest = [node("a", "A", 0, 4), node("b", "B", 4, 8)]
    assert find_pinned(PIN, STAGES, [*liars, *honest]) == TRUE
    assert find_pinned(PIN, STAGES, liars) is None


def test_a_block_that_says_many_things_hides_no_other() -> None:
    """A liar with hundreds of stories from one block does not keep a pin in several parts from being found."""
    stories = [node(f"x{i}", "X", s, s + 2, i + 1) for i in range(255) for s in range(0, 8, 2)]
    honest = [node(f"h{s}", f"H{s}", s, s + 2) for s in range(0, 8, 2)]
    assert find_pinned(PIN, STAGES, [*stories, *honest]) == TRUE
    assert Trust(STAGES, PIN).judge([*stories, *honest], ()).chosen == dict(enumerate(TRUE))


def test_many_overlapping_honest_nodes_are_no_maze() -> None:
    """That there are many ways through the same weights costs nothing."""
    spans = [(a, b) for a in range(8) for b in range(a + 1, 9)]
    assert find_pinned(PIN, STAGES, [node(f"{a}{b}", "A", a, b) for a, b in spans]) == TRUE
    assert find_pinned(Pin("0" * 32), STAGES, [node(f"{a}{b}", "A", a, b) for a, b in spans]) is None


def test_the_search_ends() -> None:
    """Where the liars are too many, nothing is found, and the number of steps is bounded."""
    maze = [node(f"{s}{v}", f"{v}", s, s + 1, v) for s in range(STAGES) for v in range(1, 20)]
    tried: list[int] = []

    class Counting(Pin):
        def fits(self, stages: object) -> bool:
            tried.append(1)
            return False

    assert find_pinned(Counting(PIN.digits), STAGES, maze) is None
    assert 0 < len(tried) <= SEARCH_STEPS


def test_ends_of_ones_own_complete_a_pin() -> None:
    """Stages that the client has itself need no node, and nodes that say otherwise are not believed."""
    own = {0: digest(0, 0), 7: digest(7, 0)}
    assert find_pinned(PIN, STAGES, [node("a", "A", 1, 7)], (), own) == TRUE
    assert find_pinned(PIN, STAGES, [node("a", "A", 0, 8, 1, at=0), node("b", "B", 1, 7)], (), own) == TRUE


def test_what_a_pin_names_is_not_unlearned() -> None:
    """Once the weights are found they stay, whatever is announced later, and nobody else is accepted."""
    trust = Trust(STAGES, PIN)
    liar, honest = node("x", "X", 0, 8, 1), node("a", "A", 0, 8)
    assert not trust.judge([liar], {"x"}).accepts(liar.span, liar.weights)
    assert trust.judge([liar, honest], {"x"}).accepts(honest.span, honest.weights)
    verdict = trust.judge([liar], {"x"})
    assert not verdict.accepts(liar.span, liar.weights)
    assert verdict.whole(STAGES) == weights_digest(TRUE)


def test_a_pin_is_first_looked_for_in_memory() -> None:
    """Who used the pinned weights before needs no search; memory of others makes room for them."""
    before = Trust(STAGES, PIN, dict(enumerate(TRUE)))
    assert before.found
    assert not before.anew
    others = Trust(STAGES, PIN, {0: digest(0, 1)})
    assert not others.found
    assert others.anew
    assert others.judge([node("a", "A", 0, 8)], ()).accepts(Span(0, 8), TRUE)


@pytest.mark.parametrize("text", ["", "new ", "12ab", "0" * 31, "0" * 65, "g" * 32, "٣" * 32])
def test_what_is_no_pin(text: str) -> None:
    """Too few digits to be safe, too many, or none: one line."""
    with pytest.raises(ConfigError) as error:
        parse_pin(text)
    assert "\n" not in str(error.value)


def test_a_pin_is_a_prefix() -> None:
    """32 digits are enough, in either case."""
    assert parse_pin(PIN.digits[:32].upper()).fits(TRUE)
    assert not parse_pin(PIN.digits[:32]).fits(TRUE[::-1])


# --- what the user is told


def test_memory_that_nobody_serves_is_no_silent_change() -> None:
    """The only nodes serve other weights than were used: nobody is accepted, and the error says what to do."""
    trust = Trust(STAGES, None, dict(enumerate(TRUE)))
    verdict = trust.judge([node("x", "X", 0, 8, 1)], {"x"})
    assert not verdict.accepts(Span(0, 8), tuple(digest(s, 1) for s in range(8)))
    error = verdict.explain(NoRoute("nobody serves everything", [(0, 8)]), BLOCKS)
    assert "used before" in str(error)
    assert "--weights new" in str(error)
    assert error.missing == ((0, 8),)


def test_a_hole_that_has_nothing_to_do_with_weights_is_told_as_before() -> None:
    """Nodes left out elsewhere are not blamed for stages that they do not serve."""
    verdict = Trust().judge([node("a", "A", 0, 4), node("b", "B", 0, 4), node("x", "X", 0, 4, 1)], ())
    error = NoRoute("nobody serves layers 3:6 + head", [(4, 8)])
    assert verdict.explain(error, BLOCKS) is error


def test_a_pin_that_is_not_here_is_told_plainly() -> None:
    """Nothing fits, or it cannot be known yet because stages are missing."""
    error = NoRoute("nobody serves everything", [(0, 8)])
    verdict = Trust(STAGES, PIN).judge([node("x", "X", 0, 8, 1)], ())
    assert f"no set of weights here is {PIN}" in str(verdict.explain(error, BLOCKS))
    verdict = Trust(STAGES, PIN).judge([node("a", "A", 0, 4)], ())
    assert "nobody serves layers 3:6 + head" in str(verdict.explain(error, BLOCKS))


def test_a_dispute_is_one_line() -> None:
    """Which layers, how many against how many and where, and what settles it."""
    honest = [node("a", "A", 0, 8), node("b", "B", 0, 8)]
    line = Trust().judge([*honest, node("x", "X", 0, 8, 1, at=3)], ()).describe(BLOCKS)
    assert line is not None
    assert "layers 2:3" in line
    assert "2 nodes at 2 places (a, b), against 1 node at 1 place (x)" in line
    assert "--weights" in line
    assert Trust().judge(honest, ()).describe(BLOCKS) is None


def test_a_session_keeps_the_weights_it_began_with() -> None:
    """Stages of an open route are settled: a crowd that comes later changes nothing."""
    trust = Trust()
    assert trust.use(range(4), trust.judge([node("a", "A", 0, 8)], ()))
    crowd = [node(f"x{i}", f"X{i}", 0, 4, 1) for i in range(9)]
    assert right(trust.judge([node("a", "A", 0, 8), *crowd], ()).chosen)
    assert not trust.use(range(4), trust.judge([], ()))
