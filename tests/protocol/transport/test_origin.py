"""Which addresses count as one origin."""

from __future__ import annotations

import pytest

from protocol.transport.origin import origin_of


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("192.0.2.7", "192.0.2.0/24"),
        ("192.0.3.7", "192.0.3.0/24"),
        ("2001:db8:1:2::3", "2001:db8:1::/48"),
        ("fe80::1%eth0", "fe80::/48"),
        ("::ffff:192.0.2.9", "192.0.2.0/24"),
    ],
)
def test_addresses_of_one_block_are_one_origin(host: str, origin: str) -> None:
    """A /24 of IPv4 and a /48 of IPv6; IPv4 in IPv6's clothes is IPv4."""
    assert origin_of(host) == origin


def test_a_name_has_no_origin() -> None:
    """Only addresses have one."""
    with pytest.raises(ValueError, match=r"example\.org"):
        origin_of("example.org")
