"""Bans over histories of any kind: nobody who serves again is out of reach for longer than is stated."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.routing.bans import (
    FIRST_BAN_S,
    LIFTED_STRIKES,
    LONGEST_BAN_S,
    MOST_STRIKES,
    PAUSE_S,
    PEERS,
    STRIKE_LIFE_S,
    Bans,
)

PEER = "peer"


@dataclass(frozen=True)
class Happens:
    """Something that befalls a peer, so many seconds after what befell it before."""

    after_s: float
    what: str
    seconds: float = 0.0


histories = st.lists(
    st.builds(
        Happens,
        st.floats(0, 200),
        st.sampled_from(["honest", "dishonest", "busy", "answered", "renewed"]),
        st.floats(0, 4000),
    ),
    max_size=40,
)


def live(bans: Bans, history: list[Happens], *, honest_only: bool = False) -> float:
    """Let a history happen; the time at its end."""
    now = 0.0
    for event in history:
        now += event.after_s
        match event.what:
            case "honest":
                bans.ban(PEER, now, honest=True)
            case "dishonest" if not honest_only:
                bans.ban(PEER, now, honest=False)
            case "busy" if not honest_only:
                bans.pause(PEER, now, event.seconds)
            case "answered":
                bans.answered(PEER, now)
            case "renewed":
                bans.renewed(PEER, now - event.seconds, now)
    return now


@given(histories)
def test_an_honest_node_that_serves_again_is_there_at_once(history: list[Happens]) -> None:
    """However often and long it was away: alone in its layers it is used PAUSE_S after it answers at most."""
    bans = Bans()
    now = live(bans, history, honest_only=True)
    bans.answered(PEER, now)
    wait_s = bans.wait_s(PEER, now)
    assert wait_s is not None
    assert wait_s <= PAUSE_S
    assert bans.wait_s(PEER, now + PAUSE_S) == 0


@given(histories)
def test_any_node_that_serves_again_is_there_soon(history: list[Happens]) -> None:
    """Whatever it did: alone in its layers it may be used after one first ban, else after the longest."""
    bans = Bans()
    now = live(bans, history)
    bans.answered(PEER, now)
    assert bans.wait_s(PEER, now + FIRST_BAN_S) == 0
    assert not bans.banned(PEER, now + LONGEST_BAN_S)


@given(histories)
def test_all_is_forgotten_in_the_end(history: list[Happens]) -> None:
    """Strikes and bans alike; the next failure is a first one."""
    bans = Bans()
    now = live(bans, history)
    later = now + LONGEST_BAN_S + MOST_STRIKES * STRIKE_LIFE_S
    assert not bans.banned(PEER, later)
    assert len(bans) == 0
    bans.ban(PEER, later, honest=True)
    assert not bans.banned(PEER, later + FIRST_BAN_S)


def test_the_worst_record_ends() -> None:
    """Thousands of failures make the longest ban, no error, and are forgotten as soon as a few."""
    bans = Bans()
    for _ in range(5000):
        bans.ban(PEER, 0, honest=False)
    assert bans.banned(PEER, LONGEST_BAN_S - 1)
    assert not bans.banned(PEER, LONGEST_BAN_S)
    bans.ban(PEER, LONGEST_BAN_S + MOST_STRIKES * STRIKE_LIFE_S, honest=False)
    assert not bans.banned(PEER, LONGEST_BAN_S + MOST_STRIKES * STRIKE_LIFE_S + FIRST_BAN_S)


@given(histories, st.integers(0, 500))
def test_probes_in_vain_change_nothing(history: list[Happens], probes: int) -> None:
    """A peer that is down is down once, however often it is asked."""
    patient, curious = Bans(), Bans()
    now = live(patient, history, honest_only=True)
    live(curious, history, honest_only=True)
    for bans in (patient, curious):
        bans.ban(PEER, now, honest=True)
    for second in range(probes):
        curious.ban(PEER, now + second, honest=True)
    now += probes
    for bans in (patient, curious):
        bans.answered(PEER, now)
        bans.ban(PEER, now, honest=True)
    assert curious.guilt(PEER, now) <= patient.guilt(PEER, now)


def test_regression_a_node_away_for_two_minutes() -> None:
    """Probed each second while it was dead, it is used as soon as it answers, though others could serve."""
    bans = Bans()
    for second in range(124):
        bans.ban(PEER, second, honest=True)
    assert bans.banned(PEER, 124)
    bans.answered(PEER, 124)
    assert not bans.banned(PEER, 124)


def test_who_fails_though_it_answers_sits_out_its_ban() -> None:
    """Bans of a peer that answers probes and fails sessions double, after a few that an answer ends."""
    bans, now = Bans(), 0.0
    for strike in range(1, LIFTED_STRIKES + 3):
        bans.ban(PEER, now, honest=True)
        bans.answered(PEER, now)
        assert bans.banned(PEER, now) == (strike > LIFTED_STRIKES)
        now += 1
    assert bans.banned(PEER, now + FIRST_BAN_S * 2**LIFTED_STRIKES)
    assert bans.is_hopeless(PEER, now)
    assert not bans.is_hopeless(PEER, now + LONGEST_BAN_S + STRIKE_LIFE_S)


@pytest.mark.parametrize("laundry", ["honest", "answered", "renewed"])
def test_a_liar_is_not_washed_clean(laundry: str) -> None:
    """Neither an answer nor an honest failure shortens the ban of who broke the rules."""
    bans = Bans()
    bans.ban(PEER, 0, honest=False)
    live(bans, [Happens(1, laundry), Happens(1, "answered")])
    assert bans.banned(PEER, FIRST_BAN_S - 0.1)
    assert (bans.wait_s(PEER, FIRST_BAN_S - 0.1) or 0) > 0


def test_the_least_guilty_come_first() -> None:
    """Honest before others, few strikes before many, long ago before lately."""
    bans = Bans()
    bans.ban("late", 2, honest=True)
    bans.ban("early", 1, honest=True)
    bans.ban("liar", 0, honest=False)
    for second in (0, 1):
        bans.ban("often", second, honest=True)
        bans.answered("often", second)
    peers = ["liar", "often", "late", "early", "stranger"]
    assert sorted(peers, key=lambda peer: bans.guilt(peer, 3)) == [
        "stranger",
        "early",
        "late",
        "often",
        "liar",
    ]


def test_the_memory_is_bounded_and_fair() -> None:
    """Any number of identities: those that failed longest ago are forgotten, and neither kind forgets the other."""
    bans = Bans()
    bans.ban("liar", 0, honest=False)
    for number in range(3 * PEERS):
        bans.ban(f"dead {number}", 1, honest=True)
    assert bans.banned("liar", 2)
    assert len(bans) == PEERS + 1
    for number in range(3 * PEERS):
        bans.ban(f"liar {number}", 1, honest=False)
    assert bans.banned(f"dead {3 * PEERS - 1}", 2)
    assert len(bans) == 2 * PEERS


def test_who_is_busy_is_asked_when_it_said() -> None:
    """An answer does not end that, and it is no strike; who has no other peer does not wait for an hour."""
    bans = Bans()
    bans.pause(PEER, 0, 3)
    bans.answered(PEER, 1)
    assert bans.banned(PEER, 2.9)
    assert not bans.banned(PEER, 3)
    bans.pause(PEER, 3, 3600)
    assert bans.wait_s(PEER, 3) == FIRST_BAN_S
    assert not bans.banned(PEER, 3 + LONGEST_BAN_S)
    assert not bans.guilt(PEER, 4)[0]
