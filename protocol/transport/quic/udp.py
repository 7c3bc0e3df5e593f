"""A UDP socket as QUIC needs it: large buffers, no fragmentation, and the system's error reports."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Any

from protocol.transport.limits import SOCKET_BUFFER

Addr = tuple[Any, ...]  # what recvfrom gives: (host, port), with two more numbers for IPv6

_LINUX = sys.platform == "linux"
# Linux's numbers (linux/in.h, in6.h, asm-generic/socket.h); Python's socket module does not name them.
_IP_MTU_DISCOVER, _IP_RECVERR = 10, 11
_IPV6_MTU_DISCOVER, _IPV6_RECVERR = 23, 25
_PMTUDISC_PROBE = 3  # never fragment, and take no hint from the system: we probe ourselves
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_MSG_ERRQUEUE = 0x2000
_EXTENDED_ERROR = struct.Struct("=IBBBBII")  # errno, origin, type, code, pad, info, data
_MAX_ERRORS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class SendError:
    """The system's report on a datagram sent earlier."""

    errno: int
    addr: Addr
    mtu: int  # with EMSGSIZE: what would have passed

    @property
    def refused(self) -> bool:
        """Whether nobody listens there."""
        return self.errno == errno.ECONNREFUSED


def open_udp(host: str, port: int) -> socket.socket:
    """A bound, non-blocking socket. Raises: OSError, if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        for plain, force in ((socket.SO_RCVBUF, _SO_RCVBUFFORCE), (socket.SO_SNDBUF, _SO_SNDBUFFORCE)):
            _enlarge(sock, plain, force)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if _LINUX and family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        elif _LINUX:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
            sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def read_errors(sock: socket.socket) -> list[SendError]:
    """What the system has to report since the last time."""
    errors: list[SendError] = []
    while _LINUX and len(errors) < _MAX_ERRORS_AT_ONCE:
        try:
            _, ancillary, _, addr = sock.recvmsg(0, 512, _MSG_ERRQUEUE)
        except OSError:
            break
        for level, kind, data in ancillary:
            if (level, kind) in ((socket.IPPROTO_IP, _IP_RECVERR), (socket.IPPROTO_IPV6, _IPV6_RECVERR)) and (
                len(data) >= _EXTENDED_ERROR.size
            ):
                number, *_, info, _ = _EXTENDED_ERROR.unpack_from(data)
                errors.append(SendError(number, addr, info))
    return errors


def _enlarge(sock: socket.socket, plain: int, force: int) -> None:
    """Ask for the full buffer; beyond the system's maximum only a privileged process gets it."""
    try:
        if _LINUX:
            sock.setsockopt(socket.SOL_SOCKET, force, SOCKET_BUFFER)
            return
    except PermissionError:
        pass
    sock.setsockopt(socket.SOL_SOCKET, plain, SOCKET_BUFFER)
