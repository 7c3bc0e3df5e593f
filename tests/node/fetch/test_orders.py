"""Which parcel is asked of whom, over made-up holders."""

from __future__ import annotations

import random
from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from node.fetch.orders import AHEAD_MOST_BYTES, PATIENCE_S, Orders
from protocol import limits

MIB = limits.PARCEL_BYTES


def sizes_of(*counts: int, size: int = MIB) -> dict[bytes, dict[bytes, int]]:
    """Stages of so many parcels each, all different."""
    return {
        bytes([stage] * 8): {bytes([stage, *number.to_bytes(2, "big")]): size for number in range(count)}
        for stage, count in enumerate(counts)
    }


A, B, C = (bytes([stage] * 8) for stage in range(3))


def orders_of(sizes: Mapping[bytes, Mapping[bytes, int]], seed: int = 1) -> Orders:
    """With a generator of its own."""
    return Orders(sizes, random.Random(seed))


def ask_all(orders: Orders, peer: str, now: float = 0.0) -> list[bytes]:
    """Everything that may be asked of a peer now."""
    found = []
    while (parcel := orders.next(peer, now)) is not None:
        found.append(parcel)
    return found


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=3),
    st.lists(st.sets(st.sampled_from([A, B, C]), min_size=1), min_size=1, max_size=5),
    st.data(),
)
@settings(max_examples=200)
def test_everything_comes_whoever_goes(
    counts: list[int], held: list[set[bytes]], data: st.DataObject
) -> None:
    """Peers come, give, and go in any order; what is missing is asked of who has it, and in the end nothing is."""
    sizes = sizes_of(*counts)
    orders, came, now = orders_of(sizes), set[bytes](), 0.0
    present: dict[int, list[bytes]] = {}
    for _ in range(data.draw(st.integers(0, 60))):
        now += data.draw(st.floats(0.0, 3.0))
        who = data.draw(st.integers(0, len(held) - 1))
        name = str(who)
        if who not in present:
            orders.meet(name, held[who])
            present[who] = []
        elif data.draw(st.integers(0, 3)) == 0:
            orders.leave(name)
            del present[who]
            continue
        elif present[who]:
            first = orders.first(name)
            assert first is not None
            assert first[0] == present[who].pop(0)
            orders.came(name, now)
            came.add(first[0])
        asked = ask_all(orders, name, now)
        assert all(any(parcel in sizes[stage] for stage in held[who] & sizes.keys()) for parcel in asked)
        present[who] += asked
        assert len(present[who]) <= limits.PARCELS_ASKED
    for who in list(present):
        orders.leave(str(who))
    orders.meet("all", [A, B, C])
    while not orders.done:
        ask_all(orders, "all", now)
        first = orders.first("all")
        assert first is not None
        now += 0.01
        orders.came("all", now)
        assert first[0] not in came
        came.add(first[0])
    assert came == {parcel for parcels in sizes.values() for parcel in parcels}
    assert orders.missing_bytes == 0
    assert not orders.lacking()


def test_no_parcel_is_asked_twice_while_it_may_come() -> None:
    """Two peers that have the same share it out."""
    orders = orders_of(sizes_of(10))
    for peer in ("one", "two"):
        orders.meet(peer, [A])
    asked = [*ask_all(orders, "one"), *ask_all(orders, "two")]
    assert len(set(asked)) == len(asked) == 4  # two each, before it is known how fast they give


def test_what_few_have_comes_first() -> None:
    """The peer that alone has a stage is asked for that, though it has others too."""
    orders = orders_of(sizes_of(4, 4))
    orders.meet("rare", [A, B])
    orders.meet("common", [B])
    assert {parcel[0] for parcel in ask_all(orders, "rare")} == {0}


def test_more_is_asked_ahead_of_who_gives_fast() -> None:
    """About a second's worth, within bounds."""
    orders = orders_of(sizes_of(200))
    orders.meet("one", [A])
    assert len(ask_all(orders, "one")) == 2
    orders.came("one", 0.1)  # ten parcels in a second
    assert len(ask_all(orders, "one", 0.1)) == 10 - 1
    for number in range(40):
        orders.came("one", 0.1 + 0.001 * number)
        ask_all(orders, "one", 0.1 + 0.001 * number)
    assert orders.next("one", 0.2) is None
    asked = 0
    while orders.first("one") is not None:
        orders.came("one", 0.2)
        asked += 1
    assert asked * MIB == AHEAD_MOST_BYTES


def test_who_is_far_slower_is_left() -> None:
    """Only by comparison with somebody here who has the same; alone, nobody is too slow."""
    orders = orders_of(sizes_of(50, 50))
    orders.meet("slow", [A])
    ask_all(orders, "slow")
    assert not orders.overdue(1000.0)
    orders.meet("fast", [B])
    ask_all(orders, "fast")
    orders.came("fast", 0.1)
    assert not orders.overdue(1000.0)  # it has other things
    orders.leave("fast")
    orders.meet("fast", [A, B])
    ask_all(orders, "fast", 1000.0)
    orders.came("fast", 1000.1)
    assert orders.overdue(1000.2) == ["slow"]


def test_patience() -> None:
    """A pause is no reason, however fast others are."""
    orders = orders_of(sizes_of(50))
    for peer in ("slow", "fast"):
        orders.meet(peer, [A])
        ask_all(orders, peer)
    orders.came("fast", 0.001)
    assert not orders.overdue(PATIENCE_S)
    assert orders.overdue(PATIENCE_S + 0.1) == ["slow"]


def test_the_last_parcels_are_taken_over() -> None:
    """Who has nothing left to do asks for what a slower one has yet to bring, once."""
    orders = orders_of(sizes_of(8))
    for peer in ("slow", "fast", "third"):
        orders.meet(peer, [A])
    waiting = ask_all(orders, "slow")
    now = 0.0
    ask_all(orders, "fast", now)
    while orders.first("fast") is not None and orders.missing_bytes > len(waiting) * MIB:
        now += 0.1
        orders.came("fast", now)
        ask_all(orders, "fast", now)
    taken = orders.first("fast")
    assert taken is not None
    assert taken[0] in waiting
    orders.came("fast", now + 0.1)
    assert orders.missing_bytes == MIB
    orders.came("slow", now + 0.2)
    assert orders.done
    orders.came("slow", now + 0.3)  # it brings the same: no harm
    assert orders.missing_bytes == 0


def test_a_parcel_of_two_stages_comes_once() -> None:
    """As the embedding of a tied head: from whoever has one of them."""
    shared = b"shared"
    sizes = {A: {shared: MIB, b"own": 5}, B: {shared: MIB}}
    orders = orders_of(sizes)
    assert orders.missing_bytes == MIB + 5
    orders.meet("head", [B])
    assert ask_all(orders, "head") == [shared]
    orders.came("head", 1.0)
    assert not orders.is_wanted([B])
    assert orders.lacking() == {A}
    orders.meet("embedding", [A])
    assert ask_all(orders, "embedding") == [b"own"]
