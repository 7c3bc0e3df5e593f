"""What the doctor makes of what it has seen; against a real swarm it is in `test_net`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from protocol.messages import DialReply
from swarm.cli import findings
from swarm.cli.findings import Finding
from tests.cli.test_usage import NOBODY
from tests.protocol.samples import announcement
from tests.support.commands import run

GIB = 1 << 30


@pytest.mark.parametrize(
    ("found", "state", "step"),
    [
        (findings.of_kernels("avx2", "", False, ["avx2"]), "ok", ""),
        (findings.of_kernels(None, "none built", True, []), "note", "node.native.build"),
        (findings.of_kernels(None, "none built", False, []), "wrong", "inference-swarm[torch]"),
        (findings.of_memory(8 * GIB, 5 * GIB), "ok", ""),
        (findings.of_memory(GIB, GIB // 2), "note", "int4"),
        (findings.of_memory(GIB // 8, GIB // 16), "wrong", "client only"),
        (findings.of_disk("/x", GIB, True), "wrong", "swarm models rm"),
        (findings.of_disk("/a b", 9 * GIB, False), "wrong", "'/a b'"),
        (findings.of_files(64), "wrong", "ulimit"),
        (findings.of_socket("no route", 0, 4096), "wrong", "firewall"),
        (findings.of_socket(None, 512, 4096), "note", "rmem_max=4096"),
        (findings.of_clock("", 3), "ok", ""),
        (findings.of_clock("this machine's clock is about 99 s behind", 3), "wrong", "set-ntp"),
        (findings.of_clock("the clock of node X is about 99 s behind", 3), "note", "its owner"),
    ],
)
def test_each_finding_has_its_next_step(found: Finding, state: str, step: str) -> None:
    """And what is as it should be has none."""
    assert found.state == state
    assert step in found.step
    assert bool(found.step) is (state != "ok")


@pytest.mark.parametrize(
    ("replies", "state", "step"),
    [
        ([], "note", "of this version"),
        ([DialReply("192.168.1.2", True, "")], "ok", ""),
        ([DialReply("192.168.1.2", False, "no answer")], "wrong", "firewall"),
        ([DialReply("8.8.8.8", True, "")], "note", "--announce /ip4/8.8.8.8/udp/4001/quic-v1"),
        ([DialReply("$(id)", True, "")], "ok", ""),
        ([DialReply("8.8.8.8", False, "no answer")], "wrong", "forward UDP port 4001"),
    ],
    ids=str,
)
def test_what_nodes_say_of_a_port(replies: list[DialReply], state: str, step: str) -> None:
    """Whether it is this machine's firewall or a router that keeps them out."""
    found = findings.of_dials(4001, replies, {"192.168.1.2"}, 3)
    assert found.state == state
    assert step in found.step


def test_what_is_missing_is_named() -> None:
    """With how to get it."""
    lacking = [
        *findings.of_packages("3.11", {"libp2p": "0.9 in place of 0.8.1"}, {"node": False, "http": True})
    ]
    assert [found.state for found in lacking] == ["wrong", "note"]
    assert "libp2p (0.9 in place of 0.8.1)" in lacking[0].text
    assert lacking[1].step == 'pip install "inference-swarm[node]"'


def test_a_node_that_only_its_own_network_reaches() -> None:
    """Is told so where others are reached from everywhere, and only there."""
    own = announcement(peer="own", addrs=("/ip4/192.168.1.2/udp/1/quic-v1",))
    far = announcement(peer="far", addrs=("/ip4/8.8.8.8/udp/1/quic-v1", "nonsense"))
    found = findings.of_own_node(True, own, [far])
    assert found is not None
    assert (found.state, "--announce" in found.step) == ("wrong", True)
    near = findings.of_own_node(True, own, [announcement(peer="near", addrs=own.addrs)])
    assert near is not None
    assert near.state == "note"
    unheard = findings.of_own_node(True, None, [far])
    assert unheard is not None
    assert "--join" in unheard.step
    assert findings.of_own_node(False, None, [far]) is None


def test_a_machine_without_a_swarm(tmp_path: Path) -> None:
    """Is looked at by itself; a swarm that does not answer is wrong, and a key that others can read."""
    done = run("doctor", "--json", home=tmp_path)
    about = {found["about"] for found in json.loads(done.stdout)["findings"]}
    assert {"config", "packages", "kernels", "memory", "disk", "udp", "swarm"} <= about
    (tmp_path / "node.key").write_bytes(b"x" * 32)
    (tmp_path / "node.key").chmod(0o644)
    done = run("doctor", "--join", NOBODY, home=tmp_path)
    assert done.returncode == 1
    assert "chmod 600" in done.stdout
    assert "no node answers" in done.stdout
    assert done.stderr == ""
