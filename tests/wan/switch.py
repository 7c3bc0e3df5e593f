"""A user-space Ethernet switch with the delay, rate, loss and cuts of a wide-area network.

`Fabric` decides what happens to a frame and knows no device. The program around it (run as root, on its own,
with nothing but the standard library) owns the namespaces and their TAP devices, and removes them when its
standard input closes, so they also go when whoever started it was killed.
"""

import ctypes
import fcntl
import heapq
import itertools
import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory

SUBNET = "10.77.0"
QUEUE_S = 0.5  # what a link holds back before it drops: the buffer of a home router, generously
BURST_FRAMES = 64  # read from one host before the others get their turn
MAC_BYTES = 6
ETHERNET_BYTES = 18  # header and a VLAN tag, beyond the MTU
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
PR_SET_TIMERSLACK = 29


@dataclass
class Conditions:
    """What the network is like; the same for every pair of hosts."""

    rtt_ms: float = 0.0  # there and back, beside what queues add
    mbit: float = 0.0  # each host's uplink and each host's downlink; 0: no limit
    loss: float = 0.0  # share of frames, 0 to 1

    def __post_init__(self) -> None:
        if self.rtt_ms < 0 or self.mbit < 0 or not 0 <= self.loss <= 1:
            raise ValueError(f"no network is like this: {self}")

    def sending_s(self, size_bytes: int) -> float:
        """How long a link is busy with a frame."""
        return size_bytes * 8e-6 / self.mbit if self.mbit else 0.0


@dataclass
class Link:
    """One direction of one host's access line. Times are seconds on the caller's clock."""

    free_at: float = 0.0

    def send(self, now: float, busy_s: float) -> float | None:
        """When a frame that arrives at `now` has left; None when the queue is full and it is dropped."""
        start = max(now, self.free_at)
        if start - now > QUEUE_S:
            return None
        self.free_at = start + busy_s
        return self.free_at


@dataclass
class Fabric:
    """The switch without its devices: frames are offered, and come due later or never. Ports count from 0."""

    ports: int
    conditions: Conditions
    rng: random.Random
    cut: set[frozenset[int]] = field(default_factory=set)  # pairs of ports that do not reach each other

    def __post_init__(self) -> None:
        self._uplinks = [Link() for _ in range(self.ports)]
        self._downlinks = [Link() for _ in range(self.ports)]
        self._port_of: dict[bytes, int] = {}
        self._waiting: list[tuple[float, int, int, int, bytes]] = []  # due, tie-break, source, target, frame
        self._order = itertools.count()

    @property
    def next_at(self) -> float | None:
        """When the next frame is due; None when none is under way."""
        return self._waiting[0][0] if self._waiting else None

    def offer(self, now: float, source: int, frame: bytes) -> None:
        """Take a frame from a host: to its destination's port, or to all where that is unknown."""
        destination, sender = frame[:MAC_BYTES], frame[MAC_BYTES : 2 * MAC_BYTES]
        self._port_of[sender] = source
        target = self._port_of.get(destination)
        busy_s = self.conditions.sending_s(len(frame))
        sent = self._uplinks[source].send(now, busy_s)
        if sent is None:
            return
        group = bool(destination[0] & 1)
        for port in range(self.ports) if group or target is None else [target]:
            if port == source or frozenset({source, port}) in self.cut:
                continue
            if self.rng.random() < self.conditions.loss:
                continue
            due = self._downlinks[port].send(sent + self.conditions.rtt_ms / 2000, busy_s)
            if due is not None:
                heapq.heappush(self._waiting, (due, next(self._order), source, port, frame))

    def due(self, now: float) -> Iterator[tuple[int, bytes]]:
        """(port, frame) of everything that arrives by `now`; a cut takes the frames under way as well."""
        while self._waiting and self._waiting[0][0] <= now:
            _, _, source, target, frame = heapq.heappop(self._waiting)
            if frozenset({source, target}) not in self.cut:
                yield target, frame

    def command(self, words: list[str]) -> None:
        """Carry out `cut|heal HOST [HOST]` (from 1; one alone: with all others) or `rtt|mbit|loss N`.

        Raises: ValueError for anything else; nothing has changed then.
        """
        match words:
            case ["cut", *hosts]:
                self.cut |= self._pairs(hosts)
            case ["heal", *hosts]:
                self.cut -= self._pairs(hosts)
            case ["rtt", value]:
                self.conditions = Conditions(float(value), self.conditions.mbit, self.conditions.loss)
            case ["mbit", value]:
                self.conditions = Conditions(self.conditions.rtt_ms, float(value), self.conditions.loss)
            case ["loss", value]:
                self.conditions = Conditions(self.conditions.rtt_ms, self.conditions.mbit, float(value))
            case _:
                raise ValueError(f"no such command: {' '.join(words)}")

    def _pairs(self, hosts: list[str]) -> set[frozenset[int]]:
        ports = [int(host) - 1 for host in hosts]
        if len(ports) not in {1, 2} or len(set(ports)) != len(ports):
            raise ValueError(f"one host or two different ones, not {hosts}")
        if any(not 0 <= port < self.ports for port in ports):
            raise ValueError(f"hosts are 1 to {self.ports}, not {hosts}")
        others = ports[1:] or [port for port in range(self.ports) if port != ports[0]]
        return {frozenset({ports[0], other}) for other in others}


@dataclass(frozen=True)
class Settings:
    """What the program is started with, as JSON in its first argument."""

    hosts: int
    mtu: int
    rtt_ms: float
    mbit: float
    loss: float


def ip(*words: str, batch: str | None = None) -> str:
    """Run iproute2 and return what it prints. Raises: OSError with its complaint."""
    done = subprocess.run(["ip", *words], input=batch, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def remove_namespace(name: str) -> None:
    """Kill what runs in a namespace and remove it; nothing happens when it is not there."""
    with suppress(OSError):
        for pid in ip("netns", "pids", name).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        ip("netns", "del", name)


def hardware_address(host: int) -> str:
    """Of a host's TAP device, known beforehand so that no lost ARP question delays a connection."""
    return f"02:77:00:00:{host >> 8:02x}:{host & 255:02x}"


def make_host(name: str, host: int, settings: Settings) -> int:
    """Give a new namespace its device and address; returns the switch's end, which owns the device."""
    tap = name.replace("-", "h")  # 14 characters at most, the kernel's limit is 15
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", tap.encode(), IFF_TAP | IFF_NO_PI))
        ip("link", "set", tap, "netns", name)
        neighbours = (
            f"neigh add {SUBNET}.{other} lladdr {hardware_address(other)} dev {tap} nud permanent\n"
            for other in range(1, settings.hosts + 1)
            if other != host
        )
        batch = (
            f"link set {tap} address {hardware_address(host)} mtu {settings.mtu} txqueuelen 5000\n"
            f"link set {tap} addrgenmode none\n"  # no IPv6, whose chatter would cross the network
            f"addr add {SUBNET}.{host}/24 dev {tap}\n"
            f"link set {tap} up\n"
            f"link set lo up\n"
            f"route add default dev {tap}\n"  # leads nowhere; programs look along it for their own address
        )
        ip("-n", name, "-batch", "-", batch=batch + "".join(neighbours))
    except BaseException:
        os.close(fd)
        raise
    return fd


def serve(fabric: Fabric, taps: list[int], control: socket.socket, frame_bytes: int) -> None:
    """Carry frames and obey commands until standard input closes."""
    port_of = {fd: port for port, fd in enumerate(taps)}
    owner, commands = sys.stdin.fileno(), control.fileno()
    while True:
        next_at = fabric.next_at
        timeout_s = None if next_at is None else max(0.0, next_at - time.monotonic())
        readable, _, _ = select.select([owner, commands, *taps], [], [], timeout_s)
        for fd in readable:
            if fd == owner:
                return
            if fd == commands:
                answer_command(fabric, control)
            else:
                take_frames(fabric, fd, port_of[fd], frame_bytes)
        for port, frame in fabric.due(time.monotonic()):
            with suppress(OSError):  # a host whose device is down or full loses the frame, as on a real line
                os.write(taps[port], frame)


def take_frames(fabric: Fabric, fd: int, port: int, frame_bytes: int) -> None:
    """Offer what a host has sent to the fabric."""
    for _ in range(BURST_FRAMES):
        try:
            frame = os.read(fd, frame_bytes)
        except OSError:  # nothing more for now, or its device is down
            return
        fabric.offer(time.monotonic(), port, frame)


def answer_command(fabric: Fabric, control: socket.socket) -> None:
    """One command, one answer: `ok` once it holds, or what is wrong with it."""
    caller, _ = control.accept()
    with caller, suppress(OSError):  # a caller that went away gets no answer
        caller.settimeout(1.0)
        try:
            fabric.command(caller.recv(256).decode().split())
        except ValueError as error:
            caller.send(f"error: {error}".encode())
        else:
            caller.send(b"ok")


def main() -> None:
    """Make the lab, say so in one JSON line on standard output, serve, and remove it whatever happens."""
    settings = Settings(**json.loads(sys.argv[1]))
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0)  # wake within a microsecond, not fifty
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    names = [f"lab{os.getpid()}-{host}" for host in range(1, settings.hosts + 1)]
    with ExitStack() as undo:
        try:
            conditions = Conditions(settings.rtt_ms, settings.mbit, settings.loss)
            control = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            folder = undo.enter_context(TemporaryDirectory(prefix="netlab-"))
            control_path = os.path.join(folder, "control")
            control.bind(control_path)
            control.listen()
            taps = []
            for host, name in enumerate(names, start=1):
                undo.callback(remove_namespace, name)
                ip("netns", "add", name)
                taps.append(make_host(name, host, settings))
        except (OSError, ValueError) as error:
            print(json.dumps({"error": str(error)}), flush=True)
            return
        print(json.dumps({"names": names, "control_path": control_path}), flush=True)
        fabric = Fabric(settings.hosts, conditions, random.Random())
        serve(fabric, taps, control, settings.mtu + ETHERNET_BYTES)


if __name__ == "__main__":
    main()
