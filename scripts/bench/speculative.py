"""Tokens for each trip: decoding with drafts over hosts that are some milliseconds apart, against decoding without.

    python scripts/bench/speculative.py [--quick] [--plot FILE.png] [--json FILE]

Four hosts of an emulated network, which takes root: three nodes serve the model that ships, the fourth is a client.
By turns it decodes plainly, with drafts of the small sibling on its own machine, and by runs of what came before: an
answer of the model's kind (counting), and text that repeats itself. Tokens are the same each time.

speedup_50ms_draft   tokens in a second with the sibling's drafts by those without, round trips of 50 ms, 3 hops
speedup_50ms_ngram   with runs alone, on repetitive text
speedup_0ms_...      the same without a distance: what drafting costs where trips cost little
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import arguments, report, spans
from plots import draw_lines

from swarm.cli.demo_nodes import shipped_model
from tests.support.local_swarm import wait_for_news
from tests.support.processes import Process
from tests.wan.netlab import Netlab, why_not

NODES, LAYERS = 3, 8
CLIENT = NODES + 1
RTTS_MS = {True: (0.0, 50.0), False: (0.0, 20.0, 50.0, 100.0)}
TURNS = {True: 1, False: 5}
TOKENS = {True: 60, False: 100}
# Of each text, the way that is for it.
BEST = {"counting": "draft", "repetitive": "ngram"}
READY_S, ANSWERS_S = 60.0, 600.0
ASK = Path(__file__).with_name("speculative_client.py")


def node(lab: Netlab, folder: Path, host: int, layers: str, door: str | None) -> Process:
    """A node with a home of its own."""
    home = folder / f"home-{host}"
    home.mkdir(exist_ok=True)
    listen = f"/ip4/{lab.address(host)}/udp/4001/quic-v1"
    words = ["--model", str(shipped_model()), "--layers", layers, "--home", str(home), "--listen", listen]
    words += ["--threads", "1", *(["--join", door] if door else [])]
    return lab.popen(host, [sys.executable, "-m", "swarm", "node", "--json", *words], name=f"node {host}")


def measure(lab: Netlab, addrs: list[str], rtt_ms: float, quick: bool) -> list[dict[str, Any]]:
    """One row for each kind of text, of the medians over the turns."""
    lab.set_rtt(rtt_ms)
    words = [str(ASK), str(TURNS[quick]), str(TOKENS[quick]), *addrs]
    client = lab.popen(CLIENT, [sys.executable, *words], name="client")
    client.wait_for_line("^over$", ANSWERS_S)
    told = [json.loads(line) for line in client.lines if line.startswith("{")]
    client.close()
    rows = []
    for text in dict.fromkeys(each["text"] for each in told):
        mine = [each for each in told if each["text"] == text]
        ways = {way: [each for each in mine if each["way"] == way] for way in ("plain", "draft", "ngram")}
        speeds = {way: statistics.median(each["speed"] for each in of) for way, of in ways.items()}
        pairs = {
            way: statistics.median(
                each["speed"] / plain["speed"] for each, plain in zip(ways[way], ways["plain"], strict=True)
            )
            for way in ("draft", "ngram")
        }
        steps = {way: ways[way][-1]["per_step"] for way in pairs}
        rows.append(
            {"rtt ms": rtt_ms, "text": text, **speeds}
            | {f"{way} x": ratio for way, ratio in pairs.items()}
            | {f"a step, {way}": count for way, count in steps.items()}
        )
    return rows


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "", plot=True).parse_args()
    if reason := why_not():
        sys.exit(f"no emulated network here: {reason}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, Netlab(CLIENT, 0.0) as lab:
        nodes: list[Process] = []
        addrs: list[str] = []
        for host, layers in enumerate(spans(LAYERS, NODES), 1):
            nodes.append(node(lab, Path(folder), host, layers, addrs[0] if addrs else None))
            addrs.append(wait_for_news(nodes[-1], "ready", READY_S).fields["addrs"][0])
        for rtt_ms in RTTS_MS[options.quick]:
            rows += measure(lab, addrs, rtt_ms, options.quick)
        for each in nodes:
            each.close()
    summary = {}
    for row in rows:
        way = BEST[row["text"]]
        summary[f"speedup_{row['rtt ms']:.0f}ms_{way}"] = row[f"{way} x"]
    report(summary, rows, options.json)
    if options.plot is not None:
        shown = [(text, way) for text, best in BEST.items() for way in ("plain", best)]
        lines = {
            f"{text}, {way}": [(row["rtt ms"], row[way]) for row in rows if row["text"] == text]
            for text, way in shown
        }
        draw_lines(options.plot, "Decoding over three hops", ("round trip, ms", "tokens/s"), lines)


if __name__ == "__main__":
    main()
