"""A wide-area network on one machine: hosts in network namespaces, joined by a switch with delay and faults.

The hosts have the addresses 10.77.0.1, 10.77.0.2, ... and see only each other. In a test:

    with Netlab(hosts=3, rtt_ms=80, mbit=50, loss=0.001) as lab:
        server = lab.popen(2, [sys.executable, "-m", "swarm", "node"])
        lab.cut(2)

On the command line, as root: a command in the caller's own namespace with the lab around it, and inside it
`ip netns exec` with the names in NETLAB_HOSTS, and changes to the running network:

    python -m tests.wan.netlab --hosts 3 --rtt-ms 80 --mbit 50 --loss 0.001 -- ./measure
    python -m tests.wan.netlab ctl cut 2        (heal 2, cut 1 3, rtt 200, mbit 20, loss 0.05)
"""

import argparse
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from tests.support.processes import Process, Processes
from tests.wan.switch import SUBNET, Conditions, Settings, remove_namespace

SWITCH = Path(__file__).with_name("switch.py")
CONTROL_S = 10.0  # the switch answers between two frames; this long means that it is dead
REMOVE_S = 30.0  # removing a namespace waits for the kernel, tens of milliseconds each


class Netlab:
    """`hosts` namespaces on one emulated network. Hosts count from 1. The network is there inside `with`."""

    def __init__(
        self, hosts: int, rtt_ms: float = 0.0, mbit: float = 0.0, loss: float = 0.0, mtu: int = 1500
    ) -> None:
        """`rtt_ms`: there and back. `mbit`: each uplink and downlink, 0 for no limit. `loss`: 0 to 1."""
        if not 1 <= hosts <= 254:
            raise ValueError(f"1 to 254 hosts, not {hosts}")
        self.hosts = hosts
        self.names: list[str] = []  # of the namespaces, for `ip netns exec`
        self.control_path = ""
        self._conditions = Conditions(rtt_ms, mbit, loss)
        self._mtu = mtu
        self._owned = ExitStack()
        self._processes = Processes()

    def address(self, host: int) -> str:
        """The IPv4 address of a host."""
        self._check(host)
        return f"{SUBNET}.{host}"

    def command(self, host: int, argv: Sequence[str | Path]) -> list[str | Path]:
        """`argv` as a command that runs on a host."""
        self._check(host)
        return ["ip", "netns", "exec", self.names[host - 1], *argv]

    def popen(
        self,
        host: int,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        name: str = "",
    ) -> Process:
        """Start a process on a host; it is killed and reaped with the lab at the latest."""
        name = name or f"{Path(argv[0]).name} on host {host}"
        return self._processes.start(self.command(host, argv), env=env, cwd=cwd, name=name)

    def cut(self, host: int, other: int | None = None) -> None:
        """From when this returns nothing passes between `host` and `other` (None: everybody else)."""
        self._control("cut", host, other)

    def heal(self, host: int, other: int | None = None) -> None:
        """Undo `cut` for that pair (None: for every pair with `host`)."""
        self._control("heal", host, other)

    def set_rtt(self, rtt_ms: float) -> None:
        """The round trip for every frame sent from now on."""
        self._control("rtt", rtt_ms)

    def set_loss(self, loss: float) -> None:
        """The share of frames lost from now on, 0 to 1."""
        self._control("loss", loss)

    def set_mbit(self, mbit: float) -> None:
        """The rate of every uplink and downlink from now on; 0 for no limit."""
        self._control("mbit", mbit)

    def __enter__(self) -> "Netlab":
        with ExitStack() as undo:
            settings = Settings(self.hosts, self._mtu, **asdict(self._conditions))
            switch = subprocess.Popen(
                [sys.executable, "-I", SWITCH, json.dumps(asdict(settings))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # an interrupt is for the owner, whose end then ends the switch
            )
            undo.callback(self._end_switch, switch)
            assert switch.stdout is not None
            answer = json.loads(
                switch.stdout.readline() or '{"error": "the switch ended, see its traceback"}'
            )
            if "error" in answer:
                raise OSError(f"no lab: {answer['error']}")
            self.names, self.control_path = answer["names"], answer["control_path"]
            undo.callback(self._processes.close)
            self._owned = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._owned.close()

    def _check(self, host: int) -> None:
        if not 1 <= host <= self.hosts:
            raise ValueError(f"hosts are 1 to {self.hosts}, not {host}")

    def _control(self, *words: object) -> None:
        send_control(self.control_path, " ".join(str(word) for word in words if word is not None))

    def _end_switch(self, switch: subprocess.Popen[str]) -> None:
        """Have the switch remove everything; do it here where the switch no longer can."""
        with switch:  # closes its standard input, which is its sign to stop, and its output
            assert switch.stdin is not None
            switch.stdin.close()
            try:
                switch.wait(REMOVE_S)
            except subprocess.TimeoutExpired:
                switch.kill()
        if switch.returncode != 0:
            for name in self.names:
                remove_namespace(name)


def send_control(path: str, command: str) -> None:
    """Give the switch a command; it holds when this returns. Raises: ValueError for a senseless one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        control.settimeout(CONTROL_S)
        control.connect(path)
        control.send(command.encode())
        answer = control.recv(1024).decode()
    if answer != "ok":
        raise ValueError(answer or "the switch hung up")


@functools.cache
def why_not() -> str | None:
    """Why no lab can be made on this machine, in words; None where one can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "no access to /dev/net/tun"
    if shutil.which("ip") is None:
        return "no `ip` command (iproute2)"
    try:
        with Netlab(hosts=1):
            return None
    except OSError as error:
        return str(error)


def main() -> int:
    """The command line; returns the command's exit status."""
    if sys.argv[1:2] == ["ctl"]:
        send_control(os.environ["NETLAB_CTL"], " ".join(sys.argv[2:]))
        return 0
    parser = argparse.ArgumentParser(
        description="Run a command with an emulated wide-area network around it."
    )
    parser.add_argument("--hosts", type=int, required=True)
    parser.add_argument("--rtt-ms", type=float, default=0.0, help="round trip between any two hosts")
    parser.add_argument("--mbit", type=float, default=0.0, help="each uplink and downlink (0: no limit)")
    parser.add_argument("--loss", type=float, default=0.0, help="share of frames lost, 0 to 1")
    parser.add_argument("--mtu", type=int, default=1500, help="largest IP packet in bytes")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- command")
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        parser.error("name the command to run, after --")
    with Netlab(args.hosts, args.rtt_ms, args.mbit, args.loss, args.mtu) as lab:
        env = {**os.environ, "NETLAB_HOSTS": " ".join(lab.names), "NETLAB_CTL": lab.control_path}
        return subprocess.run(command, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
