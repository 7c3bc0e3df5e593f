"""From `swarm node` to a node that serves: the interpreter, the imports, the weights, the place in the swarm.

    python scripts/bench/start.py [--quick] [--json FILE]

Each turn starts a fresh process that begins a swarm of its own, with the files in the system's cache. The columns are
seconds since the process was started: the checkpoint is opened, the weights are read, sessions are taken, and others
know of it. `ready_s` is the median for the model that ships, on the native kernels; the other rows are the same on
torch, and a model of 0.5B in the kernels' precisions.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from common import HALF_BILLION, arguments, report

from swarm.cli.demo_nodes import shipped_model
from swarm.cli.node_process import node_command
from tests.support.local_swarm import LOOPBACK, wait_for_news
from tests.support.processes import Processes

EVENTS: Final = ("opening", "loading", "serving", "ready")


def start_once(model: Path, layers: str, options: Sequence[str]) -> list[float]:
    """Seconds from the start of a process to each of EVENTS."""
    with tempfile.TemporaryDirectory() as folder, Processes() as processes:
        command = node_command(model, layers, home=Path(folder), listen=LOOPBACK, options=options)
        began = time.monotonic()
        process = processes.start(command, env={"SWARM_HOME": folder}, name="node")
        taken = []
        for name in EVENTS:
            wait_for_news(process, name)
            taken.append(time.monotonic() - began)
        return taken


def row(name: str, model: Path, layers: str, options: Sequence[str], turns: int) -> dict[str, Any]:
    """Medians over the turns."""
    taken = [start_once(model, layers, options) for _ in range(turns)]
    medians = [statistics.median(each) for each in zip(*taken, strict=True)]
    return {"node": name, **{f"{event}_s": at for event, at in zip(EVENTS, medians, strict=True)}}


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "").parse_args()
    turns = 3 if options.quick else 7
    tiny = shipped_model()
    start_once(tiny, "0:8", [])  # what Python compiles when it first sees it
    rows = [
        row("shipped", tiny, "0:8", [], turns),
        row("shipped, torch", tiny, "0:8", ["--engine", "torch"], turns),
    ]
    if not options.quick:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "random"
            HALF_BILLION.write(model)
            layers = f"0:{HALF_BILLION.layers}"
            for quant in ("none", "int8", "int4"):
                rows.append(row(f"0.5B, {quant}", model, layers, ["--quant", quant], turns))
    summary = {"ready_s": float(rows[0]["ready_s"]), "ready_torch_s": float(rows[1]["ready_s"])}
    if not options.quick:
        summary["ready_half_billion_int8_s"] = float(rows[3]["ready_s"])
    report(summary, rows, options.json)


if __name__ == "__main__":
    main()
