"""What a network in memory is made of: who is there, what lies between them, and what goes wrong."""

from __future__ import annotations

import random
from collections.abc import Callable

import trio

from protocol.errors import ConfigError, LocalProtocolError
from protocol.transport.addresses import parse_address
from protocol.transport.base import PeerAddrs
from protocol.transport.limits import IDLE_TIMEOUT_S
from protocol.transport.memory.pipe import Line
from protocol.transport.memory.stream import AT_ONCE, Connection, End


class Links:
    """Peers joined by links that have a latency and lose packets.

    `latency_s` is one way, and may be a function of two peer ids; `loss` is the share of packets lost, each
    costing its stream a retransmission's delay. Every random draw comes from `rng`, per pair of peers, so a
    run repeats as far as the order in which trio runs tasks repeats.
    """

    def __init__(
        self,
        *,
        rng: random.Random | None = None,
        latency_s: float | Callable[[str, str], float] = 0.0,
        loss: float = 0.0,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
    ) -> None:
        self._seed = (rng or random.Random(0)).getrandbits(64)
        self._latency = latency_s if callable(latency_s) else None
        self.latency_s = 0.0 if callable(latency_s) else latency_s
        self._loss = loss
        self._idle_timeout_s = idle_timeout_s
        self._places: dict[str, str] = {}  # peer -> its address, kept over restarts
        self._ends: dict[str, End] = {}
        self._lines: dict[frozenset[str], Line] = {}
        self._connections: dict[frozenset[str], Connection] = {}
        self._cut: set[frozenset[str]] = set()
        self._paused: set[str] = set()
        self._silent: set[str] = set()
        self._dials = 0
        # the DHT's table; a MemoryDht reads and writes it
        self.provided: dict[str, dict[str, PeerAddrs]] = {}
        self.stored: dict[str, bytes] = {}

    # --- what goes wrong

    def cut(self, a: str, b: str) -> None:
        """Let nothing pass between `a` and `b`; their streams become Lost after the idle time-out."""
        self._cut.add(frozenset((a, b)))
        self._update_lines()

    def heal(self, a: str, b: str) -> None:
        """Undo `cut`."""
        self._cut.discard(frozenset((a, b)))
        self._update_lines()

    def pause(self, peer: str) -> None:
        """Let nothing pass to or from `peer`, as when its process is stopped."""
        self._paused.add(peer)
        self._update_lines()

    def resume(self, peer: str) -> None:
        """Undo `pause`."""
        self._paused.discard(peer)
        self._update_lines()

    def kill(self, peer: str, *, silently: bool = False) -> None:
        """End `peer` without a goodbye: its streams become Lost, its handlers are cancelled.

        As with a killed process, whose system says at once that nobody listens; `silently`, as when the
        power goes, others notice only after the idle time-out. Its own calls raise Lost from now on.
        """
        end = self._ends.get(peer)
        if end is None:
            return
        if silently:
            self._silent.add(peer)
            del self._ends[peer]
            end.stop()
            for connection in self._connections_of(peer):
                connection.lose(peer, "this peer was killed")
            self._update_lines()
        else:
            self._remove(end, "the peer is dead", "this peer was killed")

    # --- what the transports ask

    def settle(self, peer: str, host: str | None) -> str:
        """The address of `peer`, at `host` or in a block of its own; it keeps the first that it was given.

        Raises: LocalProtocolError, if it is here already.
        """
        if peer in self._ends:
            raise LocalProtocolError(f"peer {peer} is in this network already")
        number = len(self._places) + 1
        host = host or f"10.{number >> 8 & 255}.{number & 255}.1"
        return self._places.setdefault(peer, f"/ip4/{host}/udp/4001/quic-v1/p2p/{peer}")

    def enter(self, end: End) -> None:
        """It is here from now on."""
        self._ends[end.peer] = end
        self._silent.discard(end.peer)
        self._update_lines()

    def leave(self, end: End) -> None:
        """It goes, unless it was killed before."""
        if self._ends.get(end.peer) is end:
            self._remove(end, "the peer has left", "this transport has ended")

    def line(self, a: str, b: str) -> Line:
        """What lies between `a` and `b`."""
        pair = frozenset((a, b))
        if pair not in self._lines:
            latency_s = self._latency(*sorted(pair)) if self._latency else self.latency_s
            self._lines[pair] = Line(latency_s, self._loss)
            self._update_line(pair)
        return self._lines[pair]

    def connection(self, a: str, b: str) -> Connection | None:
        """Their connection, if they have one."""
        return self._connections.get(frozenset((a, b)))

    def connect(self, dialler: End, peer: str) -> Connection:
        """Join `dialler` and the living `peer`."""
        pair = frozenset((dialler.peer, peer))
        known = self._connections.get(pair)
        if known is not None:
            return known
        self._dials += 1
        rng = random.Random(f"{self._seed}/{dialler.peer}/{peer}/{self._dials}")
        connection = Connection(self.line(dialler.peer, peer), dialler, self._ends[peer], rng)
        self._connections[pair] = connection
        dialler.meet(peer)
        self._ends[peer].meet(dialler.peer)
        return connection

    def drop(self, connection: Connection, why: str, at: float = AT_ONCE) -> None:
        """Both ends give `connection` up when the clock says `at`."""
        pair = frozenset(end.peer for end in connection.ends)
        if self._connections.get(pair) is connection:
            del self._connections[pair]
        for end in connection.ends:
            connection.lose(end.peer, why, at)

    def living(self, peer: str) -> End | None:
        """The end of `peer`, if it is there."""
        return self._ends.get(peer)

    def place(self, peer: str) -> str:
        """The address of a peer that is or was here."""
        return self._places[peer]

    def listens(self, peer: str, addr: str) -> bool:
        """Whether `peer` is the one that listens (or stands silent) at `addr`."""
        try:
            place = str(parse_address(addr)).partition("/p2p/")[0]
        except ConfigError:
            return False
        end = self._ends.get(peer)
        if end is not None and not end.addrs:
            return False
        return self._places.get(peer, "").partition("/p2p/")[0] == place

    def is_paused(self, peer: str) -> bool:
        """Whether `peer` is paused."""
        return peer in self._paused

    def is_silent(self, peer: str) -> bool:
        """Whether `peer` died without anybody hearing of it."""
        return peer in self._silent

    # --- inside

    def _connections_of(self, peer: str) -> list[Connection]:
        return [connection for pair, connection in self._connections.items() if peer in pair]

    def _remove(self, end: End, others_hear: str, it_hears: str) -> None:
        del self._ends[end.peer]
        end.stop()
        for connection in self._connections_of(end.peer):
            connection.lose(end.peer, it_hears)
            self.drop(connection, others_hear, trio.current_time() + connection.line.latency_s)

    def _update_lines(self) -> None:
        for pair in self._lines:
            self._update_line(pair)

    def _update_line(self, pair: frozenset[str]) -> None:
        line = self._lines[pair]
        blocked = pair in self._cut or bool(pair & self._paused) or bool(pair & self._silent)
        if blocked == (line.blocked_since is not None):
            return
        if blocked:
            line.block(trio.current_time())
        else:
            line.heal()
        connection = self._connections.get(pair)
        if connection is not None:
            connection.notify()
            for end in connection.ends:
                if blocked and end.alive:
                    end.watch(connection, self._idle_timeout_s)
