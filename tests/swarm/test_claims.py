"""What hops say of themselves: an honest one is never called a liar, and who contradicts the order of a stream is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Malformed
from protocol.messages import Ack, Pong
from swarm.session.claims import Claims


@given(st.lists(st.sampled_from(["send", "ping", "receive", "compute", "ack", "pong"]), max_size=80))
def test_an_honest_hop_is_believed(events: list[str]) -> None:
    """However sending, receiving, computing and saying so interleave."""
    claims = Claims(0.0)
    wire: list[int | None] = []  # steps and pings on their way, in order; None is a ping
    pongs = received = computed = acked = sent = 0
    for now, event in enumerate(events, 1):
        if event == "send":
            wire.append(sent)
            sent += 1
            claims.sent = sent
        elif event == "ping":
            wire.append(None)
            claims.ping(now)
        elif event == "receive" and wire:
            step = wire.pop(0)
            if step is None:
                pongs += 1
                claims.pong(Pong(pongs, received, computed), sent, now)
            else:
                received = step + 1
        elif event == "compute" and computed < received:
            computed += 1
        elif event == "ack" and acked < computed:
            claims.ack(Ack(acked, 0.0, 0.0), now)
            acked += 1
        assert claims.through <= claims.received <= sent
        assert (claims.owes_since is None) == (claims.received == claims.through)


def asked(sent: int = 3) -> Claims:
    """A hop that was sent some steps, then a ping."""
    claims = Claims(0.0)
    claims.sent = sent
    claims.ping(0.0)
    return claims


@pytest.mark.parametrize(
    "pong",
    [Pong(1, 2, 0), Pong(1, 0, 0), Pong(1, 4, 0), Pong(1, 3, 4), Pong(2, 3, 0), Pong(0, 3, 0)],
)
def test_pongs_that_lie(pong: Pong) -> None:
    """They deny or invent steps, or answer what was not asked."""
    asked().pong(Pong(1, 3, 3), 3, 1.0)
    with pytest.raises(Malformed):
        asked().pong(pong, 3, 1.0)


def test_what_was_said_holds() -> None:
    """A step that was received or computed stays so."""
    claims = asked()
    claims.ack(Ack(2, 0.0, 0.0), 1.0)
    with pytest.raises(Malformed):
        claims.pong(Pong(1, 3, 2), 3, 2.0)


def test_a_hop_owes_until_it_has_delivered() -> None:
    """Where results come to us, an ack alone is no progress; one stretch of owing has one beginning."""
    claims = asked()
    claims.owe_results(0, 1.0)
    claims.pong(Pong(1, 3, 1), 3, 2.0)
    claims.ack(Ack(0, 0.0, 0.0), 5.0)
    assert (claims.owes_since, claims.owes_from, claims.progress_at) == (2.0, 0, 0.0)
    claims.deliver(0, 100, 6.0)
    assert (claims.owes_since, claims.through, claims.carried_bytes) == (2.0, 1, 100)
    for number in (1, 2):
        claims.deliver(number, 100, 7.0)
        claims.ack(Ack(number, 0.0, 0.0), 7.0)
    assert claims.owes_since is None
