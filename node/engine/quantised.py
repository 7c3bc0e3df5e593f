"""Weights of a model's modules packed: of its linear layers and experts.

A family that the kernels do not know whole, or that a graphics card computes, keeps its own modules, but for those in
which nearly all of its weights are. What multiplies is given: `products` on the CPU, `card` on a graphics card.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from node.engine.kinds import kind_of
from node.engine.products import Pack, Product
from node.engine.skeleton import Layout
from node.native.packed import GROUP, Kind
from node.native.precision import Precision
from protocol.errors import BadCheckpoint

# What decides which experts a row goes to, where an error is another expert; and what some families read themselves.
_KEPT: Final = frozenset({"gate", "router", "shared_expert_gate", "dt_proj"})


class Quantiser:
    """Puts packed modules in the place of a model's own."""

    def __init__(self, pack: Pack, precision: Precision) -> None:
        self._pack = pack
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
            return PackedLinear(self._pack(kind, rows, module.bias), rows)  # type: ignore[arg-type]
        if are_packable_experts(module):
            return self._experts(module, kind)
        return None

    def _experts(self, module: Any, kind: Kind) -> PackedExperts:
        first = "gate_up_proj" if module.has_gate else "up_proj"

        def each(name: str) -> list[Product]:
            weights, biases = getattr(module, name), getattr(module, f"{name}_bias", None)
            return [
                self._pack(kind, w.T if module.is_transposed else w, None if biases is None else biases[i])
                for i, w in enumerate(weights)
            ]

        return PackedExperts(module, each(first), each("down_proj"))


def is_packable(module: nn.Module) -> bool:
    """Whether it is a linear layer, and nothing more, that fits the kernels' groups."""
    if type(module) is Conv1D:
        return module.weight.shape[0] % GROUP == 0
    if not isinstance(module, nn.Linear) or module.in_features % GROUP:
        return False
    if type(module) is nn.Linear:
        return True
    weight = module.weight
    sample = torch.linspace(-1, 1, module.in_features, dtype=weight.dtype, device=weight.device)[None]
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
    """A linear layer."""

    def __init__(self, product: Product, weight: torch.Tensor) -> None:
        super().__init__()
        self.product = product
        self.out_features, self.in_features = weight.shape
        # Some families ask the weight for its dtype or its device. Who computes with this one fails.
        self.weight = weight.new_empty(self.out_features, 0)

    @property
    def packed_bytes(self) -> int:
        """Memory that it takes."""
        return self.product.nbytes

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """States [..., in_features] to [..., out_features]."""
        out = self.product(states.reshape(-1, self.in_features))
        return out.view(*states.shape[:-1], self.out_features)


class PackedExperts(nn.Module):
    """The experts of a layer. Activation and gate are the family's own."""

    def __init__(self, family: Any, first: list[Product], down: list[Product]) -> None:
        super().__init__()
        for name, _ in list(family.named_parameters(recurse=False)):
            if name.removesuffix("_bias") in ("gate_up_proj", "up_proj", "down_proj"):
                setattr(family, name, None)
        self._family = family
        self.first, self.down = first, down

    @property
    def packed_bytes(self) -> int:
        """Memory that they take."""
        return sum(product.nbytes for product in (*self.first, *self.down))

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Rows [rows, hidden] through the experts [rows, k] that they are routed to, by weights [rows, k]."""
        rows, k = top_k_index.shape
        parts = hidden_states.new_zeros(rows, k, hidden_states.shape[-1])
        for expert in top_k_index.unique().tolist():
            if expert >= len(self.first):
                continue  # beyond the last: a row that is routed nowhere
            row, place = torch.where(top_k_index == expert)
            parts[row, place] = self._run(expert, hidden_states[row])
        # By place, not by expert: a row's sum does not depend on which experts others are routed to.
        return (parts * top_k_weights[..., None]).sum(1).to(hidden_states.dtype)

    def _run(self, expert: int, states: torch.Tensor) -> torch.Tensor:
        family = self._family
        inner = self.first[expert](states)
        inner = family._apply_gate(inner) if family.has_gate else family.act_fn(inner)
        out = self.down[expert](inner)
        return family.post_expert_norm(out) if family.has_post_expert_norm else out


def _is_loaded(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    return bool(own) and all(parameter.device.type != "meta" for parameter in own)
