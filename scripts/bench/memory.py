"""Memory of a node process: what it holds beside the weights of its span.

    python scripts/bench/memory.py [--quick] [--json FILE]

Node processes serve spans of different lengths of a random Llama, each decodes a prompt, then its resident memory is
read. `base_mib` is the intercept of memory over weights: the interpreter, torch, transformers and the network;
`mib_per_mib` the slope: 1 means that a node holds its span's weights once and nothing of other layers.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import psutil
import trio
from common import Shape, arguments, local_swarm, report

import swarm
from node.engine.checkpoint import Checkpoint
from protocol.model import Span

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


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "").parse_args()
    layers = ["0:2", "2:12"] if options.quick else ["0:1", "1:4", "4:12"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "random"
        WIDE.write(model)
        checkpoint = Checkpoint.open(str(model))
        with local_swarm(model, layers, ["--threads", "1", "--kv-tokens", "2048"]) as running:
            trio.run(use, running.join)
            for node in running.nodes:
                start, stop = (int(end) for end in node.layers.split(":"))
                span = Span(start + (start > 0), stop + 1 + (stop == WIDE.layers))
                weights = sum(checkpoint.stage_bytes(stage, "f32") for stage in span) / MIB
                memory = psutil.Process(node.process.pid).memory_info().rss / MIB
                rows.append({"layers": node.layers, "weights_mib": weights, "resident_mib": memory})
    slope, base = statistics.linear_regression(
        [float(row["weights_mib"]) for row in rows], [float(row["resident_mib"]) for row in rows]
    )
    report({"base_mib": base, "mib_per_mib": slope}, rows, options.json)


if __name__ == "__main__":
    main()
