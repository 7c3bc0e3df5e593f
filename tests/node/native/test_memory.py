"""What loading a span natively costs in memory, measured in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.models import make_model

MIB = 1024 * 1024
ROOT = Path(__file__).parents[3]
PROGRAM = """
import json, sys
from node.native.checkpoint import NativeCheckpoint
from node.native.engine import NativeEngine
from node.native.load import load_kernel
from node.native.precision import PRECISIONS
from protocol.model import Span

def of_process(field):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])

folder, precision = sys.argv[1:]
kernel = load_kernel(1)
checkpoint = NativeCheckpoint.open(folder, PRECISIONS[precision])
span = Span(1, 5)
checkpoint.stage_digests(span)
base = of_process("VmRSS:")
engine = NativeEngine.load(checkpoint, span, kernel)
print(json.dumps({
    "base": base,
    "grown": of_process("VmHWM:") - base,
    "weights": engine.weight_bytes,
    "announced": sum(checkpoint.stage_bytes(stage, "f32") for stage in span),
    "heavy": sorted({"torch", "transformers", "safetensors"} & set(sys.modules)),
}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four blocks of 28 MiB in fp32."""
    sizes: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 2560, "num_attention_heads": 12}
    return make_model("llama", tmp_path_factory.mktemp("large") / "llama", seed=1, **sizes)


@pytest.mark.parametrize("precision", ["f32", "int8", "int4"])
def test_loading_holds_the_packed_weights_and_little_more(
    precision: str, large: Path, deadline: Callable[[float], float]
) -> None:
    """At its peak the packed span, one matrix as it is stored, and a piece of that in f32; and no torch at all.

    Never the span as it is stored, which is 112 MiB. Large pages and the ends of chunks are in the slack.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(large), precision],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=deadline(60),
    )
    found = json.loads(done.stdout)
    assert found["heavy"] == []
    assert found["base"] < 100 * MIB
    assert found["grown"] < found["weights"] + 32 * MIB
    assert abs(found["announced"] - found["weights"]) < 0.01 * found["weights"]
