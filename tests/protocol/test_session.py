"""The session table: who may say what, when.

What the table promises:
- A stream begins with Open (a client's) or Attach (a previous hop's), said by whoever opened it.
- A client may send steps before it hears Opened; the hop's answer is Opened, Refused or Error, nothing else.
- On an attached stream only steps come, whose rows may be known, and nothing goes back but Unknown and Error.
- The hop never closes in silence: it ends a stream with Refused or Error; the opener with Close or Error.
- After that nobody says anything.
- Maps, manifests and files are not spoken of on a session stream.
"""

from __future__ import annotations

import itertools

import pytest

from protocol.errors import LocalProtocolError, Malformed
from protocol.messages import (
    ALL,
    Ack,
    Attach,
    Close,
    DialReply,
    DialRequest,
    Error,
    FileChunk,
    FileRequest,
    HoldingsReply,
    HoldingsRequest,
    Instead,
    InventoryReply,
    InventoryRequest,
    Known,
    LinkDown,
    ManifestReply,
    ManifestRequest,
    MapReply,
    MapRequest,
    Message,
    Open,
    Opened,
    Output,
    ParcelReply,
    ParcelRequest,
    Ping,
    Pong,
    Refused,
    Relink,
    Step,
    Unknown,
)
from protocol.session import TRANSITIONS, Side, State, StreamState
from tests.protocol.samples import MESSAGES

SAMPLE: dict[type[Message], Message] = {type(message): message for message in MESSAGES.values()}
EVERYTHING = [
    pytest.param(state, side, kind, id=f"{state.name}-{side.name}-{kind.tag}")
    for state, side, kind in itertools.product(State, Side, ALL)
]


def at(state: State, side: Side) -> StreamState:
    """One end of a stream that has come to `state`."""
    stream = StreamState(side)
    stream.state = state
    return stream


@pytest.mark.parametrize(("state", "side", "kind"), EVERYTHING)
def test_every_combination_is_in_the_table_or_refused(state: State, side: Side, kind: type[Message]) -> None:
    """Sent against the table: our bug. Received against it: the peer's fault. The state stays as it was.

    Where the table allows it, both ends come to the same state.
    """
    ours, theirs, message = at(state, side), at(state, side.other), SAMPLE[kind]
    after = TRANSITIONS[state].get((side, kind))
    if after is None:
        with pytest.raises(LocalProtocolError):
            ours.sent(message)
        with pytest.raises(Malformed):
            theirs.received(message)
        after = state
    else:
        ours.sent(message)
        theirs.received(message)
    assert ours.state is theirs.state is after


def said(state: State, side: Side) -> set[type[Message]]:
    """What `side` may say in `state`."""
    return {kind for speaker, kind in TRANSITIONS[state] if speaker is side}


def test_the_table_names_every_state() -> None:
    """A lookup never fails."""
    assert TRANSITIONS.keys() == set(State)


def test_a_stream_begins_with_open_or_attach() -> None:
    """The opener speaks first; the hop may only say that it will not listen."""
    assert said(State.IDLE, Side.OPENER) == {Open, Attach}
    assert said(State.IDLE, Side.HOP) == {Error}


def test_an_open_is_answered_once() -> None:
    """Until it answers the hop sends no Ack, Output or Pong, whatever the client sent meanwhile."""
    assert said(State.OPENING, Side.HOP) == {Opened, Refused, Error}
    assert TRANSITIONS[State.OPENING][Side.OPENER, Step] is State.OPENING
    assert all(
        Opened not in said(state, Side.HOP) and Refused not in said(state, Side.HOP)
        for state in State
        if state is not State.OPENING
    )


def test_an_attached_stream() -> None:
    """Steps one way, and back only what is not known and why it failed: answers go to the client directly."""
    assert said(State.ATTACHED, Side.OPENER) == {Step, Known, Instead, Close, Error}
    assert said(State.ATTACHED, Side.HOP) == {Unknown, Error}


def test_an_open_stream() -> None:
    """What the client and the hop say while a session lasts."""
    assert said(State.OPEN, Side.OPENER) == {Step, Relink, Ping, Close, Error}
    assert said(State.OPEN, Side.HOP) == {Ack, Output, Pong, LinkDown, Error}


def test_closed_is_the_end_and_can_be_reached_from_everywhere() -> None:
    """Nothing leads out of CLOSED; from every other state each side that may speak can end the stream."""
    assert TRANSITIONS[State.CLOSED] == {}
    for state in set(State) - {State.CLOSED}:
        assert TRANSITIONS[state][Side.HOP, Error] is State.CLOSED
        if state is not State.IDLE:
            assert TRANSITIONS[state][Side.OPENER, Close] is State.CLOSED


def test_only_ends_lead_to_closed() -> None:
    """Close, Error and Refused end a stream, and always."""
    for state, row in TRANSITIONS.items():
        for (_, kind), after in row.items():
            assert (after is State.CLOSED) == (kind in {Close, Error, Refused}), (state, kind)


def test_other_protocols_are_not_spoken_here() -> None:
    """Maps, manifests, files and weights have streams of their own."""
    foreign = {MapRequest, MapReply, ManifestRequest, ManifestReply, FileRequest, FileChunk}
    foreign |= {DialRequest, DialReply}
    foreign |= {HoldingsRequest, HoldingsReply, InventoryRequest, InventoryReply, ParcelRequest, ParcelReply}
    for state, side in itertools.product(State, Side):
        assert not said(state, side) & foreign


def test_every_state_is_reachable_from_idle() -> None:
    """No row of the table is dead."""
    seen, frontier = {State.IDLE}, [State.IDLE]
    while frontier:
        new = set(TRANSITIONS[frontier.pop()].values()) - seen
        seen |= new
        frontier += new
    assert seen == set(State)


def test_the_other_side_of_the_other_side() -> None:
    """There are two sides."""
    assert Side.OPENER.other is Side.HOP
    assert Side.HOP.other is Side.OPENER
