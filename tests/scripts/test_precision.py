"""What the benchmark of precisions takes a GGUF file for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from node.native.checkpoint import NativeCheckpoint
from node.native.names import block_tensors, end_tensors
from node.native.precision import F32
from tests.support.gguf import as_q8_0, convert
from tests.support.models import make_model

BENCH = Path("scripts/bench").resolve()


def floats(path: Path) -> dict[tuple[int, str], NDArray[np.float32]]:
    """All of a checkpoint, by stage and name."""
    opened = NativeCheckpoint.open(str(path), F32)
    ends = end_tensors(opened.plan)
    stages = (ends[0], *(block_tensors(opened.plan, index) for index in range(4)), ends[1])
    named = {(stage, name): opened.rows(stage, name) for stage, names in enumerate(stages) for name in names}
    return {
        key: rows.vector() if len(rows.shape) == 1 else np.concatenate(list(rows.pieces()))
        for key, rows in named.items()
    }


@pytest.mark.parametrize("tied", [False, True])
def test_a_dequantised_file_is_the_same_model(
    tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same tensors by name, and in each the same floats; rows in pairs are put in order."""
    monkeypatch.syspath_prepend(str(BENCH))
    dequantise = import_module("precision").dequantise
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    folder = make_model("llama", tmp_path / "folder", seed=4, tie_word_embeddings=tied, **heads)
    file = convert(folder, tmp_path / "model.gguf", as_q8_0)
    (tmp_path / "plain").mkdir()
    plain, expected = floats(dequantise(file, tmp_path / "plain")), floats(file)
    assert plain.keys() == expected.keys()
    assert all(np.array_equal(plain[key], expected[key]) for key in expected)
