"""Memory of a node process: what it holds beside the weights of its span, and what it held while it loaded them.

    python scripts/bench/memory.py [--engine native|torch] [--quant none|int8|int4] [--quick] [--json FILE]

Node processes serve spans of different lengths of a random Llama, each decodes a prompt, then its resident memory is
read. `base_mib` is the intercept of memory over weights: the interpreter, the network and whatever computes;
`mib_per_mib` the slope: 1 means that a node holds its span's weights once and nothing of other layers. The node with
the embedding, which is mapped and not held, is no part of the line.
`loading_mib` is what the process held at most before it was ready, beyond what it held then (Linux): what loading
takes for a while.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import psutil
import trio
from common import Shape, arguments, local_swarm, report

import swarm
from tests.support.local_swarm import RunningNode, wait_for_news

WIDE = Shape(layers=12, hidden=896, heads=14, kv_heads=2, intermediate=4864, vocabulary=8000)
PROMPT = list(range(1, 257))
MIB = 1024 * 1024


async def use(addr: str) -> None:
    """Make every node compute: 256 tokens in, 8 out."""
    async with swarm.connect(addr, remember=False) as client, client.session(max_tokens=512) as session:
        feed = PROMPT
        for _ in range(8):
            candidates = await session.step(feed)
            assert candidates is not None
            feed = [int(candidates.ids[0, 0])]


def loaded(node: RunningNode) -> dict[str, Any]:
    """Of a node that has just become ready."""
    fields = wait_for_news(node.process, "serving").fields
    status = Path(f"/proc/{node.process.pid}/status").read_text().splitlines()
    values = {
        key: int(rest.split()[0]) / 1024 for key, rest in (line.split(":") for line in status) if "kB" in rest
    }
    return {
        "layers": node.layers,
        "weights_mib": fields["weight_bytes"] / MIB,
        "loading_mib": values["VmHWM"] - values["VmRSS"],
    }


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--engine", default="native", help="native or torch")
    parser.add_argument("--quant", default="none", help="none, int8 or int4")
    options = parser.parse_args()
    layers = ["0:1", "1:3", "3:12"] if options.quick else ["0:1", "1:2", "2:5", "5:12"]
    extra = ["--threads", "1", "--kv-tokens", "2048", "--engine", options.engine, "--quant", options.quant]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "random"
        WIDE.write(model)
        with local_swarm(model, layers, extra) as running:
            rows = [loaded(node) for node in running.nodes]
            trio.run(use, running.join)
            for node, row in zip(running.nodes, rows, strict=True):
                row["resident_mib"] = psutil.Process(node.process.pid).memory_info().rss / MIB
    slope, base = statistics.linear_regression(
        [float(row["weights_mib"]) for row in rows[1:]], [float(row["resident_mib"]) for row in rows[1:]]
    )
    most = max(float(row["loading_mib"]) for row in rows)
    report({"base_mib": base, "mib_per_mib": slope, "loading_mib": most}, rows, options.json)


if __name__ == "__main__":
    main()
