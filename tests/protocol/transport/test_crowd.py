"""Sharing among strangers, without a network: who gives way, who may ask, who may begin, who holds too much."""

from __future__ import annotations

from collections import Counter
from itertools import count

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Busy
from protocol.transport import limits
from protocol.transport.allowance import (
    REMEMBERED_ORIGINS,
    REMEMBERED_PEERS,
    Allowance,
    PeerAllowance,
)
from protocol.transport.crowd import Crowd
from protocol.transport.limits import (
    ANSWERS_PER_S,
    HANDSHAKES_PER_S,
    ORIGIN_HANDSHAKES_PER_S,
    PORT_HANDSHAKES_BURST,
    RESERVED_HANDSHAKES_BURST,
    RESERVED_HANDSHAKES_PER_S,
    UNPROVEN_HANDSHAKES_BURST,
)
from protocol.transport.loopback import loopback_pair
from protocol.transport.quic.admission import Door, Verdict, too_much
from protocol.transport.slots import Slots

PLACES = st.tuples(st.integers(0, 3), st.integers(0, 3))  # origin, and holder there

# --- who gives way


@given(st.lists(st.tuples(st.sampled_from(["enter", "enter", "leave", "touch", "give way"]), PLACES)))
def test_the_oldest_of_the_fullest_gives_way(moves: list[tuple[str, tuple[int, int]]]) -> None:
    """Whatever comes and goes, it is of the origin that has the most, of its holder that has the most, the oldest."""
    crowd: Crowd[int] = Crowd()
    inside: dict[int, tuple[int, int]] = {}
    numbers = count()
    for move, (origin, holder) in moves:
        if move == "enter":
            member = next(numbers)
            inside[member] = (origin, holder)
            crowd.enter(member, str(origin), str(holder))
        elif inside and move == "leave":
            member = list(inside)[(4 * origin + holder) % len(inside)]
            del inside[member]
            assert crowd.leave(member)
            assert not crowd.leave(member)
        elif inside and move == "touch":
            member = list(inside)[(4 * origin + holder) % len(inside)]
            inside[member] = inside.pop(member)
            crowd.touch(member)
        elif inside:
            before, order = dict(inside), list(inside)
            member = crowd.give_way()
            of_origin = Counter(place[0] for place in inside.values())
            of_holder = Counter(inside.values())
            gone = inside.pop(member)
            assert of_origin[gone[0]] == max(of_origin.values())
            assert of_holder[gone] == max(n for place, n in of_holder.items() if place[0] == gone[0])
            assert member == next(other for other in order if before[other] == gone)
        assert len(crowd) == len(inside)
        assert all(member in crowd for member in inside)


@given(st.lists(st.integers(0, 5), max_size=100), st.integers(1, 10))
def test_a_newcomer_stays_until_as_many_have_followed(holders: list[int], most: int) -> None:
    """Where all come from one origin, whoever has just come has its turn to go after all that came before."""
    crowd: Crowd[int | str] = Crowd()
    for number, holder in enumerate(holders):
        crowd.enter(number, "", str(holder))
        if len(crowd) > most:
            crowd.give_way()
    crowd.enter("newcomer", "", "newcomer")
    if len(crowd) > most:
        assert crowd.give_way() != "newcomer"
    for number in range(most - 1):
        crowd.enter(-1 - number, "", f"later {number}")
        if len(crowd) > most:
            assert crowd.give_way() != "newcomer"


@given(st.lists(PLACES, max_size=200), st.integers(4, 20))
def test_nobody_goes_below_its_share(entries: list[tuple[int, int]], most: int) -> None:
    """An origin with no more than an equal share of the places loses none, however many come elsewhere."""
    crowd: Crowd[int] = Crowd()
    origins: dict[int, int] = {}
    for number, (origin, holder) in enumerate(entries):
        crowd.enter(number, str(origin), str(holder))
        origins[number] = origin
        if len(crowd) > most:
            held = Counter(origins.values())
            gone = origins.pop(crowd.give_way())
            assert held[gone] > most // 4


async def test_the_slot_longest_without_progress_is_freed() -> None:
    """Its conversation ends as Busy, at once; one that makes progress goes on, and newcomers enter."""
    slots = Slots(2)
    ended: list[str] = []

    async def converse(name: str, moving: bool, task_status: trio.TaskStatus[trio.Event]) -> None:
        again = trio.Event()
        stream, _ = loopback_pair(name)
        try:
            with slots.taken(stream) as slot:
                task_status.started(again)
                await again.wait()
                slot.progress()
                await trio.sleep_forever()
        except Busy:
            ended.append(name)

    async with trio.open_nursery() as nursery:
        move: trio.Event = await nursery.start(converse, "moving", True)
        await nursery.start(converse, "idle", False)
        move.set()
        await trio.testing.wait_all_tasks_blocked()
        await nursery.start(converse, "third", False)
        await trio.testing.wait_all_tasks_blocked()
        assert ended == ["idle"]
        await nursery.start(converse, "fourth", False)
        await trio.testing.wait_all_tasks_blocked()
        assert ended == ["idle", "moving"]
        assert len(slots) == 2
        nursery.cancel_scope.cancel()


# --- who may ask


def test_an_allowance_comes_back_with_time() -> None:
    """Each key has its own, and strangers without number are forgotten."""
    allowance = Allowance(per_s=1.0, burst=2)
    assert [allowance.take("a", 0.0) for _ in range(3)] == [True, True, False]
    assert allowance.take("b", 0.0)
    assert [allowance.take("a", 1.5) for _ in range(2)] == [True, False]
    for stranger in range(REMEMBERED_ORIGINS + 1):
        allowance.take(str(stranger), 2.0)
    assert len(allowance) == REMEMBERED_ORIGINS


def test_what_costs_more_than_the_burst_takes_all_of_it() -> None:
    """It is granted to who has asked for nothing, and for as long as it costs nothing more is."""
    allowance = Allowance(per_s=1.0, burst=2)
    assert allowance.take("a", 0.0, cost=10.0)
    assert not allowance.take("a", 8.5)
    assert allowance.take("a", 9.0)


def test_new_identities_do_not_make_a_peer_forgotten_elsewhere() -> None:
    """However many peers of one origin ask, a peer of another has what it had left; and the memory is bounded."""
    allowance = PeerAllowance(per_s=0.001, burst=1)
    assert allowance.take("here", "peer", 0.0)
    for number in range(3 * REMEMBERED_PEERS):
        assert allowance.take("there", str(number), 0.0)
    assert not allowance.take("here", "peer", 0.0)
    assert len(allowance) <= REMEMBERED_PEERS + 1
    for number in range(3 * REMEMBERED_ORIGINS):
        allowance.take(str(number), "peer", 0.0)
    assert len(allowance) <= REMEMBERED_ORIGINS


# --- whose handshake begins


def test_unproven_handshakes_are_few_and_then_have_to_prove_themselves() -> None:
    """As many as may, whatever address they claim; and answers to the rest are not without number."""
    door = Door()
    verdicts = Counter(
        door.knock(f"origin {number}", f"port {number}", proven=False, now=0.0) for number in range(5000)
    )
    assert verdicts[Verdict.ENTER] == UNPROVEN_HANDSHAKES_BURST
    assert verdicts[Verdict.PROVE] == ANSWERS_PER_S
    assert door.knock("spoofed", "honest", proven=True, now=0.0) is Verdict.ENTER


def test_a_flood_of_one_origin_leaves_room_for_others() -> None:
    """However fast it knocks, and though others have used up what there is for all, a quiet origin enters."""
    door = Door()
    entered = Counter[str]()
    for step in range(10_000):
        now = step / 1000
        for origin in ("flood", "second flood", "third flood"):
            entered[origin] += door.knock(origin, f"{origin} {step}", proven=True, now=now) is Verdict.ENTER
        if step % 250 == 0:
            assert door.knock("quiet", f"quiet {step}", proven=True, now=now) is Verdict.ENTER
    reserved = RESERVED_HANDSHAKES_BURST + 10 * RESERVED_HANDSHAKES_PER_S
    assert sum(entered.values()) <= HANDSHAKES_PER_S * 11 + 3 * reserved
    assert max(entered.values()) <= ORIGIN_HANDSHAKES_PER_S * 11


def test_a_flood_from_one_port_leaves_its_origin_room() -> None:
    """Dials from another port of the same address enter."""
    door = Door()
    flood = [door.knock("origin", "flood", proven=True, now=0.0) for _ in range(10_000)]
    assert flood.count(Verdict.ENTER) == PORT_HANDSHAKES_BURST
    assert door.knock("origin", "honest", proven=True, now=0.0) is Verdict.ENTER


# --- who holds too much


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 100)), max_size=50),
    st.integers(0, 1000),
)
def test_what_is_held_is_bounded_and_the_worst_go_first(held: list[tuple[str, int]], most: int) -> None:
    """No more goes than has to, and whoever goes holds the most of an origin that held the most then."""
    gone = too_much(held, most)
    left = dict(enumerate(held))
    for index in gone:
        assert sum(size for _, size in left.values()) > most
        of_origin = Counter[str]()
        for origin, size in left.values():
            of_origin[origin] += size
        origin, size = left.pop(index)
        assert of_origin[origin] == max(of_origin.values())
        assert all(size >= other for place, other in left.values() if place == origin)
    assert sum(size for _, size in left.values()) <= most


@pytest.mark.parametrize("size", [1, 1000])
def test_a_small_holder_is_safe_from_a_large_one(size: int) -> None:
    """Beside a crowd that holds too much, the one that holds little stays."""
    held = [("crowd", size)] * 100 + [("alone", size)]
    assert len(held) - 1 not in too_much(held, 50 * size)


def test_the_endpoints_memory_has_a_bound() -> None:
    """All that strangers can make the endpoint hold at the same moment, by the limits and what each thing costs."""
    connection, stream = 115 * limits.KIB, 4 * limits.KIB
    connections = limits.MAX_CONNECTIONS + limits.MAX_HANDSHAKES + limits.MAX_DIALS * limits.MAX_DIAL_ADDRS
    strangers = limits.MAX_CONNECTIONS * limits.STRANGER_STREAMS * stream
    of_use = limits.MAX_CONNECTIONS // 2 * (limits.MAX_INCOMING_STREAMS - limits.STRANGER_STREAMS) * stream
    crypto = 3 * (limits.MAX_CONNECTIONS + limits.MAX_HANDSHAKES) * limits.MAX_CRYPTO_BYTES
    tasks = limits.MAX_UNUSED_STREAMS * 20 * limits.KIB
    held = limits.MAX_HELD_BYTES + limits.COUNT_HELD_EVERY
    assert limits.MAX_CONNECTIONS * limits.STRANGER_WINDOW < limits.MAX_HELD_BYTES
    assert connections * connection + strangers + crypto + tasks + held < 700 * limits.MIB
    assert of_use < 500 * limits.MIB  # only by as many peers that were granted something
