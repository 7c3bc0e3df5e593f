"""Multiaddrs: what is understood is written back as it was; everything else is one clear line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ConfigError
from protocol.transport.addresses import MAX_ADDR_CHARS, Address, parse_address, peer_at, with_peer
from tests.protocol.samples import IDENTITY

NAME = r"[A-Za-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?){0,3}"
hosts = st.one_of(
    st.tuples(st.just("ip4"), st.ip_addresses(v=4).map(str)),
    st.tuples(st.just("ip6"), st.ip_addresses(v=6).map(str)),
    st.tuples(st.sampled_from(["dns", "dns4", "dns6"]), st.from_regex(NAME, fullmatch=True)),
)


@given(hosts, st.integers(0, 65535), st.sampled_from([None, IDENTITY.peer]))
def test_round_trip(host: tuple[str, str], port: int, peer: str | None) -> None:
    """parse_address undoes str."""
    address = Address(host[1], port, peer, host[0])
    assert parse_address(str(address)) == address
    assert address.is_name == host[0].startswith("dns")
    assert parse_address(str(with_peer(address, IDENTITY.peer))).peer == IDENTITY.peer


WORDS = ["", "ip4", "ip6", "dns", "udp", "tcp", "quic-v1", "quic", "p2p"]
VALUES = ["127.0.0.1", "::1", "4001", "-1", "٣", "x" * 300, IDENTITY.peer]


@given(st.text(max_size=80) | st.lists(st.sampled_from(WORDS + VALUES), max_size=9).map("/".join))
def test_other_text_is_a_config_error(text: str) -> None:
    """Any text is an address that can be written back, or one line; strangers announce these."""
    said = ""
    try:
        address = parse_address(text)
        assert parse_address(str(address)) == address
    except ConfigError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 7 * MAX_ADDR_CHARS


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/192.0.2.7/udp/65536/quic-v1",
        "/ip4/192.0.2.7/udp/²/quic-v1",
        "/ip4/192.0.2.256/udp/1/quic-v1",
        "/ip4/::1/udp/1/quic-v1",
        "/ip6/192.0.2.7/udp/1/quic-v1",
        "/unix/x/udp/1/quic-v1",
        "/dns//udp/1/quic-v1",
        "/dns/é.example/udp/1/quic-v1",
        "/dns/$(touch x);id #/udp/1/quic-v1",
        "/dns/a b/udp/1/quic-v1",
        "/dns/a\n/udp/1/quic-v1",
        "/dns/-a.example/udp/1/quic-v1",
        "/dns/a..example/udp/1/quic-v1",
        "/dns/" + "x" * 64 + "/udp/1/quic-v1",
        "/ip6/fe80::1%$(touch x)/udp/1/quic-v1",
        "/ip6/fe80::1%a\n/udp/1/quic-v1",
        "/dns/" + "x" * 254 + "/udp/1/quic-v1",
        "/ip4/192.0.2.7/tcp/1/quic-v1",
        "/ip4/192.0.2.7/udp/1/quic",
        "/ip4/192.0.2.7/udp/1/quic-v1/p2p/me",
        "/ip4/192.0.2.7/udp/1/quic-v1/p2p/QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnR8sD",
        f"/ip4/192.0.2.7/udp/1/quic-v1/p2p/{IDENTITY.peer[:-1]}",
        "/ip4/192.0.2.7/udp/1/quic-v1/p2p",
        "/ip4/192.0.2.7/udp/1/quic-v1/",
        "ip4/192.0.2.7/udp/1/quic-v1",
        "/" * (MAX_ADDR_CHARS + 1),
    ],
)
def test_malformed(text: str) -> None:
    """Each part is checked."""
    with pytest.raises(ConfigError, match="malformed address"):
        parse_address(text)


def test_whose_an_address_is() -> None:
    """An address says so at its end, or it is refused."""
    place = "/ip4/192.0.2.7/udp/1/quic-v1"
    assert peer_at(f"{place}/p2p/{IDENTITY.peer}") == IDENTITY.peer
    with pytest.raises(ConfigError, match=r"malformed address .* must end in /p2p/"):
        peer_at(place)
