"""The budget of dials: what strangers may make us send."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.transport.dialling import (
    ALL_DATAGRAMS,
    BLOCK_DATAGRAMS,
    DIALS_PER_HOST,
    HOST_DATAGRAMS,
    PLACE_DATAGRAMS,
    PLACE_REFILL_S,
    REFILL_S,
    REFUSED_DATAGRAMS,
    SILENT_DATAGRAMS,
    Budget,
    Verdict,
    dialable_places,
    is_dialable,
)


def dial(budget: Budget, host: str, port: int, unanswered: int, now: float) -> bool:
    """One dial from beginning to end; whether it was allowed."""
    allowed = budget.begin(host, port, now) is Verdict.GO
    if allowed:
        budget.end(host, port, unanswered, now)
    return allowed


def test_success_costs_nothing() -> None:
    """A thousand nodes on one machine are all dialled at once."""
    budget = Budget()
    assert all(dial(budget, "127.0.0.1", port, 0, 0.0) for port in range(1, 1001))


def test_dead_nodes_on_a_machine_leave_room_for_those_that_live() -> None:
    """Each of those that refuse costs one datagram: two dozen of them keep nobody away."""
    budget = Budget()
    assert all(dial(budget, "127.0.0.1", port, REFUSED_DATAGRAMS, 0.0) for port in range(1, 25))
    assert dial(budget, "127.0.0.1", 1000, 0, 0.0)


@pytest.mark.parametrize(
    ("hosts", "ports", "most"),
    [
        (["192.0.2.1"], [9], PLACE_DATAGRAMS),
        (["192.0.2.1"], range(1, 500), HOST_DATAGRAMS),
        ([f"192.0.2.{n}" for n in range(256)], range(1, 9), BLOCK_DATAGRAMS),
        ([f"2001:db8:7::{n:x}" for n in range(1, 256)], range(1, 9), BLOCK_DATAGRAMS),
        ([f"{n}.example" for n in range(500)], [9], BLOCK_DATAGRAMS),
        ([f"10.{n}.{m}.1" for n in range(64) for m in range(8)], [9], ALL_DATAGRAMS),
    ],
)
def test_silence_is_dialled_so_often(hosts: list[str], ports: list[int], most: int) -> None:
    """A place, a machine, a block and all of them; a minute later no more than the same again."""
    budget = Budget()
    for now in (0.0, REFILL_S):
        sent = SILENT_DATAGRAMS * sum(
            dial(budget, host, port, SILENT_DATAGRAMS, now)
            for host in hosts
            for port in ports
            for _ in range(3)
        )
        assert sent == most or (now and sent <= most)
    assert dial(budget, hosts[0], ports[0], SILENT_DATAGRAMS, REFILL_S + PLACE_REFILL_S)


def test_a_few_at_once_and_the_others_later() -> None:
    """Dials in flight are paid for already; what they will give back is waited for, what is gone is not."""
    budget = Budget()
    for port in range(1, DIALS_PER_HOST + 1):
        assert budget.begin("192.0.2.1", port, 0.0) is Verdict.GO
    assert budget.begin("192.0.2.1", 99, 0.0) is Verdict.LATER
    budget.end("192.0.2.1", 1, 0, 0.0)
    assert budget.begin("192.0.2.1", 99, 0.0) is Verdict.GO
    for _ in range(2):
        assert dial(budget, "192.0.2.9", 9, SILENT_DATAGRAMS, 0.0)
    assert budget.begin("192.0.2.9", 9, 0.0) is Verdict.NEVER


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["192.0.2.1", "192.0.2.2", "198.51.100.1", "a.example"]),
            st.integers(1, 3),
            st.integers(0, SILENT_DATAGRAMS),
            st.floats(0, 20),
        ),
        max_size=200,
    )
)
def test_nobody_gets_more_than_its_share(dials: list[tuple[str, int, int, float]]) -> None:
    """Whatever is dialled in whatever order: in any time no more than the burst and what is refilled in it."""
    budget, now = Budget(), 0.0
    sent: dict[str, int] = {}
    for host, port, unanswered, pause_s in dials:
        now += pause_s
        if dial(budget, host, port, unanswered, now):
            for key in (host, f"{host} {port}", ""):
                sent[key] = sent.get(key, 0) + unanswered
            assert sent[host] <= HOST_DATAGRAMS * (1 + now / REFILL_S)
            assert sent[f"{host} {port}"] <= PLACE_DATAGRAMS * (1 + now / PLACE_REFILL_S)
            assert sent[""] <= ALL_DATAGRAMS * (1 + now / REFILL_S)


def test_where_a_peer_was_met_its_dials_are_free() -> None:
    """Those of this peer, at this place."""
    budget = Budget()
    budget.meet("a", "192.0.2.1", 4001)
    assert budget.met("a", "192.0.2.1", 4001)
    assert not budget.met("b", "192.0.2.1", 4001)
    assert not budget.met("a", "192.0.2.1", 4002)


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "255.255.255.255", "240.1.2.3", "224.0.0.251", "239.255.255.250", "::", "ff02::1", "ff0e::fb",
     "::ffff:224.0.0.251", "::ffff:255.255.255.255"],
)  # fmt: skip
def test_where_many_hear_or_nobody_is_never_dialled(host: str) -> None:
    """Nor is port 0."""
    assert not is_dialable(host, 4001)
    kind = "ip6" if ":" in host else "ip4"
    assert (
        dialable_places([f"/{kind}/{host}/udp/4001/quic-v1", "/ip4/192.0.2.1/udp/0/quic-v1", "rubbish"]) == []
    )
    assert is_dialable("192.0.2.1", 4001)
