"""A checkpoint, and on which device and in which dtype torch computes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from node.engine.card import on_card
from node.engine.checkpoint import Checkpoint
from node.engine.device import free_bytes, need_device
from node.engine.files import CheckpointFiles
from node.engine.products import on_kernels
from node.engine.quantised import Quantiser
from node.engine.sources import open_source
from node.engine.span import SpanEngine, choose_dtype, numerics_of
from node.native.load import load_kernel
from node.native.precision import PRECISIONS
from protocol.model import Span
from protocol.numerics import Numerics


@dataclass(frozen=True)
class TorchBackend:
    """See `node.backend.Backend`."""

    model: Checkpoint
    _dtype: str | None  # None: what suits the checkpoint and the device
    _device: str
    _quantiser: Quantiser | None
    _why: str

    @classmethod
    def open(
        cls,
        model: str | CheckpointFiles,
        *,
        cache_dir: str | None = None,
        dtype: str | None,
        device: str,
        why: str = "as asked",
        quant: str | None = None,
        threads: int | None = None,
    ) -> TorchBackend:
        """Open a folder, a model of the hub, or files that are open; `why` it is computed here, for people.

        `quant` packs its weights; on the CPU with so many threads.
        Raises: ConfigError, also if there is no such device, or it has nothing to compute packed weights with;
        BadCheckpoint, UnsupportedModel.
        """
        need_device(device)
        files = CheckpointFiles(open_source(model, cache_dir)) if isinstance(model, str) else model
        if quant is None:
            return cls(Checkpoint(files), dtype, device, None, why)
        on_cpu = torch.device(device).type == "cpu"
        pack = on_kernels(load_kernel(threads)) if on_cpu else on_card(device)
        precision = PRECISIONS[quant]
        checkpoint = Checkpoint(files, precision)
        return cls(checkpoint, "f32" if on_cpu else "bf16", device, Quantiser(pack, precision), why)

    def dtype(self) -> str:
        """See `node.backend.Backend`."""
        return choose_dtype(self.model, self._dtype, self._device)

    def numerics(self) -> Numerics:
        """See `node.backend.Backend`."""
        return numerics_of(self.model, self.dtype())

    def kernels(self) -> str:
        """See `node.backend.Backend`."""
        return f"torch on {self._device}: {self._why}"

    def load(self, span: Span) -> SpanEngine:
        """See `node.backend.Backend`."""
        return SpanEngine.load(
            self.model, span, dtype=self._dtype, device=self._device, quantiser=self._quantiser
        )

    def free_bytes(self) -> int:
        """See `node.backend.Backend`."""
        return free_bytes(self._device)
