"""Who gets a seat and who loses one, as numbers."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from node.hop.admission import (
    GROW_MOST_S,
    GROW_WAIT_S,
    IDLE_CROWDED_S,
    IDLE_S,
    NEW_CROWDED_S,
    NEW_OF_ORIGIN,
    NEW_S,
    PAUSE_S,
    Admission,
)
from node.hop.seats import USABLE_TOKENS, Held, Room, Seat
from protocol import limits
from protocol.errors import CacheFull

NOW = 1000.0
ROOM = Room(100_000, 1_000_000)


def seat(peer: str = "peer", origin: str = "here", tokens: int = 1000, buffers: int = 1000) -> Seat:
    """One that is asked for."""
    return Seat(peer, origin, tokens, buffers)


def refused(admission: Admission, asked: Seat, now: float = NOW) -> bool:
    """Whether there is no seat now, though room was looked for."""
    try:
        admission.take(asked, now)
    except CacheFull:
        return True
    return False


def filled(admission: Admission, count: int, **more: object) -> list[Seat]:
    """Seats of as many peers, of one origin unless said otherwise, taken now."""
    seats = [seat(f"peer {number}", **more) for number in range(count)]  # type: ignore[arg-type]
    for taken in seats:
        assert admission.take(taken, NOW) == []
    return seats


def test_one_peer_does_not_have_everything() -> None:
    """Half of the tokens and of the buffers is the most, and its own idle sessions give way to its next one."""
    for asked in (seat(tokens=30_000), seat(buffers=300_000)):
        admission = Admission(ROOM)
        assert admission.take(asked, NOW) == []
        asked.waiting = 1
        more = seat(tokens=asked.tokens, buffers=asked.buffer_bytes)
        assert refused(admission, more)
        assert not refused(admission, seat("another", tokens=asked.tokens, buffers=asked.buffer_bytes))
        asked.waiting = 0
        assert admission.take(more, NOW + NEW_S) == [asked]


def test_one_origin_leaves_a_quarter() -> None:
    """However many identities it has, who comes from elsewhere finds room at once."""
    admission = Admission(ROOM)
    seats = filled(admission, 75)
    for taken in seats:
        taken.waiting = 1
    assert refused(admission, seat("one more"))
    assert admission.offer(lambda _: 1, NOW) == 25_000
    assert not refused(admission, seat("stranger", "elsewhere", tokens=25_000))


def test_a_lone_user_of_a_small_node_has_a_whole_session() -> None:
    """As long as a chat's; on a smaller node, everything there is."""
    assert not refused(Admission(Room(8192)), seat(tokens=4096))
    assert not refused(Admission(Room(5000)), seat(tokens=USABLE_TOKENS))
    assert not refused(Admission(Room(300)), seat(tokens=300))
    assert Admission(Room(300)).offer(lambda _: 1, NOW) == 300


def test_who_uses_a_seat_keeps_it() -> None:
    """A full house of sessions that compute or have steps waiting says so, to everybody and in its announcement."""
    admission = Admission(Room(10**9, 10**9))
    seats = [seat(f"p{n}", f"o{n % 4}", 1, 1) for n in range(limits.SESSIONS)]
    for taken in seats:
        assert admission.take(taken, NOW) == []
        taken.waiting = 1
    assert refused(admission, seat("honest", "elsewhere"), NOW + 10 * IDLE_S)
    assert admission.offer(lambda _: 1, NOW + 10 * IDLE_S) == 0


def test_a_flood_of_sessions_gives_way_to_who_uses_one() -> None:
    """Of those that computed nothing only the latest of an origin are waited for; the oldest goes first."""
    admission = Admission(Room(10**9, 10**9))
    flood = [seat(f"p{n}", "here", 1, 1) for n in range(192)]
    for taken in flood:
        assert admission.take(taken, NOW) == []
    honest = seat("honest", "here", 1, 1)
    assert admission.take(honest, NOW) == [flood[0]]
    honest.used_at = NOW
    for number in range(1000):  # the flood goes on, and replaces itself
        assert honest not in admission.take(seat(f"q{number}", "here", 1, 1), NOW + number / 1000)
    assert admission.offer(lambda _: 1, NOW + 1.0) > 0


def test_room_that_nobody_steps_in_is_not_hoarded() -> None:
    """Many new sessions of one origin that hold much of the room, each of another peer, give way soon."""
    admission = Admission(Room(8192, 10**6))
    for number in range(12):
        admission.take(seat(f"p{number}", "here", 512, 1), NOW)
    asked = seat("honest", "here", 1024, 1)
    assert refused(admission, asked, NOW + NEW_CROWDED_S / 2)
    gone = admission.take(asked, NOW + NEW_CROWDED_S)
    assert {each.peer for each in gone} == {"p0", "p1"}


@given(st.integers(1, 5), st.integers(256, 700), st.lists(st.floats(0.0, 0.3), max_size=40))
def test_a_newcomer_is_seated_beside_whoever_opens_many(
    hoarders: int, tokens: int, pauses: list[float]
) -> None:
    """At once, with all seats of the few others just opened; and its seat is not had by opening more."""
    admission, now = Admission(Room(8192, 10**6)), NOW
    names = [f"hoarder {number % hoarders}" for number in range(40)]
    for name in names:
        refused(admission, seat(name, "here", tokens, 1))
    newcomer = seat("newcomer", "here", tokens, 1)
    assert {lost.peer for lost in admission.take(newcomer, now)} <= set(names)
    for pause_s in pauses:
        if now + pause_s >= NOW + NEW_S:
            break
        now += pause_s
        for name in names[:hoarders]:
            refused(admission, seat(name, "here", tokens, 1), now)
        assert newcomer in admission._seats


def test_a_newcomer_leaves_each_other_peer_a_seat() -> None:
    """Who has one session that was just opened keeps it; of who has several one at least is left."""
    admission = Admission(Room(8192, 10**6))
    for number in range(6):
        admission.take(seat(f"p{number // 3}", "here", 768, 1), NOW)
    single = seat("single", "here", 1024, 1)
    admission.take(single, NOW)
    assert refused(admission, seat("newcomer", "here", 3600, 1))
    gone = admission.take(seat("newcomer", "here", 2800, 1), NOW)
    assert sorted(lost.peer for lost in gone) == ["p0", "p0", "p1"]


def test_who_has_less_is_not_soon_idle_for_who_has_more() -> None:
    """A chat whose user reads keeps its seat beside a hoard that asks and asks, as long as on an empty node."""
    admission = Admission(Room(8192, 10**6))
    chat = seat("chat", "here", 512, 1)
    admission.take(chat, NOW)
    chat.used_at = NOW
    hoard = [seat("hoarder", "here", 512, 1) for _ in range(8)]
    hoard += [seat("another", "here", 512, 1) for _ in range(3)]
    for taken in hoard:
        assert admission.take(taken, NOW) == []
        taken.waiting = 1
    assert refused(admission, seat("another", "here", 512, 1), NOW + IDLE_S - 0.1)
    assert admission.take(seat("another", "here", 512, 1), NOW + IDLE_S) == [chat]


def test_a_new_session_is_given_time() -> None:
    """To those that have just opened nobody asks the seat back."""
    admission = Admission(Room(3000, 10**6))
    first, second = seat("a", "o1", 1500), seat("b", "o2", 1500)
    admission.take(first, NOW)
    admission.take(second, NOW + 1.0)
    asked = seat("c", "o3", 1000)
    assert refused(admission, asked, NOW + NEW_S - 0.1)
    assert admission.take(asked, NOW + NEW_S) == [first]
    assert NEW_OF_ORIGIN < limits.SESSIONS * 0.75


def test_the_idle_give_way_the_sooner_the_more_their_origin_has() -> None:
    """One session kept warm by a step now and then keeps its seat; a hundred of one origin do not."""
    admission = Admission(Room(10**9, 10**9))
    crowd = [seat(f"p{n}", "crowd", 1, 1) for n in range(192)]
    single = seat("single", "elsewhere", 1, 1)
    for taken in (*crowd, single):
        admission.take(taken, NOW)
        taken.used_at = NOW
    others = [seat(f"r{n}", f"o{n}", 1, 1) for n in range(limits.SESSIONS - 193)]
    for taken in others:
        admission.take(taken, NOW)
        taken.waiting = 1
    asked = seat("honest", "new", 1, 1)
    assert refused(admission, asked, NOW + IDLE_CROWDED_S - 0.1)
    assert admission.take(asked, NOW + IDLE_CROWDED_S) == [crowd[-1]]


def test_who_has_more_gives_way_to_who_has_less() -> None:
    """Sessions that step now and then hold no room against a peer that has none, from the same origin even."""
    admission = Admission(Room(8192, 10**9))
    hoard = [seat(f"hoarder {n % 2}", "here", 512) for n in range(12)]
    for taken in hoard:
        assert admission.take(taken, NOW) == []
        taken.used_at = NOW
    hoard[0].waiting = 1
    hoard[2].used_at = NOW + 0.4  # of the same peer as the first
    assert refused(admission, seat("newcomer", "here", 1000), NOW + PAUSE_S - 0.1)
    assert admission.take(seat("newcomer", "here", 1000), NOW + PAUSE_S) == [hoard[1], hoard[3]]
    # none is left that has twice as much as the next one asks for
    assert refused(admission, seat("another", "here", 3000), NOW + PAUSE_S)
    assert 1000 < admission.offer(lambda _: 1, NOW + PAUSE_S) < 4096


def growing(peer: str, origin: str = "here", most: int = 2048, tokens: int = 256) -> Seat:
    """One that begins with a page."""
    return Seat(peer, origin, tokens, 1, most=most)


def grown(admission: Admission, asked: Seat, tokens: int, now: float = NOW) -> bool:
    """Whether it holds so many now."""
    try:
        admission.grow(asked, tokens, now)
    except CacheFull:
        return False
    return asked.tokens == tokens


def test_a_new_session_leaves_room_for_those_that_grow() -> None:
    """An eighth, as far as they may; sessions that cannot grow leave none, and a lone one has everything."""
    admission = Admission(Room(16_384, 10**6))
    seats = [growing(f"p{n}", f"o{n % 4}") for n in range(56)]
    for taken in seats:
        assert admission.take(taken, NOW) == []
        taken.waiting = 1
    assert refused(admission, growing("one more", "elsewhere"))
    assert all(grown(admission, seats[n], 512) for n in range(8))
    assert not grown(admission, seats[8], 512)
    admission = Admission(Room(16_384, 10**6))
    for number in range(64):
        assert admission.take(growing(f"p{number}", f"o{number % 4}", most=256), NOW) == []
    admission = Admission(Room(5000, 10**6))
    lone = growing("lone", most=4096)
    admission.take(lone, NOW)
    assert grown(admission, lone, 4096)


def test_who_does_not_use_a_seat_gives_way_to_who_grows() -> None:
    """As to a newcomer: never who computes, and not soon who has less."""
    admission = Admission(Room(4096, 10**6))
    one, idle, busy = growing("one"), growing("idle", tokens=1600), growing("busy", tokens=1600)
    for taken in (one, idle, busy):
        admission.take(taken, NOW)
        taken.used_at = NOW
    one.waiting = busy.waiting = 1
    assert not grown(admission, one, 1024, NOW)
    assert not grown(admission, one, 1024, NOW + IDLE_S - 0.1)
    assert admission.grow(one, 1024, NOW + IDLE_S) == [idle]
    assert not grown(admission, one, 2560, NOW + 10 * IDLE_S)


def test_one_peer_that_takes_all_it_can_leaves_others_their_share() -> None:
    """It grows to half, and waits for no more than its own; the other one grows beside it."""
    admission = Admission(Room(16_384, 10**6))
    hoard = [growing("hoarder") for _ in range(20)]
    for taken in hoard:
        admission.take(taken, NOW)
        taken.waiting = 1
    other = growing("other", most=8192)
    admission.take(other, NOW)
    other.waiting = 1
    for _ in range(8):
        for taken in hoard:
            grown(admission, taken, min(taken.tokens + 256, taken.most))
    assert sum(taken.tokens for taken in hoard) == 8192
    assert all(
        grown(admission, other, tokens) for tokens in range(512, 4097, 256)
    )  # an origin has three quarters
    assert not grown(admission, hoard[0], hoard[0].tokens + 256)


def test_the_line_is_kept() -> None:
    """Who waits first gets what comes free, before who is younger or of a peer with more sessions."""
    admission = Admission(Room(2048, 10**6))
    crowd = [growing("crowd", most=512), growing("crowd", most=512)]
    first, second, last = growing("a"), growing("b"), growing("c", most=256)
    for taken in (*crowd, first, second, last):
        admission.take(taken, NOW)
        taken.waiting = 1
    assert all(grown(admission, taken, 512) for taken in crowd)
    assert grown(admission, first, 512)
    assert not grown(admission, second, 768)
    assert not grown(admission, first, 1024)
    admission.release(crowd[0])
    assert grown(admission, first, 1024)
    assert not grown(admission, second, 768)
    admission.release(crowd[1])
    assert grown(admission, second, 768)


def test_where_nobody_gets_on_the_last_in_line_goes() -> None:
    """Not who computes, nor the first; where others compute, later; and in no case later than a client waits."""
    admission = Admission(Room(1024, 10**6))
    first, second, busy = growing("a"), growing("b"), growing("c", most=512)
    for taken in (first, second, busy):
        admission.take(taken, NOW)
        taken.waiting = 1
    assert grown(admission, busy, 512)

    def who_goes(now: float) -> list[Seat]:
        return [taken for taken in (first, second) if not grown(admission, taken, 512, now) and
                admission.must_yield(taken, now)]  # fmt: skip

    assert who_goes(NOW) == who_goes(NOW + GROW_WAIT_S - 0.1) == []
    assert who_goes(NOW + GROW_WAIT_S) == [second]
    busy.waiting, busy.used_at = 0, NOW + GROW_WAIT_S  # it rests between two steps, or for longer
    assert who_goes(NOW + GROW_WAIT_S + 0.1) == []
    admission.release(second)
    assert grown(admission, first, 512, NOW + GROW_WAIT_S)
    assert not grown(admission, first, 1024, NOW + GROW_WAIT_S)
    assert not admission.must_yield(first, NOW + GROW_WAIT_S)
    busy.waiting = 1
    assert not grown(admission, first, 1024, NOW + 2 * GROW_WAIT_S + GROW_MOST_S)
    assert admission.must_yield(first, NOW + 2 * GROW_WAIT_S + GROW_MOST_S)


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(512, 4096))
def test_all_that_grow_come_to_their_end(seed: int, count: int, tokens: int) -> None:
    """Whatever each needs, of few peers or many, with room for one at least: nobody is turned away for ever."""
    rng = random.Random(seed)
    admission, now = Admission(Room(tokens, 10**9)), NOW
    most = min(admission.room.of_peer.tokens, 2048)
    needs = [rng.randint(1, most) for _ in range(count)]
    peers = [f"p{rng.randrange(8)}" for _ in needs]
    waiting, seats = list(range(count)), dict[int, Seat]()
    for _ in range(4000):
        now += 0.1
        for number in rng.sample(waiting, len(waiting)):
            asked = growing(peers[number], most=needs[number], tokens=min(256, needs[number]))
            if not refused(admission, asked, now):
                waiting.remove(number)
                seats[number] = asked
                asked.waiting = 1
        for number, held in rng.sample(sorted(seats.items()), len(seats)):
            if held.tokens == needs[number]:
                admission.release(seats.pop(number))
                continue
            is_grown = grown(admission, held, min(held.tokens + 256, needs[number]), now)
            if not is_grown and admission.must_yield(held, now):
                admission.release(seats.pop(number))
                waiting.append(number)
        assert within(admission.room, list(seats.values()))
        if not waiting and not seats:
            return
    raise AssertionError(f"{len(waiting)} wait, {len(seats)} are open")


TIMES = st.floats(0.0, 100.0)
SEATS = st.builds(
    lambda peer, tokens, buffers, opened, used, waiting: Seat(
        f"p{peer}", f"o{peer % 3}", tokens, buffers, opened, waiting, None if used is None else opened + used
    ),
    st.integers(0, 8), st.integers(1, 60), st.integers(1, 60), TIMES, st.none() | TIMES,
    st.sampled_from([0, 0, 0, 1]),
)  # fmt: skip


@given(st.lists(SEATS, max_size=12), SEATS, TIMES)
def test_whatever_is_asked_the_limits_hold(seats: list[Seat], asked: Seat, later: float) -> None:
    """Nobody has more than its share, nobody in use is turned out, and nobody for nothing."""
    room = Room(100, 100)
    admission = Admission(room)
    now = 200.0 + later
    for taken in sorted(seats, key=lambda s: s.opened_at):
        opened_at, used_at, waiting = taken.opened_at, taken.used_at, taken.waiting
        try:
            admission.take(taken, opened_at)
        except CacheFull:
            continue
        taken.used_at, taken.waiting = used_at, waiting
    before = list(admission._seats)
    try:
        gone = admission.take(asked, now)
    except CacheFull:
        assert list(admission._seats) == before
        return
    assert set(before) - set(admission._seats) == set(gone)
    assert all(not lost.waiting for lost in gone)
    assert within(room, list(admission._seats))
    for lost in gone:
        assert not within(room, [*admission._seats, lost])


def within(room: Room, seats: list[Seat]) -> bool:
    """Whether everybody's limit holds."""
    groups = [(seats, room.of_all)]
    groups += [([s for s in seats if s.peer == p], room.of_peer) for p in {s.peer for s in seats}]
    groups += [([s for s in seats if s.origin == o], room.of_origin) for o in {s.origin for s in seats}]
    return all(is_within(held, limit) for held, limit in groups)


def is_within(seats: list[Seat], limit: Held) -> bool:
    """Whether these together stay within a limit."""
    tokens, buffers = sum(s.tokens for s in seats), sum(s.buffer_bytes for s in seats)
    return tokens <= limit.tokens and buffers <= limit.buffer_bytes and len(seats) <= limit.sessions
