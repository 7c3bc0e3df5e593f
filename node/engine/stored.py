"""Stored tensors that safetensors does not hand out: read when they are asked for, as its own slices are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from node.engine.shards import StoredTensor
from node.formats.form import Form
from node.formats.raw import Raw
from protocol.errors import BadCheckpoint


class Later:
    """A tensor that `read` gives; indexed as a tensor is."""

    def __init__(self, read: Callable[[], torch.Tensor]) -> None:
        self._read = read

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._read()[index]


def of_form(name: str, form: Form) -> Later:
    """What a form stands for, in fp32. Raises BadCheckpoint as it is read, if that is not finite."""

    def read() -> torch.Tensor:
        values = form.whole()
        if not np.isfinite(values).all():
            raise BadCheckpoint(f"{name} holds NaN or infinite values")
        return torch.from_numpy(np.ascontiguousarray(values))

    return Later(read)


def of_file(name: str, path: Path, tensor: StoredTensor) -> Later:
    """A tensor in a file, mapped. Raises: BadCheckpoint."""
    raw = Raw(name, path, tensor)

    def read() -> torch.Tensor:
        mapped = torch.from_numpy(np.asarray(raw.array))
        dtype = {"BF16": torch.bfloat16, "BOOL": torch.bool}.get(raw.dtype)
        return mapped if dtype is None else mapped.view(dtype)

    return Later(read)
