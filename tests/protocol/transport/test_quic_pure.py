"""The endpoint's decisions without a network: liveness, datagram sizes, first packets, addresses."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ConfigError
from protocol.transport.addresses import Address, parse_address, with_peer
from protocol.transport.limits import FIRST_PROBE_S, REFUSAL_PROBE_S, REFUSALS_TO_DIE
from protocol.transport.quic.first_packet import parse_initial, version_negotiation
from protocol.transport.quic.liveness import Liveness, Verdict
from protocol.transport.quic.mtu import BASE, CANDIDATES, RETRY_AFTER_S, TRIES, MtuSearch
from protocol.transport.quic.timers import Timers

PEER = "12D3KooWCM4azr1fPDcNYPmL9FnbXk4E8pjQvysGZHuM7FgEML4J"


# --- timers


def test_who_wishes_earlier_is_called_earlier() -> None:
    """Each is called when it first wished to be, and again where it had wished for later before that."""
    timers: Timers[str] = Timers()
    assert timers.next_at == math.inf
    assert timers.pop(1e9) is None
    timers.wish("a", 10.0)
    timers.wish("b", 5.0)
    timers.wish("a", 3.0)
    timers.wish("a", 7.0)  # it will be called at 3, and may say so then
    timers.wish("b", 5.0)
    assert timers.next_at == 3.0
    assert timers.pop(2.9) is None
    assert [timers.pop(10.0) for _ in range(4)] == ["a", "b", "a", None]
    timers.wish("b", 11.0)
    assert timers.next_at == 11.0


def test_wishes_that_come_and_go_are_few() -> None:
    """Who wishes for something near again and again, and for something far in between, has two wishes at a time."""
    timers: Timers[str] = Timers()
    for number in range(1000):
        now = number / 100
        timers.wish("a", now + 10)
        timers.wish("a", now + 0.01)
        assert timers.pop(now + 0.01) == "a"
    assert len(timers) <= 2


# --- liveness


def test_probes_of_a_waiting_connection_grow_rarer() -> None:
    """While the peer answers, each gap is at most as long as the silence before it, up to the keep-alive."""
    watch = Liveness(0.0, keepalive_s=10.0)
    times = []
    for _ in range(12):
        at = watch.next_probe_at(waiting=True)
        watch.probed(at)
        watch.heard(at + 0.001)
        times.append(at)
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert gaps[0] == FIRST_PROBE_S
    assert all(gap <= max(FIRST_PROBE_S, before) + 0.01 for gap, before in zip(gaps[1:], times, strict=False))
    assert gaps[-1] == pytest.approx(10.0, abs=0.01)


def test_an_idle_connection_only_keeps_itself_alive() -> None:
    """Without open streams there is one PING in each keep-alive interval."""
    assert Liveness(5.0, keepalive_s=10.0).next_probe_at(waiting=False) == 15.0


def test_data_puts_probes_off() -> None:
    """A message after a silence is no reason for a PING right behind it."""
    watch = Liveness(0.0, keepalive_s=10.0)
    watch.active(7.0)
    assert watch.next_probe_at(waiting=True) == 7.0 + FIRST_PROBE_S


def test_refusals_kill_only_when_they_repeat_slowly() -> None:
    """A burst counts once; a packet from the peer clears the count; far peers get time to answer."""
    watch = Liveness(0.0, keepalive_s=10.0)
    now = 1.0
    assert watch.refused(now, 0.2) is Verdict.ASK
    assert watch.refused(now + 0.001, 0.2) is Verdict.KNOWN
    assert watch.refused(now + 0.39, 0.2) is Verdict.KNOWN
    verdicts = [watch.refused(now + 0.5 * number, 0.2) for number in range(1, REFUSALS_TO_DIE)]
    assert verdicts[-1] is Verdict.DEAD
    watch = Liveness(0.0, keepalive_s=10.0)
    for number in range(20):
        assert watch.refused(number * REFUSAL_PROBE_S, 0.0) is not Verdict.DEAD
        watch.heard(number * REFUSAL_PROBE_S)


# --- datagram sizes


def search(passes: int, limit: int = CANDIDATES[-1]) -> MtuSearch:
    """A search over a path that carries up to `passes` bytes, run to its end."""
    found = MtuSearch(limit)
    for step in range(20):
        size = found.next_probe(float(step))
        if size is None:
            break
        assert found.next_probe(float(step)) is None, "one probe at a time"
        if size <= passes:
            found.acknowledged(size)
        else:
            found.lost(size, float(step))
    return found


@pytest.mark.parametrize(("passes", "expected"), [(1200, 1200), (1452, 1452), (8999, 8900), (65535, 16_000)])
def test_the_search_finds_the_largest_candidate_that_passes(passes: int, expected: int) -> None:
    """And never more."""
    assert search(passes).current == expected


def test_the_search_honours_a_limit_and_retries_later() -> None:
    """A peer that takes less is not probed beyond that; after a while the path may have grown."""
    assert search(65535, limit=1452).current == 1452
    found = search(1452)
    assert found.next_probe(RETRY_AFTER_S / 2) is None
    assert found.next_probe(RETRY_AFTER_S * 2) == 8900


def test_a_lost_probe_is_tried_again() -> None:
    """One lost packet does not end the search."""
    found = MtuSearch()
    for _ in range(TRIES - 1):
        size = found.next_probe(0.0)
        assert size == CANDIDATES[0]
        found.lost(size, 0.0)
    assert found.next_probe(0.0) == CANDIDATES[0]
    found.acknowledged(CANDIDATES[0])
    assert found.current == CANDIDATES[0]


def test_too_big_falls_back_to_what_always_passes() -> None:
    """A refused probe keeps what passed; a path that shrank goes to the base size."""
    found = search(8900)
    assert found.current == 8900
    found.refused(0.0)
    assert found.current == 8900
    found.too_big(0.0)
    assert found.current == BASE


# --- first packets


@given(st.binary(max_size=1500))
def test_any_bytes_are_a_first_packet_or_none(data: bytes) -> None:
    """Parsing never raises, and nothing of it is longer than what came."""
    initial = parse_initial(data)
    if initial is not None:
        assert len(initial.destination_cid) <= 20
        assert len(initial.token) <= len(data)
        initial.opens_connection(len(data))


@given(st.binary(min_size=8, max_size=20), st.binary(max_size=20), st.integers(0, 2**32 - 1))
def test_answers_are_no_longer_than_questions(destination: bytes, source: bytes, version: int) -> None:
    """No answer to a stranger amplifies, and a version negotiation is never answered with one."""
    header = b"\xc0" + version.to_bytes(4, "big")
    data = header + bytes((len(destination),)) + destination + bytes((len(source),)) + source
    data += bytes(1200 - len(data))
    initial = parse_initial(data)
    assert initial is not None
    assert (initial.destination_cid, initial.source_cid) == (destination, source)
    answer = version_negotiation(initial, len(data))
    assert (answer is None) == (version == 0)
    assert len(answer or b"") < len(data)
    assert version_negotiation(initial, 1199) is None
    if version == 1:
        assert initial.opens_connection(1200)
        assert not initial.opens_connection(1199)


# --- addresses


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/192.0.2.7/udp/4001/quic-v1",
        f"/ip4/192.0.2.7/udp/4001/quic-v1/p2p/{PEER}",
        "/ip6/2001:db8::1/udp/1/quic-v1",
        f"/dns4/example.org/udp/65535/quic-v1/p2p/{PEER}",
    ],
)
def test_addresses_round_trip(text: str) -> None:
    """What is parsed prints as it was."""
    address = parse_address(text)
    assert str(address) == text
    assert parse_address(str(with_peer(address, PEER))).peer == PEER


@given(st.text(max_size=100) | st.from_regex(r"(/[a-z0-9.:-]{0,12}){4,9}"))
def test_any_text_is_an_address_or_a_config_error(text: str) -> None:
    """Nothing else is ever raised."""
    with suppress(ConfigError):
        assert isinstance(parse_address(text), Address)
