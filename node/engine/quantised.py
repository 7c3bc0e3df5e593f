"""Weights of a model's modules in eight and four bits: its linear layers and experts, by the native kernels' product.

A family that the kernels do not know whole keeps its own modules, but for those in which nearly all of its weights
are. Each row is computed by itself, so a result does not depend on what else is in a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers.pytorch_utils import Conv1D

from node.engine.kinds import kind_of
from node.engine.skeleton import Layout
from node.native.kernel import Kernel
from node.native.packed import GROUP, TILE, Kind, Matrix
from node.native.precision import Precision
from protocol.errors import BadCheckpoint

# What decides which experts a row goes to, where an error is another expert; and what some families read themselves.
_KEPT: Final = frozenset({"gate", "router", "shared_expert_gate", "dt_proj"})
# Floats of a weight that are copied at once while it is packed: some MiB.
_PIECE: Final = 1 << 20


class Quantiser:
    """Puts packed modules in the place of a model's own."""

    def __init__(self, kernel: Kernel, precision: Precision) -> None:
        self._kernel = kernel
        self._precision = precision

    def replace(self, model: nn.Module, layout: Layout) -> None:
        """Pack every module of the layers and after them that has its weights by now. Raises: BadCheckpoint."""
        for path, module in list(model.named_modules()):
            parent, _, leaf = path.rpartition(".")
            inside = path.startswith(layout.stack + ".") or path in layout.after
            if not inside or leaf in _KEPT or not _is_loaded(module):
                continue
            try:
                packed = self._packed(module, kind_of(self._precision, path, layout.stack))
            except BadCheckpoint as error:
                raise BadCheckpoint(f"{path}: {error}") from error
            if packed is not None:
                setattr(model.get_submodule(parent), leaf, packed)

    def _packed(self, module: nn.Module, kind: Kind) -> nn.Module | None:
        """What takes the place of a module; None if it stays."""
        if is_packable(module):
            weight: torch.Tensor = module.weight  # type: ignore[assignment]
            rows = weight.T if type(module) is Conv1D else weight
            return PackedLinear(self._kernel, self._matrix(kind, rows, module.bias))  # type: ignore[arg-type]
        if are_packable_experts(module):
            return self._experts(module, kind)
        return None

    def _experts(self, module: Any, kind: Kind) -> PackedExperts:
        first = "gate_up_proj" if module.has_gate else "up_proj"

        def each(name: str) -> list[Matrix]:
            weights, biases = getattr(module, name), getattr(module, f"{name}_bias", None)
            return [
                self._matrix(kind, w.T if module.is_transposed else w, None if biases is None else biases[i])
                for i, w in enumerate(weights)
            ]

        return PackedExperts(self._kernel, module, each(first), each("down_proj"))

    def _matrix(self, kind: Kind, weight: torch.Tensor, bias: torch.Tensor | None) -> Matrix:
        return self._kernel.pack(
            kind, (weight.shape[0], weight.shape[1]), _pieces(weight), None if bias is None else _floats(bias)
        )


def is_packable(module: nn.Module) -> bool:
    """Whether it is a linear layer, and nothing more, that fits the kernels' groups."""
    if type(module) is Conv1D:
        return module.weight.shape[0] % GROUP == 0
    if not isinstance(module, nn.Linear) or module.in_features % GROUP:
        return False
    if type(module) is nn.Linear:
        return True
    sample = torch.linspace(-1, 1, module.in_features, dtype=module.weight.dtype)[None]
    return torch.allclose(module(sample), nn.functional.linear(sample, module.weight, module.bias))


def are_packable_experts(module: Any) -> bool:
    """Whether it is the experts of a layer, as transformers keeps them: all in one tensor for each projection."""
    if not hasattr(module, "_apply_gate") or not hasattr(module, "is_transposed"):
        return False
    down = module.down_proj
    first = module.gate_up_proj if module.has_gate else module.up_proj
    ins = -2 if module.is_transposed else -1
    return all(w.dim() == 3 and w.shape[ins] % GROUP == 0 for w in (first, down))


class PackedLinear(nn.Module):
    """A linear layer in few bits, on the CPU."""

    def __init__(self, kernel: Kernel, matrix: Matrix) -> None:
        super().__init__()
        self._kernel = kernel
        self._matrix = matrix
        self.in_features, self.out_features = matrix.ins, matrix.outs
        # Some families ask the weight for its dtype or its device. Who computes with this one fails.
        self.weight = torch.empty(matrix.outs, 0)

    @property
    def packed_bytes(self) -> int:
        """Memory that it takes."""
        return self._matrix.nbytes

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """States [..., in_features] to [..., out_features], in fp32."""
        out = _product(self._kernel, self._matrix, states.reshape(-1, self.in_features))
        return out.view(*states.shape[:-1], self.out_features)


class PackedExperts(nn.Module):
    """The experts of a layer in few bits. Activation and gate are the family's own."""

    def __init__(self, kernel: Kernel, family: Any, first: list[Matrix], down: list[Matrix]) -> None:
        super().__init__()
        for name, _ in list(family.named_parameters(recurse=False)):
            if name.removesuffix("_bias") in ("gate_up_proj", "up_proj", "down_proj"):
                setattr(family, name, None)
        self._family = family
        self._kernel = kernel
        self._first, self._down = first, down

    @property
    def packed_bytes(self) -> int:
        """Memory that they take."""
        return sum(matrix.nbytes for matrix in (*self._first, *self._down))

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Rows [rows, hidden] through the experts [rows, k] that they are routed to, by weights [rows, k]."""
        rows, k = top_k_index.shape
        parts = hidden_states.new_zeros(rows, k, hidden_states.shape[-1])
        for expert in top_k_index.unique().tolist():
            if expert >= len(self._first):
                continue  # beyond the last: a row that is routed nowhere
            row, place = torch.where(top_k_index == expert)
            parts[row, place] = self._run(expert, hidden_states[row])
        # By place, not by expert: a row's sum does not depend on which experts others are routed to.
        return (parts * top_k_weights[..., None]).sum(1).to(hidden_states.dtype)

    def _run(self, expert: int, states: torch.Tensor) -> torch.Tensor:
        family = self._family
        inner = _product(self._kernel, self._first[expert], states)
        inner = family._apply_gate(inner) if family.has_gate else family.act_fn(inner)
        out = _product(self._kernel, self._down[expert], inner)
        return family.post_expert_norm(out) if family.has_post_expert_norm else out


def _product(kernel: Kernel, matrix: Matrix, states: torch.Tensor) -> torch.Tensor:
    """Rows [rows, ins] to [rows, outs], contiguous."""
    given = states.float().contiguous().numpy()
    out = torch.from_numpy(kernel.product(matrix, given))
    return out[:, : matrix.outs].contiguous().to(states.dtype)


def _is_loaded(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    return bool(own) and all(parameter.device.type == "cpu" for parameter in own)


def _floats(values: torch.Tensor) -> NDArray[np.float32]:
    return values.detach().float().numpy()


def _pieces(weight: torch.Tensor) -> Iterator[NDArray[np.float32]]:
    """Rows in order, some at a time: whole tiles, but for the last."""
    step = max(TILE, _PIECE // weight.shape[1] // TILE * TILE)
    for row in range(0, len(weight), step):
        yield _floats(weight[row : row + step])
