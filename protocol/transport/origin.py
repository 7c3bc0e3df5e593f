"""Where a peer comes from: the block of addresses that its owner is likely to hold whole.

Identities are free, addresses less so: whoever has one has the rest of its block for nothing, and a second block
costs money. So what is shared out among strangers is shared out among origins first.
"""

from __future__ import annotations

import ipaddress
from typing import Final

# What one customer is given: a /24 is the least that is routed on its own, a /48 the usual site of IPv6.
_PREFIX_BITS: Final = {4: 24, 6: 48}

# Streams of a peer to itself.
HERE: Final = "here"


def origin_of(host: str) -> str:
    """The block of an IP address, as "192.0.2.0/24" or "2001:db8:1::/48".

    An IPv4 address within IPv6 ("::ffff:192.0.2.7") counts as what it is. Raises: ValueError, if it is no address.
    """
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(ipaddress.ip_network((address, _PREFIX_BITS[address.version]), strict=False))
