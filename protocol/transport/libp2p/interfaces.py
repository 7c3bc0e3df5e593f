"""Which addresses others can dial, for a socket bound to all of them."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from pathlib import Path

_SIOCGIFADDR = 0x8915  # linux/sockios.h
_IF_INET6 = Path("/proc/net/if_inet6")


def dialable(host: str) -> list[str]:
    """`host`, or where it stands for all addresses those of this machine, loopback last."""
    if host == "0.0.0.0":
        return [*_ipv4(), "127.0.0.1"]
    if host == "::":
        return [*_ipv6(), "::1"]
    return [host]


def _ipv4() -> list[str]:
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # an interface without an address
            found.append(socket.inet_ntoa(answer[20:24]))
    found += _towards("192.0.2.1")
    return [host for host in dict.fromkeys(found) if not ipaddress.ip_address(host).is_loopback]


def _towards(destination: str) -> list[str]:
    """The address this machine would send from; nothing is sent. For systems that number their ioctls otherwise."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((destination, 9))
        except OSError:
            return []
        return [str(probe.getsockname()[0])]


def _ipv6() -> list[str]:
    try:
        lines = _IF_INET6.read_text().splitlines()
    except OSError:
        return []
    hosts = [ipaddress.IPv6Address(bytes.fromhex(line.split()[0])) for line in lines]
    return [str(host) for host in hosts if not (host.is_loopback or host.is_link_local)]
