"""The journal: contiguous rows, rollback, and what a replacement is told."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.candidates import NOTHING, Want
from protocol.errors import LocalProtocolError
from protocol.journal import Journal
from protocol.messages import Lane, Step
from protocol.tensors import Tensor, from_numpy

WANT = Want("candidates")


def ids(*values: int) -> Tensor:
    """A row per token id."""
    return from_numpy(np.array(values, np.int32))


def positions(steps: list[Step]) -> list[tuple[int, int, int, int | None]]:
    """(number, position, rows, fill_until) of each step."""
    return [(s.number, s.position, s.inputs.rows, s.fill_until) for s in steps]


def test_rows_are_kept_in_order() -> None:
    """Length and find follow what was appended."""
    journal = Journal(8)
    assert (journal.length, journal.entries) == (0, ())
    journal.append(0, 0, ids(1, 2, 3), NOTHING)
    journal.append(5, 3, ids(4), WANT)
    assert journal.length == 4
    found = journal.find(5)
    assert found is not None
    assert (found.rows.numpy().tolist(), found.want) == ([4], WANT)
    assert (journal.find(1), journal.find(6)) == (None, None)


def test_a_step_at_an_earlier_position_forgets_what_was_there() -> None:
    """Rollback cuts inside an entry, and what is kept holds no memory of the rest."""
    journal = Journal(8)
    journal.append(0, 0, ids(1, 2, 3, 4), NOTHING)
    journal.append(1, 4, ids(5, 6), WANT)
    journal.append(2, 2, ids(9), WANT)
    assert [(e.number, e.position, e.rows.numpy().tolist()) for e in journal.entries] == [
        (0, 0, [1, 2]),
        (2, 2, [9]),
    ]
    assert len(journal.entries[0].rows.data) == 8
    assert isinstance(journal.entries[0].rows.data, bytes)


@pytest.mark.parametrize(
    ("number", "position", "rows"), [(1, 5, ids(1)), (1, 3, ids(1, 2)), (0, 3, ids(1))], ids=str
)
def test_what_cannot_be_is_our_own_bug(number: int, position: int, rows: Tensor) -> None:
    """A gap, too many rows, a number that does not rise."""
    journal = Journal(4)
    journal.append(0, 0, ids(1, 2, 3), NOTHING)
    with pytest.raises(LocalProtocolError):
        journal.append(number, position, rows, WANT)
    assert journal.length == 3


def test_replay_joins_fills_and_keeps_live_steps() -> None:
    """Old entries come together under their highest number, whole entries only; live ones as they were."""
    journal = Journal(100)
    journal.append(0, 0, ids(1, 2, 3), NOTHING)
    journal.append(1, 3, ids(4), WANT)
    journal.append(2, 4, ids(5), WANT)
    journal.append(4, 5, ids(6, 7), WANT)
    steps = list(journal.replay(live_from=4, fill_until=9, chunk_rows=4))
    assert positions(steps) == [(1, 0, 4, 9), (2, 4, 1, 9), (4, 5, 2, None)]
    assert steps[0].inputs.numpy().tolist() == [1, 2, 3, 4]
    assert (steps[0].want, steps[2].want) == (NOTHING, WANT)
    assert positions(list(journal.replay(live_from=0, fill_until=9))) == [
        (0, 0, 3, None), (1, 3, 1, None), (2, 4, 1, None), (4, 5, 2, None),
    ]  # fmt: skip
    assert positions(list(journal.replay(live_from=9, fill_until=2))) == [(4, 0, 7, 2)]
    assert list(Journal(4).replay(0, 3)) == []


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), max_size=30),
    st.integers(0, 40),
    st.integers(6, 12),
)
def test_a_replay_rebuilds_the_same_rows(
    steps: list[tuple[int, int]], live_from: int, chunk_rows: int
) -> None:
    """Whatever was appended and rolled back, a replay gives the rows that stand, in bounded steps."""
    journal, expected = Journal(1000), list[int]()
    for number, (position, rows) in enumerate(steps):
        position = min(position, len(expected))
        values = [number * 100 + i for i in range(rows)]
        expected[position:] = values
        journal.append(number, position, ids(*values), WANT)
    rebuilt = list[int]()
    last = -1
    for step in journal.replay(live_from, 5, chunk_rows):
        assert step.position == len(rebuilt)
        assert step.number > last
        assert step.inputs.rows <= chunk_rows
        assert (step.fill_until is None) == (step.number >= live_from)
        last = step.number
        rebuilt += step.inputs.numpy().tolist()
    assert rebuilt == expected
    assert journal.length == len(expected)


def test_the_ids_that_wants_name_are_bounded() -> None:
    """A want is needed while its step is out; of many that name ids only the latest are remembered."""
    journal = Journal(100, most_ids=10)
    wants = [Want(ids=tuple(range(n))) for n in (4, 0, 5, 6)]
    for number, want in enumerate(wants):
        journal.append(number, number, ids(1), want)
    assert [entry.want for entry in journal.entries] == [NOTHING, wants[1], NOTHING, wants[3]]
    journal.truncate(3)  # what is forgotten makes room
    for number in range(3, 50):
        journal.append(number + 1, 3, ids(1), wants[2])
    journal.append(51, 4, ids(1), wants[2])
    assert [entry.want for entry in journal.entries[3:]] == [wants[2], wants[2]]


def test_what_stands_between_two_steps() -> None:
    """Behind the first and up to the second; steps that were rolled back are not there."""
    journal = Journal(8)
    for number, position in [(0, 0), (2, 2), (3, 4), (7, 3)]:
        journal.append(number, position, ids(1, 2), NOTHING)
    assert [entry.number for entry in journal.entries] == [0, 2, 7]
    assert [entry.number for entry in journal.between(-1, 7)] == [0, 2, 7]
    assert [entry.number for entry in journal.between(0, 3)] == [2]
    assert journal.between(2, 6) == journal.between(7, 9) == []


def test_regression_rows_of_two_dtypes_make_two_fills() -> None:
    """A hop that is replaced by one of another dtype leaves a journal of both."""
    journal = Journal(8)
    for number, dtype in enumerate([np.float32, np.float32, np.float16]):
        journal.append(number, number, from_numpy(np.zeros((1, 4), dtype)), NOTHING)
    assert positions(list(journal.replay(3, 8))) == [(1, 0, 2, 8), (2, 2, 1, 8)]


def test_a_fork_shares_its_rows_and_is_known_by_its_last_number() -> None:
    """It ends inside an entry or behind it; what either does afterwards the other does not see."""
    journal = Journal(100)
    journal.append(0, 0, ids(1, 2, 3), NOTHING)
    journal.append(1, 3, ids(4, 5), Want("candidates", ids=(1,)))
    journal.append(4, 5, ids(6, 7), WANT)
    forks = [journal.fork(length, 9) for length in (4, 5, 7)]
    assert [(f.length, f.last_number) for f in forks] == [(4, 8), (5, 8), (7, 8)]
    assert forks[2].entries[0] is journal.entries[0]
    forks[0].append(9, 4, ids(8), WANT)
    journal.append(5, 1, ids(9), WANT)
    assert [e.rows.numpy().tolist() for e in forks[0].entries] == [[1, 2, 3], [4], [8]]
    assert [e.rows.numpy().tolist() for e in forks[2].entries] == [[1, 2, 3], [4, 5], [6, 7]]
    assert journal.length == 2


@pytest.mark.parametrize(("length", "after", "most"), [(0, 9, 9), (8, 9, 9), (6, 4, 9), (4, 9, 3)])
def test_what_is_no_fork_is_refused(length: int, after: int, most: int) -> None:
    """Of nothing, beyond the end, of rows that a later step brought, beyond what the other holds."""
    journal = Journal(100)
    journal.append(0, 0, ids(1, 2, 3, 4, 5), NOTHING)
    journal.append(4, 5, ids(6, 7), WANT)
    with pytest.raises(LocalProtocolError):
        journal.fork(length, after, most)


Held = dict[int, list[int]]  # by lane, the ids of its rows


def computed(held: Held, step: Step) -> Held:
    """What lanes hold after a step, as a hop has it."""
    before = {lane: ids for lane, ids in held.items() if lane not in step.ended}
    after, start = dict(before), 0
    for part in step.parts:
        source = before[part.name if part.parent is None else part.parent]
        assert part.position <= len(source)
        rows = step.inputs.numpy().tolist()[start : start + part.rows]
        after[part.name] = [*source[: part.position], *rows]
        start += part.rows
    assert start == step.inputs.rows
    return after


def lane_steps(rng: random.Random, count: int) -> Iterator[Step]:
    """What a client may send of several lanes, each row another id."""
    begins, held, names, fresh = {0: 0}, {0: 0}, itertools.count(1), itertools.count()
    for number in range(count):
        ended = [lane for lane in held if lane and rng.random() < 0.03 * len(held)]
        for lane in ended:
            del held[lane], begins[lane]
        lanes: list[Lane] = []
        for lane in rng.sample([*held], min(6, rng.randint(1, len(held)))):
            position = max(begins[lane], held[lane] - rng.choice([0, 0, 0, 1, 3]))
            lanes.append(Lane(lane, None, position, rng.randint(1, 3)))
        for parent in [lane for lane in held if held[lane] > begins[lane] and rng.random() < 1.5 / len(held)]:
            position = rng.randint(begins[parent] + 1, held[parent])
            lanes.append(Lane(next(names), parent, position, rng.randint(1, 3)))
        rng.shuffle(lanes)
        for each in lanes:
            if each.parent is not None:
                begins[each.name] = each.position
            held[each.name] = each.position + each.rows
        rows = ids(*(next(fresh) for _ in range(sum(lane.rows for lane in lanes))))
        yield Step(number, lanes[0].position, rows, WANT, None, tuple(lanes), tuple(ended))


@pytest.mark.parametrize("seed", range(40))
def test_whoever_is_filled_holds_what_the_lanes_hold(seed: int) -> None:
    """After each step, in small fills or large ones, with any part of it live; and computes no row that is not
    needed, but for what lanes began with."""
    rng = random.Random(seed)
    journal, held = Journal(10_000), {0: list[int]()}
    for step in lane_steps(rng, 40):
        journal.take(step)
        held = computed(held, step)
        filled: Held = {0: []}
        live_from = rng.randint(max(0, step.number - 5), step.number + 1)
        last = -1
        for each in journal.replay(live_from, 8, rng.choice([4, 16, 512])):
            assert last < each.number <= step.number
            assert (each.fill_until is None) == (each.number >= live_from)
            filled, last = computed(filled, each), each.number
        assert filled == held
        assert journal.lanes == held.keys()


def test_a_hop_that_has_the_first_steps_gets_the_others() -> None:
    """As they were: what one that has computed steps below a number lacks."""
    journal, held = Journal(10_000), {0: list[int]()}
    steps = list(lane_steps(random.Random(7), 30))
    for step in steps:
        journal.take(step)
    for step in steps[:20]:
        held = computed(held, step)
    for step in journal.since(20):
        assert step.want == WANT
        held = computed(held, step)
    expected: Held = {0: []}
    for step in steps:
        expected = computed(expected, step)
    assert {lane: held[lane] for lane in expected} == expected


def test_lanes_that_cannot_be_are_our_own_bug() -> None:
    """One that nobody began, or with more than its parent has."""
    journal = Journal(10)
    journal.append(0, 0, ids(1, 2), NOTHING)
    for lane in (Lane(1, None, 0, 1), Lane(1, 2, 1, 1), Lane(1, 0, 3, 1), Lane(1, 0, 2, 9)):
        with pytest.raises(LocalProtocolError):
            journal.take(Step(1, lane.position, ids(*range(lane.rows)), WANT, None, (lane,)))
