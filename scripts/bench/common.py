"""What the benchmarks of whole swarms share: random checkpoints, node processes, tables."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

# The node processes are started by what the tests start them with, which is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
# Before torch is imported anywhere: OpenMP threads that spin while they wait starve the other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from plots import require_matplotlib

from tests.support.models import write_tokenizer

if TYPE_CHECKING:
    from tests.support.local_swarm import LocalSwarm


@dataclass(frozen=True)
class Shape:
    """A Llama of this shape, random weights."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int

    def write(self, folder: Path, dtype: str = "float32", device: str = "cpu") -> None:
        """A checkpoint in this dtype, made up on the device, with a byte-level tokenizer."""
        import torch
        from transformers import AutoModelForCausalLM, LlamaConfig

        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=2048,
            eos_token_id=None,
        )
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        model.save_pretrained(folder)
        write_tokenizer(folder)


# Of a 0.5B model, in fp32.
HALF_BILLION = Shape(layers=24, hidden=896, heads=14, kv_heads=2, intermediate=4864, vocabulary=32_000)


# So little to compute that a token's time is passing on; what travels is of a real model's size.
SMALL = Shape(layers=4, hidden=896, heads=14, kv_heads=2, intermediate=1024, vocabulary=1024)


def spans(layers: int, nodes: int) -> list[str]:
    """`layers` cut evenly into `nodes` ranges as the command line takes them."""
    cuts = [round(layers * n / nodes) for n in range(nodes + 1)]
    return [f"{start}:{stop}" for start, stop in pairwise(cuts)]


@contextmanager
def local_swarm(model: Path, layers: Sequence[str], extra: Sequence[str] = ()) -> Iterator[LocalSwarm]:
    """Node processes on loopback that serve `layers`."""
    # Here: a machine that only computes has not all that a node needs.
    from tests.support.local_swarm import LocalSwarm
    from tests.support.processes import Processes

    with tempfile.TemporaryDirectory() as home, Processes() as processes:
        running = LocalSwarm(processes, model, Path(home), extra=extra)
        running.start(*layers)
        yield running


def forget_torch() -> None:
    """The collector walks no more over what is here: a thin client has no torch in its memory."""
    gc.collect()
    gc.freeze()


def seconds(run: Callable[[], object]) -> float:
    """How long it takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def arguments(description: str, *, plot: bool = False) -> argparse.ArgumentParser:
    """--quick and --json, as every benchmark has them, and --plot, as those have that draw."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer turns, under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write summary and rows there")
    if plot:
        parser.add_argument("--plot", type=picture, metavar="FILE.png", help="draw what was measured there")
    return parser


def picture(name: str) -> Path:
    """The file to draw into, where there is something to draw with: nobody measures for half an hour in vain."""
    require_matplotlib()
    return Path(name)


def report(summary: Mapping[str, float], rows: Sequence[Mapping[str, Any]], json_file: Path | None) -> None:
    """Print the rows as a table and the summary below it; write both where asked."""
    names = list(rows[0])
    cells = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    print()
    for name, value in summary.items():
        print(f"{name}: {value:.3f}")
    if json_file is not None:
        json_file.write_text(
            json.dumps({"summary": dict(summary), "rows": [dict(row) for row in rows]}, indent=2)
        )


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
