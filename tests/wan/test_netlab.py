"""The emulated network, measured with UDP from inside it. Bounds are wide: the machine may be busy."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import Processes
from tests.support.waiting import block_until
from tests.wan.netlab import Netlab

pytestmark = pytest.mark.wan

ROOT = Path(__file__).resolve().parents[2]

ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("0.0.0.0", 7))
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
print("ready")
while True:
    data, peer = s.recvfrom(2048)
    s.sendto(data, peer)
"""

# Sends one datagram a millisecond and prints the round trips in ms of those that came back within the wait.
PING = """
import json, socket, sys, time
address, count, wait_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((address, 7)); s.setblocking(False)
sent, trips, end = {}, [], None
while end is None or time.monotonic() < end:
    if len(sent) < count:
        sent[len(sent)] = time.monotonic()
        s.send(str(len(sent) - 1).encode())
        if len(sent) == count: end = time.monotonic() + wait_s
    try:
        while True: trips.append((time.monotonic() - sent[int(s.recv(64))]) * 1000)
    except (BlockingIOError, ConnectionRefusedError): pass
    if len(trips) == count: break
    time.sleep(0.001)
print(json.dumps(sorted(trips)))
"""


def serve_echo(lab: Netlab, host: int) -> None:
    """An echo server on a host, listening when this returns."""
    lab.popen(host, [sys.executable, "-c", ECHO]).wait_for_line("ready", 30)


def ping(lab: Netlab, source: int, target: int, count: int = 20, wait_s: float = 2.0) -> list[float]:
    """Round trips in ms, sorted, of the datagrams that came back."""
    argv = [sys.executable, "-c", PING, lab.address(target), str(count), str(wait_s)]
    line = lab.popen(source, argv).wait_for_line(r"^\[.*\]$", 60)
    return [float(ms) for ms in json.loads(line[0])]


def namespaces() -> set[str]:
    """Those on this machine, by name."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return {line.split()[0] for line in listed.stdout.splitlines() if line.strip()}


def test_round_trips_take_what_is_asked() -> None:
    """No round trip is shorter than asked, the best is little longer, and set_rtt changes it."""
    with Netlab(hosts=2, rtt_ms=80) as lab:
        serve_echo(lab, 2)
        trips = ping(lab, 1, 2)
        assert len(trips) == 20
        assert 79.5 <= trips[0] < 80 + 40
        lab.set_rtt(10)
        trips = ping(lab, 1, 2)
        assert 9.5 <= trips[0] < 10 + 40


def test_a_cut_drops_and_a_heal_restores() -> None:
    """A cut host answers nobody; the others still reach each other; healed, it answers again."""
    with Netlab(hosts=3, rtt_ms=2) as lab:
        serve_echo(lab, 2)
        serve_echo(lab, 3)
        assert ping(lab, 1, 2)
        lab.cut(2)
        assert ping(lab, 1, 2, wait_s=0.5) == []
        assert ping(lab, 1, 3)
        lab.heal(2)
        assert ping(lab, 1, 2)


def test_a_cut_pair_leaves_a_bridge() -> None:
    """Hosts 1 and 2 cannot reach each other while both reach host 3."""
    with Netlab(hosts=3) as lab:
        serve_echo(lab, 2)
        serve_echo(lab, 3)
        lab.cut(1, 2)
        assert ping(lab, 1, 2, wait_s=0.5) == []
        assert ping(lab, 1, 3)
        assert ping(lab, 2, 3)


def test_loss_is_near_what_is_asked() -> None:
    """At 20 % each way 64 % come back: of 600 about 384 (five standard deviations: 59)."""
    with Netlab(hosts=2, loss=0.2) as lab:
        serve_echo(lab, 2)
        assert len(ping(lab, 1, 2, count=600)) == pytest.approx(384, abs=59)


def test_commands_that_make_no_sense_are_refused() -> None:
    """The switch says what is wrong, and the caller gets it as ValueError."""
    with Netlab(hosts=2) as lab:
        with pytest.raises(ValueError, match="hosts are 1 to 2"):
            lab.cut(3)
        with pytest.raises(ValueError, match="no network is like this"):
            lab.set_loss(1.5)


def test_nothing_is_left_behind() -> None:
    """Namespaces and the processes in them go with the lab, also when the test fails inside it."""
    with pytest.raises(RuntimeError), Netlab(hosts=2) as lab:  # noqa: PT012 - what is left after the raise is the point
        names = set(lab.names)
        sleeper = lab.popen(1, ["sleep", "600"])
        assert names <= namespaces()
        raise RuntimeError
    assert not names & namespaces()
    assert sleeper.returncode is not None


def test_a_killed_owner_leaves_nothing_behind(
    processes: Processes, deadline: Callable[[float], float]
) -> None:
    """When whoever made the lab is killed outright, the switch removes the namespaces by itself."""
    program = (
        "import os, time\nfrom tests.wan.netlab import Netlab\n"
        "with Netlab(hosts=2) as lab:\n"
        "    print('control', os.path.dirname(lab.control_path)); print('names', *lab.names)\n"
        "    time.sleep(600)"
    )
    owner = processes.start([sys.executable, "-c", program], cwd=ROOT, name="owner")
    names = set(owner.wait_for_line("names (.*)", deadline(30))[1].split())
    folder = Path(owner.wait_for_line("control (.*)", deadline(30))[1])
    assert names <= namespaces()
    assert folder.exists()
    owner.kill9()
    block_until(lambda: not names & namespaces() and not folder.exists(), deadline(30))


def test_the_command_line_runs_a_command_and_changes_the_network() -> None:
    """Inside the command the hosts have names, `ctl` reaches the switch, and the exit status is handed on."""
    inner = (
        f"set -e; set -- $NETLAB_HOSTS; test $# = 2; {sys.executable} -m tests.wan.netlab ctl rtt 20; exit 7"
    )
    argv = [sys.executable, "-m", "tests.wan.netlab", "--hosts", "2", "--", "bash", "-c", inner]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == 7, done.stderr
