"""What loading a span costs in memory, measured in processes of their own."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.models import make_model

MIB = 1024 * 1024
PROGRAM = """
import json, sys
from node.engine.threads import configure_threads
configure_threads(1)
from node.engine.checkpoint import Checkpoint
from node.engine.span import SpanEngine
from protocol.model import Span

def peak():
    # Not getrusage: its maximum begins with that of the process that started this one.
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])

folder, start, stop, dtype = sys.argv[1:]
checkpoint = Checkpoint.open(folder)
checkpoint.layout
base = peak()
engine = SpanEngine.load(checkpoint, Span(int(start), int(stop)), dtype=dtype)
print(json.dumps({"base": base, "grown": peak() - base, "weights": engine.weight_bytes}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four blocks of 28 MiB in fp32, each in a file of its own or nearly."""
    folder = tmp_path_factory.mktemp("large") / "llama"
    sizes = {"hidden_size": 768, "intermediate_size": 2560, "num_attention_heads": 12}
    return make_model("llama", folder, seed=1, sharded=True, shard_size="30MB", **sizes)


def loading(folder: Path, span: str, dtype: str, limit_s: float) -> dict[str, int]:
    """Memory before loading, its growth at the peak, and the bytes of the weights."""
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", PROGRAM, str(folder), *span.split(":"), dtype]
    done = subprocess.run(command, cwd=root, capture_output=True, check=True, timeout=limit_s)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(("span", "dtype", "times"), [("1:3", "f32", 1.0), ("1:3", "bf16", 3.0)])
def test_loading_takes_the_memory_of_the_spans_weights(
    span: str, dtype: str, times: float, large: Path, deadline: Callable[[float], float]
) -> None:
    """fp32 from fp32 is mapped, never doubled. Where the dtype changes, one stage at a time is held in both.

    (Two stages in bf16 are 28 MiB, and one as stored another 28: twice, and the work space of the conversion.)
    The fixed cost is that of importing torch and transformers, below 500 MiB.
    """
    found = loading(large, span, dtype, deadline(60))
    assert found["base"] < 500 * MIB
    assert found["grown"] < times * found["weights"] + 16 * MIB
