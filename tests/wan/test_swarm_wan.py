"""A swarm over an emulated wide-area network: 30 ms round trips, 1 % loss, hosts and links cut in mid-answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from swarm.cli.node_process import node_command
from tests.support.answers import generated, make_slow_model
from tests.support.local_swarm import wait_for_news
from tests.support.processes import Process
from tests.support.prompts import LONG, SHORT
from tests.wan.netlab import Netlab

pytestmark = [pytest.mark.wan, pytest.mark.timeout(240)]

SCRIPT = Path(__file__).with_name("write_answer.py")
PROMPTS = {"short": SHORT, "long": LONG}
HALVES = ["0:2", "2:4", "0:2", "2:4"]
CLIENT = len(HALVES) + 1  # its host; node n is on host n + 1
NEW = 24
ANSWER_S = 60.0


@dataclass(frozen=True)
class Wan:
    """The lab, and who is where."""

    lab: Netlab
    addrs: list[str]
    expected: dict[str, list[int]]
    home: Path

    def write(self, prompt: str) -> Process:
        """A client that has begun an answer."""
        argv: list[str | Path] = [sys.executable, SCRIPT, prompt, str(NEW), *self.addrs]
        return self.lab.popen(CLIENT, argv, env={"SWARM_HOME": str(self.home)}, name="client")

    def host(self, client: Process, hop: int) -> int:
        """Where a hop of the client's route is."""
        peer = client.wait_for_line(rf"^hop {hop} (\w+)$", ANSWER_S)[1]
        return 1 + next(n for n, addr in enumerate(self.addrs) if addr.endswith(peer))

    def check(self, client: Process, prompt: str) -> None:
        """The answer was that of transformers."""
        client.wait_for_line("^over$", ANSWER_S)
        tokens = [int(line.split()[1]) for line in client.lines if line.startswith("token ")]
        assert tokens == self.expected[prompt]
        print(*(line for line in client.lines if line.startswith(("reroute", "bridge"))), sep="\n")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wan]:
    """Four nodes on four hosts, each half of the model twice."""
    model = make_slow_model(tmp_path_factory.mktemp("model") / "slow")
    homes = tmp_path_factory.mktemp("homes")
    with Netlab(hosts=CLIENT, rtt_ms=30, loss=0.01) as lab:
        nodes: list[Process] = []
        addrs: list[str] = []
        for host, layers in enumerate(HALVES, 1):
            argv = node_command(
                model,
                layers,
                home=homes / str(host),
                listen=f"/ip4/{lab.address(host)}/udp/4001/quic-v1",
                join=addrs[:1],
                options=["--threads", "1", "--kv-tokens", "8192"],
            )
            nodes.append(lab.popen(host, argv, name=f"node {layers} on host {host}"))
            if not addrs:
                addrs.append(address(nodes[0]))
        addrs += [address(node) for node in nodes[1:]]
        expected = {name: generated(model, prompt, NEW) for name, prompt in PROMPTS.items()}
        yield Wan(lab, addrs, expected, homes / "client")


def address(node: Process) -> str:
    """Of a node, once it serves."""
    addr: str = wait_for_news(node, "ready").fields["addrs"][0]
    return addr


@pytest.fixture
def wan(running: Wan) -> Iterator[Wan]:
    """The swarm with the network whole, before and after."""
    yield running
    for host in range(1, CLIENT + 1):
        running.lab.heal(host)


@pytest.mark.parametrize("prompt", ["short", "long"])
def test_the_answer_is_that_of_generate(prompt: str, wan: Wan) -> None:
    """Over a slow and lossy network nothing has to be mended, and nothing is lost."""
    client = wan.write(prompt)
    wan.check(client, prompt)
    assert not any(line.startswith(("reroute", "bridge")) for line in client.lines)


@pytest.mark.parametrize("hop", [0, 1])
@pytest.mark.parametrize(("prompt", "when"), [("long", "chunk {hop}"), ("short", "token")])
def test_a_hop_is_cut_off(hop: int, prompt: str, when: str, wan: Wan) -> None:
    """Its packets are dropped in the middle of the prompt or of the answer: another goes on."""
    client = wan.write(prompt)
    host = wan.host(client, hop)
    client.wait_for_line("^" + when.format(hop=hop), ANSWER_S)
    wan.lab.cut(host)
    wan.check(client, prompt)
    assert any(line.startswith("reroute") for line in client.lines)


@pytest.mark.parametrize(("prompt", "when"), [("long", "chunk 1"), ("short", "token")])
def test_the_link_between_two_hops_is_cut(prompt: str, when: str, wan: Wan) -> None:
    """Both still reach the client, which carries their hidden states for them."""
    client = wan.write(prompt)
    hosts = [wan.host(client, hop) for hop in (0, 1)]
    client.wait_for_line("^" + when, ANSWER_S)
    wan.lab.cut(*hosts)
    wan.check(client, prompt)
    assert any(line.startswith("bridge") for line in client.lines)
