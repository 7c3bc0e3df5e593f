"""Weights from peers over an emulated network: how much of a link they fill, and what they cost others' tokens.

    python scripts/bench/fetch.py [--quick] [--json FILE]

Five hosts with 100 Mbit/s up and down and 20 ms between any two of them, which takes root. A bare node fetches a
random Llama from one node that has it, then from three. Then three nodes serve it to a client that decodes: alone,
while the bare node fetches from them, and alone again.

share_of_link    of what the fetcher's downlink carries, what is weights: the lower of from one and from three
token_slowdown   the median time between two tokens while somebody fetches, by that while nobody does
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import Shape, arguments, report, spans

from tests.support.local_swarm import wait_for_news
from tests.support.processes import Process
from tests.wan.netlab import Netlab, why_not

MBIT = 100.0
RTT_MS = 20.0
GIVERS = 3
FETCHER, CLIENT = GIVERS + 1, GIVERS + 2
LAYERS = 12
# 84 and 190 MB of weights, 7 and 16 s of the link, and little to compute.
SHAPES = {
    True: Shape(LAYERS, hidden=512, heads=8, kv_heads=4, intermediate=768, vocabulary=1024),
    False: Shape(LAYERS, hidden=768, heads=12, kv_heads=4, intermediate=1280, vocabulary=1024),
}
TOKENS = {True: 100, False: 400}
BEFORE = 10  # tokens until everything is warm
READY_S, FETCH_S, TOKENS_S = 90.0, 240.0, 240.0
DECODE = Path(__file__).with_name("fetch_client.py")


class Hosts:
    """Nodes on hosts of the lab, each with a home of its own."""

    def __init__(self, lab: Netlab, model: Path, folder: Path) -> None:
        self._lab = lab
        self._model = model
        self._folder = folder

    def node(self, host: int, *words: str) -> Process:
        """A node that has just been started, with a home in which nothing is."""
        home = self._folder / f"home-{host}"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        listen = f"/ip4/{self._lab.address(host)}/udp/4001/quic-v1"
        argv = [
            "-m",
            "swarm",
            "node",
            "--json",
            "--home",
            str(home),
            "--cache-dir",
            str(home),
            "--listen",
            listen,
        ]
        argv += ["--threads", "1", "--kv-tokens", "4096", *words]
        return self._lab.popen(host, [sys.executable, *argv], name=f"node on host {host}")

    @contextmanager
    def givers(self, layers: Sequence[str]) -> Iterator[list[str]]:
        """Nodes that have the whole model and serve these layers; their addresses."""
        nodes: list[Process] = []
        addrs: list[str] = []
        try:
            for host, each in enumerate(layers, 1):
                join = ["--join", addrs[0]] if addrs else []
                nodes.append(self.node(host, "--model", str(self._model), "--layers", each, *join))
                addrs.append(wait_for_news(nodes[-1], "ready", READY_S).fields["addrs"][0])
            yield addrs
        finally:
            for node in nodes:
                node.close()

    def fetcher(self, door: str) -> Process:
        """A bare node that fetches all of the model."""
        return self.node(FETCHER, "--join", door, "--layers", f"0:{LAYERS}")

    def decoder(self, tokens: int, addrs: Sequence[str]) -> Process:
        """A client that tells the time of each token."""
        return self._lab.popen(CLIENT, [sys.executable, DECODE, str(tokens), *addrs], name="client")


def fetch(hosts: Hosts, givers: int) -> dict[str, Any]:
    """A fetch from so many nodes."""
    with hosts.givers([f"0:{LAYERS}"] * givers) as addrs:
        node = hosts.fetcher(addrs[0])
        told = wait_for_news(node, "fetched", FETCH_S).fields
        node.close()
    mbit = told["fetched_bytes"] * 8e-6 / told["seconds"]
    return {"what": f"from {givers}", "peers": told["peers"], "MB": told["fetched_bytes"] / 1e6,
            "s": told["seconds"], "Mbit/s": mbit, "ms/token": None}  # fmt: skip


def decode(hosts: Hosts, addrs: Sequence[str], tokens: int) -> float:
    """Seconds between two tokens, the median."""
    client = hosts.decoder(tokens, addrs)
    client.wait_for_line("^over$", TOKENS_S)
    at = [float(line.split()[1]) for line in client.lines if line.startswith("token ")]
    client.close()
    return statistics.median(b - a for a, b in pairwise(at[BEFORE:]))


def tokens_meanwhile(hosts: Hosts, tokens: int) -> list[dict[str, Any]]:
    """A client over three nodes: alone, while a fourth fetches from them, and alone again."""
    found = []
    with hosts.givers(spans(LAYERS, GIVERS)) as addrs:
        found.append({"what": "tokens alone", "ms/token": decode(hosts, addrs, tokens) * 1e3})
        node = hosts.fetcher(addrs[0])
        wait_for_news(node, "fetching", READY_S)
        beside = decode(hosts, addrs, tokens)
        still = not any('"fetched"' in line for line in node.lines)
        node.close()
        found.append({"what": "while fetching" if still else "fetch ended first", "ms/token": beside * 1e3})
        found.append({"what": "alone again", "ms/token": decode(hosts, addrs, tokens) * 1e3})
    return [{"peers": GIVERS, "MB": None, "s": None, "Mbit/s": None, **row} for row in found]


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "").parse_args()
    if reason := why_not():
        sys.exit(f"no emulated network here: {reason}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, Netlab(CLIENT, RTT_MS, MBIT) as lab:
        model = Path(folder) / "random"
        SHAPES[options.quick].write(model)
        hosts = Hosts(lab, model, Path(folder))
        rows += [fetch(hosts, givers) for givers in (1, GIVERS)]
        rows += tokens_meanwhile(hosts, TOKENS[options.quick])
    order = ("what", "peers", "MB", "s", "Mbit/s", "ms/token")
    shown = [{name: row[name] for name in order} for row in rows]
    one, three, alone, beside, again = rows
    summary = {
        "share_of_link": min(one["Mbit/s"], three["Mbit/s"]) / MBIT,
        "token_slowdown": 2 * beside["ms/token"] / (alone["ms/token"] + again["ms/token"]),
    }
    report(summary, shown, options.json)


if __name__ == "__main__":
    main()
