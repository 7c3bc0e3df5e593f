"""Who may say what, when, on a session stream; as a table.

A stream of `/swarm/session/1` is opened by a client (it says Open) or by the previous hop (it says Attach).
The side that opened it is the OPENER, the other the HOP. Whoever has sent or received the message that leads
to CLOSED reads no more: what was on its way then is nobody's fault.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from protocol.errors import LocalProtocolError, Malformed
from protocol.messages import (
    Ack,
    Attach,
    Close,
    Error,
    Instead,
    Known,
    LinkDown,
    Message,
    Open,
    Opened,
    Output,
    Ping,
    Pong,
    Refused,
    Relink,
    Step,
    Unknown,
)


class Side(Enum):
    """The two ends of a session stream."""

    OPENER = auto()
    HOP = auto()

    @property
    def other(self) -> Side:
        """The opposite end."""
        return Side.HOP if self is Side.OPENER else Side.OPENER


class State(Enum):
    """Where a session stream stands."""

    IDLE = auto()  # nothing said yet
    OPENING = auto()  # asked, not answered
    OPEN = auto()  # a client's stream
    ATTACHED = auto()  # a previous hop's stream: steps one way, and back only what is not known
    CLOSED = auto()


# Each is one object, so its place tells it from the others as well as its name does, with every message.
Side.__hash__ = State.__hash__ = object.__hash__  # type: ignore[method-assign]

TRANSITIONS: Final[dict[State, dict[tuple[Side, type[Message]], State]]] = {
    State.IDLE: {
        (Side.OPENER, Open): State.OPENING,
        (Side.OPENER, Attach): State.ATTACHED,
        (Side.HOP, Error): State.CLOSED,
    },
    State.OPENING: {
        (Side.OPENER, Ping): State.OPENING,
        (Side.OPENER, Step): State.OPENING,  # a client need not wait for the answer
        (Side.OPENER, Close): State.CLOSED,
        (Side.HOP, Opened): State.OPEN,
        (Side.HOP, Refused): State.CLOSED,
        (Side.HOP, Error): State.CLOSED,
    },
    State.OPEN: {
        (Side.OPENER, Step): State.OPEN,
        (Side.OPENER, Relink): State.OPEN,
        (Side.OPENER, Ping): State.OPEN,
        (Side.OPENER, Close): State.CLOSED,
        (Side.OPENER, Error): State.CLOSED,
        (Side.HOP, Ack): State.OPEN,
        (Side.HOP, Output): State.OPEN,
        (Side.HOP, Pong): State.OPEN,
        (Side.HOP, LinkDown): State.OPEN,
        (Side.HOP, Error): State.CLOSED,
    },
    State.ATTACHED: {
        (Side.OPENER, Step): State.ATTACHED,
        (Side.OPENER, Known): State.ATTACHED,
        (Side.OPENER, Instead): State.ATTACHED,
        (Side.OPENER, Close): State.CLOSED,
        (Side.OPENER, Error): State.CLOSED,
        (Side.HOP, Unknown): State.ATTACHED,
        (Side.HOP, Error): State.CLOSED,
    },
    State.CLOSED: {},
}


class StreamState:
    """Follows one stream from one side; refuses what the table does not allow."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self._theirs = side.other
        self.state = State.IDLE

    def sent(self, message: Message) -> None:
        """We are about to send it. Raises: LocalProtocolError."""
        after = TRANSITIONS[self.state].get((self.side, type(message)))
        if after is None:
            raise LocalProtocolError(f"{self.side.name} may not send {message.tag} in {self.state.name}")
        self.state = after

    def received(self, message: Message) -> None:
        """The peer sent it. Raises: Malformed."""
        after = TRANSITIONS[self.state].get((self._theirs, type(message)))
        if after is None:
            raise Malformed(f"{message.tag} is not allowed in state {self.state.name}")
        self.state = after
