"""NEON and plain C for Arm meet the golden hashes, under qemu: where it is installed with a compiler for Arm."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from node.native import build
from node.native.blocks import BlockWeights
from node.native.known_answer import made_up_block
from node.native.packed import Kind, Matrix
from tests.node.native.cases import CASES, Case, digest

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text("utf-8"))
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
FLAVOURS = {"neon": [], "neon with dot products": ["-mcpu=neoverse-n1"], "plain": ["-DNATIVE_PLAIN"]}


def compiler() -> list[str] | None:
    """A compiler for Arm: the system's, or that of the ziglang package."""
    if gcc := shutil.which("aarch64-linux-gnu-gcc"):
        return [gcc, "-static"]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl"]
    return None


pytestmark = pytest.mark.skipif(
    QEMU is None or compiler() is None, reason="no qemu-aarch64 here, or no compiler for Arm"
)


class Unpacked:
    """Instead of a kernel: keeps the weights as they came, for the program to pack."""

    def pack(
        self,
        kind: Kind,
        shape: tuple[int, int],
        pieces: Iterable[NDArray[np.float32]],
        bias: NDArray[np.float32] | None = None,
    ) -> Matrix:
        """See `node.native.kernel.Kernel`."""
        rows = np.concatenate(list(pieces))
        return Matrix(kind, *shape, rows.view(np.uint8), np.zeros(0, np.uint8), bias)


def floats(array: NDArray[np.float32] | None) -> bytes:
    """Behind their count."""
    if array is None:
        return ints(0)
    return ints(array.size) + np.ascontiguousarray(array, np.float32).tobytes()


def ints(*values: int) -> bytes:
    """Of 32 bits."""
    return np.array(values, np.int32).tobytes()


def matrix_bytes(matrix: Matrix | None) -> bytes:
    """One matrix, without rows where there is none."""
    if matrix is None:
        return ints(0, 0, 0)
    weights = np.zeros((matrix.padded, matrix.ins), np.float32)
    weights[: matrix.outs] = matrix.codes.view(np.float32).reshape(matrix.outs, matrix.ins)
    bias = None
    if matrix.bias is not None:
        bias = np.concatenate((matrix.bias, np.zeros(matrix.padded - matrix.outs, np.float32)))
    return ints(matrix.kind, matrix.padded, matrix.ins) + floats(weights) + floats(bias)


def block_bytes(case: Case, index: int, block: BlockWeights) -> bytes:
    """One block."""
    shape, parts = case.shape, [ints(case.shape.rotary_of[index], case.shape.windows[index])]
    assert len(shape.windows) == shape.blocks
    parts += [ints(len(block.experts)), floats(block.choice_bias), floats(block.sinks)]
    for matrix in (*block.matrices(), *chain.from_iterable(block.experts)):
        parts.append(matrix_bytes(matrix))
    for norm in block.norms():
        parts += [floats(norm.weight if norm else None), floats(norm.bias if norm else None)]
    return b"".join(parts)


def case_bytes(case: Case) -> bytes:
    """The whole case."""
    shape, kernel = case.shape, Unpacked()
    widest = max(shape.intermediate, shape.experts.shared if shape.experts else 0)
    sizes: tuple[int, ...] = (
        shape.hidden,
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
        widest,
        shape.rotary_dims,
    )
    norms = (shape.centred, shape.wide_norms, shape.late_norms)
    experts = shape.experts
    if experts:
        groups, shares = (
            (experts.groups, experts.groups_per_row),
            (int(experts.whole_shares), int(experts.lone_shares)),
        )
        sizes += (experts.intermediate, experts.count, experts.per_row, *groups, *shares)
    else:
        sizes += (0,) * 7
    latent = shape.latent
    latents = (latent.size, latent.query_rank, latent.own, latent.value) if latent else (0,) * 4
    parts = [ints(*sizes, shape.activation, shape.gated, *norms, shape.side_by_side, case.kv_bytes, *latents)]
    parts.append(ints(shape.blocks, case.tokens))
    share_scale = experts.scale if experts else 1.0
    scales = (
        shape.epsilon,
        shape.query_scale,
        shape.residual_scale,
        shape.score_cap,
        share_scale,
        shape.clip,
        latent.epsilon if latent else shape.epsilon,
    )
    parts.append(np.array(scales, np.float32).tobytes())
    for index in range(2):
        table = shape.rotary_tables[index] if index < len(shape.rotary_tables) else None
        parts.append(np.float32(table.gain if table else 1).tobytes())
        parts.append(floats(table.frequencies if table else None))
    for index in range(shape.blocks):
        made: Any = kernel  # the same call, another result
        block = made_up_block(made, shape, case.kind, index, every_norm=case.every_norm)
        parts.append(block_bytes(case, index, block))
    parts.append(floats(case.states()))
    return b"".join(parts)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_arm_meets_the_golden_hashes(flavour: str, tmp_path: Path) -> None:
    """Packed there and run there, with two threads."""
    cc, program = compiler(), tmp_path / "emulated"
    assert cc is not None
    assert QEMU is not None
    flavour_flags = FLAVOURS[flavour]
    if "ziglang" in cc:  # which has its own way to write it
        flavour_flags = [flag.replace("-n1", "_n1") for flag in flavour_flags]
    flags = ["-O2", "-std=gnu11", "-pthread", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
    sources = [*sorted(build.SOURCES.glob("*.c")), Path(__file__).with_name("emulated.c")]
    include = ["-I", str(build.SOURCES)]
    command = [*cc, *flags, *flavour_flags, *include, *map(str, sources), "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    found = {}
    for name, case in CASES.items():
        done = subprocess.run(
            [QEMU, "-cpu", "max", str(program)], input=case_bytes(case), capture_output=True, timeout=100
        )
        assert done.returncode == 0, (name, done.stderr)
        states = np.frombuffer(done.stdout, np.float32).reshape(case.tokens, case.shape.hidden)
        found[name] = digest(states)
    assert found == {name: golden[1] for name, golden in GOLDEN.items()}
