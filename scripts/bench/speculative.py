"""Tokens for each trip: decoding with drafts over hosts that are some milliseconds apart, against decoding without.

    python scripts/bench/speculative.py [--model PATH [--draft PATH]] [--ahead N] [--quick]
        [--plot FILE.png] [--json FILE]

Four hosts of an emulated network, which takes root: three nodes serve the model that ships, or another checkpoint,
the last is a client. By turns it decodes plainly, with drafts of a small model on its own machine (the sibling of the
model that ships), and by runs of what came before: an answer of the model's kind (counting), and text that repeats
itself. Tokens are the same each time. Acceptance is the part of the drafted tokens that held; "second" is how often,
where a model drafted wrongly, its second best was right: what a tree of drafts could win.

speedup_50ms_draft   tokens in a second with the sibling's drafts by those without, round trips of 50 ms, 3 hops
speedup_50ms_ngram   with runs alone, on repetitive text
speedup_0ms_...      the same without a distance: what drafting costs where trips cost little
speedup_0ms_none     without a distance and without anything to draft from: what looking for it costs
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

from node.backend import open_backend
from node.config import NodeConfig
from swarm.cli.demo_nodes import shipped_model
from tests.support.local_swarm import wait_for_news
from tests.support.processes import Process
from tests.wan.netlab import Netlab, why_not

NODES = 3
CLIENT = NODES + 1
RTTS_MS = {True: (0.0, 50.0), False: (0.0, 20.0, 50.0, 100.0)}
TURNS = {True: 1, False: 3}
TOKENS = {True: 60, False: 100}
# Of each text, the way that is for it.
BEST = {"counting": "draft", "repetitive": "ngram"}
READY_S, ANSWERS_S = 60.0, 600.0
ASK = Path(__file__).with_name("speculative_client.py")


def layers_of(model: Path) -> int:
    """Its transformer blocks."""
    return open_backend(NodeConfig(str(model))).model.manifest.blocks


def node(lab: Netlab, home: Path, host: int, model: Path, layers: str, door: str | None) -> Process:
    """A node with a home of its own."""
    home.mkdir(exist_ok=True)
    listen = f"/ip4/{lab.address(host)}/udp/4001/quic-v1"
    words = ["--model", str(model), "--layers", layers, "--home", str(home), "--listen", listen]
    words += ["--threads", "1", *(["--join", door] if door else [])]
    return lab.popen(host, [sys.executable, "-m", "swarm", "node", "--json", *words], name=f"node {host}")


def measure(
    lab: Netlab, addrs: list[str], rtt_ms: float, quick: bool, how: list[str]
) -> list[dict[str, Any]]:
    """One row for each kind of text, of the medians over the turns; how: what drafts, and how far ahead."""
    lab.set_rtt(rtt_ms)
    words = [str(ASK), str(TURNS[quick]), str(TOKENS[quick]), *how, *addrs]
    client = lab.popen(CLIENT, [sys.executable, *words], name="client")
    client.wait_for_line("^over$", ANSWERS_S)
    told = [json.loads(line) for line in client.lines if line.startswith("{")]
    client.close()
    rows = []
    for text in dict.fromkeys(each["text"] for each in told):
        ways: dict[str, list[dict[str, Any]]] = {}
        for each in told:
            if each["text"] == text:
                ways.setdefault(each["way"], []).append(each)
        row = {"rtt ms": rtt_ms, "text": text} | {
            way: statistics.median(each["speed"] for each in of) for way, of in ways.items()
        }
        plain = ways.pop("plain")
        for way, of in ways.items():
            pairs = zip(of, plain, strict=True)
            row[f"{way} x"] = statistics.median(each["speed"] / other["speed"] for each, other in pairs)
            row |= {f"{word}, {way}": of[-1][word] for word in ("per_step", "acceptance")}
        if "draft" in ways:
            row["second, draft"] = ways["draft"][-1]["second"]
        rows.append(row)
    return rows


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "", plot=True)
    parser.add_argument("--model", type=Path, metavar="PATH", help="a checkpoint's folder, or a GGUF file")
    parser.add_argument("--draft", type=Path, metavar="PATH", help="a small model of the same tokenizer")
    parser.add_argument("--ahead", type=int, default=8, metavar="N", help="steps under way at once")
    options = parser.parse_args()
    if reason := why_not():
        sys.exit(f"no emulated network here: {reason}")
    model = options.model or shipped_model()
    sibling = None if options.model else model.with_name("tiny-draft")
    how = [str(options.draft or sibling or ""), str(options.ahead)]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, Netlab(CLIENT, 0.0) as lab:
        nodes: list[Process] = []
        addrs: list[str] = []
        for host, layers in enumerate(spans(layers_of(model), NODES), 1):
            home, door = Path(folder) / f"home-{host}", addrs[0] if addrs else None
            nodes.append(node(lab, home, host, model, layers, door))
            addrs.append(wait_for_news(nodes[-1], "ready", READY_S).fields["addrs"][0])
        for rtt_ms in RTTS_MS[options.quick]:
            rows += measure(lab, addrs, rtt_ms, options.quick, how)
        for each in nodes:
            each.close()
    summary = {}
    for row in rows:
        way = BEST[row["text"]]
        if f"{way} x" in row:
            summary[f"speedup_{row['rtt ms']:.0f}ms_{way}"] = row[f"{way} x"]
        if not row["rtt ms"] and row["text"] == "counting":
            summary["speedup_0ms_none"] = row["ngram x"]
    report(summary, rows, options.json)
    if options.plot is not None:
        shown = [(text, way) for text, best in BEST.items() for way in ("plain", best)]
        lines = {
            f"{text}, {way}": [
                (row["rtt ms"], row[way]) for row in rows if row["text"] == text and way in row
            ]
            for text, way in shown
        }
        draw_lines(options.plot, "Decoding over three hops", ("round trip, ms", "tokens/s"), lines)


if __name__ == "__main__":
    main()
