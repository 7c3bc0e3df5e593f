"""Gates in front of a model's decoder layers: hidden states enter, leave and pass by at any of them.

The family's own forward loops over its layers as ever and makes masks, rotary embeddings and the rest for them.
Each layer's `forward` is a gate: for a layer of the running span it calls the layer, for the others it hands its
input on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn


class Gates:
    """One gate per layer. Not for two threads at once.

    returns: how the family's layers return, 0 for hidden states alone, else the length of the tuple they are in.
    """

    def __init__(self, layers: nn.ModuleList, returns: int) -> None:
        self._layers = layers
        self._returns = returns
        self._start = self._stop = 0
        self._injected: torch.Tensor | None = None
        self._left: torch.Tensor | None = None
        self._entry = 0
        self._watching = False
        self.seen: list[int] = []  # layers in the order of their calls, while watching
        self.tainted: set[str] = (
            set()
        )  # arguments that depend on parameters outside the layers, while watching
        for index, layer in enumerate(layers):
            layer.forward = partial(self._pass, index, layer.forward)

    def __len__(self) -> int:
        return len(self._layers)

    def remove(self) -> None:
        """Give the layers their own forward back."""
        for layer in self._layers:
            del layer.__dict__["forward"]

    def watch(self) -> None:
        """Let the next forward run no layer, and note what the layers are called with."""
        self._watching = True
        self.set(0, 0, None)

    def set(self, start: int, stop: int, hidden: torch.Tensor | None) -> None:
        """Let the next forward run layers [start, stop), starting from `hidden` unless it is None."""
        self._start, self._stop, self._injected = start, stop, hidden
        # Where no layer follows (the head alone), the states enter at the last layer, which hands them on.
        self._entry = min(start, len(self._layers) - 1)
        self._left = None

    @property
    def left(self) -> torch.Tensor:
        """What left the span's last layer; where no layer runs, what reached the first."""
        assert self._left is not None
        return self._left

    def _pass(self, index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if index == self._entry and self._injected is not None:
            if args:
                args = (self._injected, *args[1:])
            else:
                kwargs["hidden_states"] = self._injected
        if self._start <= index < self._stop:
            out = forward(*args, **kwargs)
            if index == self._stop - 1:
                self._left = out if isinstance(out, torch.Tensor) else out[0]
            return out
        hidden = args[0] if args else kwargs.get("hidden_states")
        if self._watching:
            self._note(index, hidden, args, kwargs)
        if index == 0 == self._stop:
            self._left = hidden
        return (hidden, *(None,) * (self._returns - 1)) if self._returns else hidden

    def _note(self, index: int, hidden: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not isinstance(hidden, torch.Tensor):
            raise TypeError("its layers are not given hidden states first")
        self.seen.append(index)
        others = {f"argument {n}": value for n, value in enumerate(args) if n} | kwargs
        others.pop("hidden_states", None)
        self.tainted |= {name for name, value in others.items() if _needs_grad(value)}


def _needs_grad(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.requires_grad
    return isinstance(value, (tuple, list)) and any(_needs_grad(item) for item in value)
