"""What `lean` leaves out: whatever two peers do, over whatever network, aioquic finds no more to be done."""

from __future__ import annotations

import pytest
import trio
from aioquic.quic import events
from aioquic.quic.connection import QuicConnection
from aioquic.tls import Epoch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.transport.quic.core import QuicCore
from protocol.transport.quic.endpoint import open_endpoint
from protocol.transport.quic.lean import ACK_DELAY_S, Datagrams

ADDRS = (("192.0.2.1", 1), ("192.0.2.2", 2))
LEAST_S = 1e-6


class Pair:
    """Two ends of a connection, the network between them and one clock."""

    def __init__(self, cores: list[QuicCore], now: float) -> None:
        self.cores = cores
        self.now = now
        self.flying: list[tuple[int, bytes]] = []  # and to whom
        self.short = [True, True]  # whether an end takes the short way, or aioquic's own
        self.sent = [bytearray(), bytearray()]
        self.heard = [bytearray(), bytearray()]

    def send(self, end: int) -> Datagrams:
        """Everything that an end has to send is on its way; compared with what aioquic would do."""
        core = self.cores[end]
        lean = core._handshake_confirmed and not core._may_send(self.now)
        if lean:
            assert QuicConnection.datagrams_to_send(core, self.now) == []
        way = QuicCore if self.short[end] else QuicConnection
        found = way.datagrams_to_send(core, self.now)
        self.flying += [(1 - end, data) for data, _ in found]
        ours, theirs = core.get_timer(), QuicConnection.get_timer(core)
        assert ours == theirs
        return found

    def arrive(self, index: int) -> None:
        """A datagram comes to where it goes."""
        end, data = self.flying.pop(index)
        core = self.cores[end]
        way = QuicCore if self.short[end] else QuicConnection
        way.receive_datagram(core, data, ADDRS[1 - end], self.now)
        core.acknowledge_soon(1, len(data), self.now)
        while (event := core.next_event()) is not None:
            if isinstance(event, events.StreamDataReceived):
                core.consume(len(event.data))
                if event.stream_id == 0:
                    self.heard[end] += event.data
                    core.grant(0, len(self.heard[end]))

    def pass_all(self) -> None:
        """Until nobody has anything to say and no timer is near."""
        for _ in range(10_000):
            for end in (0, 1):
                self.send(end)
            if self.flying:
                self.arrive(0)
                continue
            due = min(core.get_timer() or 1e9 for core in self.cores)
            if due > self.now + 5:
                return
            self.wait(max(LEAST_S, due - self.now))
        raise AssertionError("they never come to rest")

    def wait(self, seconds: float) -> None:
        """Time passes; what is due is done."""
        self.now += seconds
        for core in self.cores:
            due = core.get_timer()
            if due is not None and due <= self.now:
                core.handle_timer(self.now)


async def _shaken() -> Pair:
    """Two ends that know each other."""
    async with (
        open_endpoint(Ed25519PrivateKey.generate()) as dialler,
        open_endpoint(Ed25519PrivateKey.generate()) as listener,
    ):
        first = QuicCore(dialler._configuration(is_client=True))
        now = trio.current_time()
        first.connect(ADDRS[1], now)
        second = QuicCore(listener._configuration(is_client=False), first.original_destination_connection_id)
        pair = Pair([first, second], now)
        pair.pass_all()
        assert first.handshake_confirmed
        assert second.handshake_confirmed
        return pair


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 1), st.integers(1, 40_000)),
        st.tuples(st.just("arrive"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("lose"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("wait"), st.sampled_from([1, 5, 21, 60]), st.just(0)),
        st.tuples(st.just("way"), st.integers(0, 1), st.integers(0, 1)),
        st.tuples(st.just("rekey"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("ping"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("widen"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("other"), st.integers(0, 1), st.integers(0, 2)),
    ),
    max_size=60,
)


def _act(pair: Pair, act: tuple[str, int, int]) -> None:
    what, which, much = act
    if what == "write":
        data = bytes([len(pair.sent[which]) % 251]) * much
        pair.sent[which] += data
        pair.cores[which].send_stream_data(0, data)
        pair.cores[which].acknowledge_with_data(pair.now)
    elif what == "arrive" and pair.flying:
        pair.arrive(which % len(pair.flying))
    elif what == "lose" and pair.flying:
        del pair.flying[which % len(pair.flying)]
    elif what == "wait":
        pair.wait(which / 1000)
    elif what == "way":
        pair.short[which] = bool(much)
    elif what == "rekey":
        pair.cores[which].request_key_update()
    elif what == "ping":
        pair.cores[which].send_ping(0)
    elif what == "widen":
        pair.cores[which].widen_window()
        pair.cores[which].widen_streams()
    elif what == "other":
        _other_stream(pair.cores[which], much)


def _other_stream(core: QuicCore, how: int) -> None:
    """A stream that ends as soon as it begins: well, by reset, or with a word that nothing is to come."""
    number = core.get_next_available_stream_id()
    core.send_stream_data(number, b"x", end_stream=how == 0)
    if how == 1:
        core.reset_stream(number, 1)
    elif how == 2:
        core.stop_stream(number, 1)


@settings(deadline=None, max_examples=60)
@given(ACTS)
def test_nothing_is_left_unsaid(acts: list[tuple[str, int, int]]) -> None:
    """Where it says that nothing may be sent, aioquic sends nothing; its timers are aioquic's; all data arrives,
    whichever way packets go."""
    pair = trio.run(_shaken)
    _act(pair, ("write", 0, 1))
    pair.pass_all()
    for act in acts:
        _act(pair, act)
        for end in (0, 1):
            pair.send(end)
    pair.pass_all()
    assert pair.heard[1] == pair.sent[0]
    assert pair.heard[0] == pair.sent[1]


def _one_way(pair: Pair, size: int) -> bool:
    """Whether `size` bytes are acknowledged as soon as they have come."""
    pair.wait(0.001)  # else the pacer holds it back
    pair.cores[0].send_stream_data(0, bytes(size))
    assert pair.send(0)
    while pair.flying:
        pair.arrive(0)
    return bool(pair.send(1))


def test_small_packets_are_acknowledged_together() -> None:
    """Each eighth at once, and what is left when the time is up; large ones at once."""
    pair = trio.run(_shaken)
    assert [_one_way(pair, 100) for _ in range(16)] == ([False] * 7 + [True]) * 2
    assert not _one_way(pair, 100)
    pair.wait(ACK_DELAY_S + LEAST_S)
    assert pair.send(1)
    assert _one_way(pair, 10 * pair.cores[0]._max_datagram_size)


def _sealed(sender: QuicCore, payload: bytes, first: int = 0x43) -> bytes:
    """A packet of `sender` that it has not written itself."""
    crypto, number = sender._cryptos[Epoch.ONE_RTT], sender._packet_number
    sender._packet_number += 1
    header = bytes((first | crypto.key_phase << 2,)) + sender._peer_cid.cid + number.to_bytes(4, "big")
    return crypto.encrypt_packet(header, payload, number)


def _takes(pair: Pair, data: bytes, addr: tuple[str, int] = ADDRS[0]) -> list[object]:
    """What the second end makes of a datagram."""
    pair.cores[1].receive_datagram(data, addr, pair.now)
    found: list[object] = []
    while (event := pair.cores[1].next_event()) is not None:
        found.append(event)
    return found


STREAM = bytes((0x0A, 0, 1)) + b"x"  # one byte at the start of stream 0


def test_a_packet_is_taken_once_and_whole() -> None:
    """Twice it counts once; what is changed, cut short or sealed by others is nothing."""
    pair = trio.run(_shaken)
    data = _sealed(pair.cores[0], STREAM)
    assert _takes(pair, data[:12]) == []
    assert _takes(pair, data[:-1] + bytes((data[-1] ^ 1,))) == []
    assert [type(event) for event in _takes(pair, data)] == [events.StreamDataReceived]
    assert _takes(pair, data) == []
    assert pair.cores[1].ended is None


@pytest.mark.parametrize(
    ("payload", "first", "why"),
    [
        (STREAM, 0x5B, "Reserved bits must be zero"),
        (b"", 0x43, "Packet contains no frames"),
        (b"\x3f", 0x43, "Unknown frame type"),
        (bytes((0x0A, 0, 9)) + b"x", 0x43, "Failed to parse frame"),
        (bytes((0x0A, 1, 1)) + b"x", 0x43, "Wrong stream initiator"),
    ],
)
def test_what_no_peer_may_say_ends_the_connection(payload: bytes, first: int, why: str) -> None:
    """As aioquic has it."""
    pair = trio.run(_shaken)
    _takes(pair, _sealed(pair.cores[0], payload, first))
    assert pair.cores[1].ended == why


def test_another_address_is_another_path() -> None:
    """Which has to be validated before anything else is sent there."""
    pair = trio.run(_shaken)
    other = ("192.0.2.9", 9)
    assert len(_takes(pair, _sealed(pair.cores[0], STREAM), other)) == 1
    assert [path.addr for path in pair.cores[1]._network_paths] == [other, ADDRS[0]]
    assert not pair.cores[1]._network_paths[0].is_validated
