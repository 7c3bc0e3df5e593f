"""Where a session on a hop stands, what still counts there, and what follows; as a table.

A session ends in one of two ways: it fails, and its client is to hear why; or the client has left, and nobody is to
hear anything. Then all that it held is freed. What the table does not name comes too late and changes nothing: a step
that was on its way, a result that the engine was at, a second failure.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

import trio

from protocol.messages import Error


class State(Enum):
    """Where a session stands."""

    SERVING = auto()  # steps are taken, computed and sent on
    FAILED = auto()  # nothing is computed any more; the client is to hear why
    LEFT = auto()  # nor is there a client
    FREED = auto()  # nothing is held but by the thread that computes


class Event(Enum):
    """What happens to a session."""

    STEP = auto()  # one came, from the client or the hop before
    RESULT = auto()  # the engine is through with a piece of a step
    FAILURE = auto()
    GOODBYE = auto()  # the client ends it
    LOSS = auto()  # the client's stream broke, perhaps by our own failure
    RELEASE = auto()  # give everything back


# Each is one object, so its place tells it from the others as well as its name does, with every step.
State.__hash__ = Event.__hash__ = object.__hash__  # type: ignore[method-assign]

TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.SERVING: {
        Event.STEP: State.SERVING,
        Event.RESULT: State.SERVING,
        Event.FAILURE: State.FAILED,
        Event.GOODBYE: State.LEFT,
        Event.LOSS: State.LEFT,
        Event.RELEASE: State.FREED,
    },
    State.FAILED: {
        Event.GOODBYE: State.LEFT,
        Event.RELEASE: State.FREED,
    },
    State.LEFT: {
        Event.RELEASE: State.FREED,
    },
    State.FREED: {},
}


class Life:
    """Follows one session. `scope` holds all that serves it, and is cancelled when it serves no more."""

    def __init__(self) -> None:
        self.state = State.SERVING
        self.scope = trio.CancelScope()
        self._failure: Error | None = None

    @property
    def failure(self) -> Error | None:
        """What the client is to hear."""
        return self._failure if self.state is State.FAILED else None

    def happens(self, event: Event) -> bool:
        """Whether it counts; the state follows."""
        after = TRANSITIONS[self.state].get(event)
        if after is None:
            return False
        self.state = after
        if after is not State.SERVING:
            self.scope.cancel()
        return True

    def fail(self, why: Error) -> None:
        """End the session; the first reason given is the one the client is told."""
        if self.happens(Event.FAILURE):
            self._failure = why
