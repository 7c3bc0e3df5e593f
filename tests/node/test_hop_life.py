"""The life of a session on a hop: what counts when, and what its client is to hear.

What the table promises:
- Steps and results count while the session serves, and never afterwards.
- It ends once; the first failure is the one that the client hears, unless the client says itself that it is over.
- A stream that breaks takes no failure back: whatever broke it may have been the failure.
- Everything is given back once, from wherever the session stood.
"""

from __future__ import annotations

import itertools

import pytest

from node.hop.life import TRANSITIONS, Event, Life, State
from protocol.messages import Error

FIRST, SECOND = Error("first", "a reason", False), Error("second", "another", True)
EVERYTHING = [
    pytest.param(state, event, id=f"{state.name}-{event.name}")
    for state, event in itertools.product(State, Event)
]
ENDS = set(State) - {State.SERVING}


def at(state: State) -> Life:
    """A session that has come to `state`."""
    life = Life()
    if state is State.FAILED:
        life.fail(FIRST)
    elif state is State.LEFT:
        life.happens(Event.GOODBYE)
    elif state is State.FREED:
        life.happens(Event.RELEASE)
    assert life.state is state
    return life


@pytest.mark.parametrize(("state", "event"), EVERYTHING)
async def test_every_combination_counts_or_changes_nothing(state: State, event: Event) -> None:
    """The table's cell is what follows; without one all stays. What serves is stopped with the first end."""
    life, failure = at(state), FIRST if state is State.FAILED else None
    assert (life.failure, life.scope.cancel_called) == (failure, state in ENDS)
    after = TRANSITIONS[state].get(event)
    assert life.happens(event) is (after is not None)
    assert life.state is (after or state)
    assert life.scope.cancel_called is (life.state in ENDS)


@pytest.mark.parametrize(
    ("state", "hears"),
    [(State.SERVING, SECOND), (State.FAILED, FIRST), (State.LEFT, None), (State.FREED, None)],
)
def test_the_first_failure_stands(state: State, hears: Error | None) -> None:
    """And who has left, or whose session is freed, hears of none."""
    life = at(state)
    life.fail(SECOND)
    assert life.failure == hears


@pytest.mark.parametrize(
    ("event", "hears"), [(Event.GOODBYE, None), (Event.LOSS, FIRST), (Event.RELEASE, None)]
)
def test_a_failure_and_the_clients_end(event: Event, hears: Error | None) -> None:
    """Who says goodbye hears no reason; a stream that breaks takes none back."""
    life = at(State.FAILED)
    life.happens(event)
    assert life.failure == hears


def test_the_table_names_every_state() -> None:
    """A lookup never fails."""
    assert TRANSITIONS.keys() == set(State)


def test_only_what_serves_computes() -> None:
    """Steps and results count in one state, and change it never."""
    for event in (Event.STEP, Event.RESULT):
        assert {state for state in State if event in TRANSITIONS[state]} == {State.SERVING}
        assert TRANSITIONS[State.SERVING][event] is State.SERVING


def test_everything_is_given_back_once() -> None:
    """From every state but the last, from which nothing leads on."""
    assert TRANSITIONS[State.FREED] == {}
    for state in set(State) - {State.FREED}:
        assert TRANSITIONS[state][Event.RELEASE] is State.FREED
