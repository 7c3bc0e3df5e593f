"""Multiaddr text to the few parts this project uses, and back: pure, no sockets."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from protocol.errors import ConfigError, Malformed
from protocol.transport.peer_id import public_key

MAX_ADDR_CHARS = 512  # /dns (253) + /p2p (59) + the rest, rounded up
# RFC 1123, section 2.1: labels of letters, digits and hyphens that neither begin nor end with a hyphen.
_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
# An interface's name (RFC 4007 leaves the form to the system; Linux has at most 15 characters).
_ZONE: Final = re.compile(r"[A-Za-z0-9_.-]{1,15}")


@dataclass(frozen=True, slots=True)
class Address:
    """A UDP port that speaks QUIC v1, and whose it is if the address said so."""

    host: str  # an IP address, or a name where `kind` is dns, dns4 or dns6
    port: int
    peer: str | None = None
    kind: str = "ip4"

    @classmethod
    def of(cls, host: str, port: int, peer: str | None = None) -> Address:
        """That of an IP address."""
        return cls(host, port, peer, "ip6" if ":" in host else "ip4")

    @property
    def is_name(self) -> bool:
        """Whether `host` has to be resolved first."""
        return self.kind.startswith("dns")

    def __str__(self) -> str:
        place = f"/{self.kind}/{self.host}/udp/{self.port}/quic-v1"
        return f"{place}/p2p/{self.peer}" if self.peer else place


def parse_address(text: str) -> Address:
    """The parts of "/ip4/192.0.2.7/udp/4001/quic-v1[/p2p/<id>]" (also ip6, dns, dns4, dns6).

    `str` of the result is safe to show, to keep and to paste; the text itself may be a stranger's.
    Raises: ConfigError with one clear line, if `text` is anything else.
    """

    def malformed(why: str) -> ConfigError:
        return ConfigError(
            f"malformed address {text[:MAX_ADDR_CHARS]!r}: {why} (expected /ip4/<address>/udp/<port>/quic-v1)"
        )

    if len(text) > MAX_ADDR_CHARS:
        raise malformed("too long")
    parts = text.split("/")
    if len(parts) not in (6, 8) or parts[0] != "":
        raise malformed("wrong number of parts")
    kind, host, udp, port_text, quic = parts[1:6]
    if udp != "udp" or quic != "quic-v1":
        raise malformed("only udp with quic-v1 is spoken")
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5 and int(port_text) <= 65535):
        raise malformed(f"{port_text!r} is no port")
    peer = None
    if len(parts) == 8:
        peer = parts[7]
        if parts[6] != "p2p" or not _is_peer_id(peer):
            raise malformed("the end is no /p2p/<peer id>")
    try:
        if kind == "ip4":
            host = str(ipaddress.IPv4Address(host))
        elif kind == "ip6":
            found = ipaddress.IPv6Address(host)
            if found.scope_id is not None and not _ZONE.fullmatch(found.scope_id):
                raise malformed(f"{found.scope_id!r} is no interface")
            host = str(found)
        elif kind not in ("dns", "dns4", "dns6"):
            raise malformed(f"{kind!r} is no kind of host")
        elif len(host) > 253 or not _NAME.fullmatch(host):
            raise malformed(f"{host!r} is no host name")
    except ValueError:
        raise malformed(f"{host!r} is no {kind} address") from None
    return Address(host, int(port_text), peer, kind)


def peer_at(text: str) -> str:
    """Whose the address is. Raises: ConfigError, also where it does not say so."""
    peer = parse_address(text).peer
    if peer is None:
        raise ConfigError(f"malformed address {text!r}: it must end in /p2p/<peer id>")
    return peer


def _is_peer_id(text: str) -> bool:
    try:
        public_key(text)
    except Malformed:
        return False
    return True


def sound_addresses(texts: Iterable[str]) -> tuple[str, ...]:
    """Those that are addresses, in our own words; what is anything else is left out."""
    sound = []
    for text in texts:
        with contextlib.suppress(ConfigError):
            sound.append(str(parse_address(text)))
    return tuple(sound)


def with_peer(address: Address, peer: str) -> Address:
    """`address`, ending in /p2p/`peer`."""
    return Address(address.host, address.port, peer, address.kind)
