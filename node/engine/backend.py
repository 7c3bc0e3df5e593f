"""A checkpoint, and on which device and in which dtype torch computes it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch

from node.engine.card import on_card
from node.engine.checkpoint import Checkpoint
from node.engine.device import free_bytes, need_device
from node.engine.files import CheckpointFiles
from node.engine.products import on_kernels
from node.engine.quantised import Quantiser
from node.engine.sources import open_source
from node.engine.span import SpanEngine, choose_dtype, numerics_of
from node.native.kernel import Kernel
from node.native.load import NoKernels, load_kernel
from node.native.precision import F32, PRECISIONS
from protocol.model import Span
from protocol.numerics import Numerics

# Those whose products in fp32 were measured against torch's, and are faster, for one row and for many.
_FAST: Final = ("avx512vnni", "avxvnni", "avx2")


@dataclass(frozen=True)
class TorchBackend:
    """See `node.backend.Backend`."""

    model: Checkpoint
    _dtype: str | None  # None: what suits the checkpoint and the device
    _device: str
    _asked: Quantiser | None
    _threads: int | None
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

        `quant` packs its weights; on the CPU with so many threads. Without it they are packed as they are for what is
        computed in fp32 there, if there are kernels for that: the same numbers, sooner.
        Raises: ConfigError, also if there is no such device, or it has nothing to compute packed weights with;
        BadCheckpoint, UnsupportedModel.
        """
        need_device(device)
        files = CheckpointFiles(open_source(model, cache_dir)) if isinstance(model, str) else model
        if quant is None:
            return cls(Checkpoint(files), dtype, device, None, threads, why)
        on_cpu = torch.device(device).type == "cpu"
        pack = on_kernels(load_kernel(threads)) if on_cpu else on_card(device)
        asked = Quantiser(pack, PRECISIONS[quant])
        checkpoint = Checkpoint(files, PRECISIONS[quant])
        return cls(checkpoint, "f32" if on_cpu else "bf16", device, asked, threads, why)

    def dtype(self) -> str:
        """See `node.backend.Backend`."""
        return choose_dtype(self.model, self._dtype, self._device)

    def numerics(self) -> Numerics:
        """See `node.backend.Backend`."""
        return numerics_of(self.model, self.dtype())

    def kernels(self) -> str:
        """See `node.backend.Backend`."""
        products = "" if self._kernel is None else f", linear layers by {self._kernel.isa}"
        return f"torch on {self._device}{products}: {self._why}"

    def load(self, span: Span) -> SpanEngine:
        """See `node.backend.Backend`."""
        plain = None if self._kernel is None else Quantiser(on_kernels(self._kernel), F32)
        return SpanEngine.load(
            self.model, span, dtype=self._dtype, device=self._device, quantiser=self._asked or plain
        )

    @cached_property
    def _kernel(self) -> Kernel | None:
        """What multiplies in fp32 where nothing else is asked for, if that is better than torch's."""
        if self._asked is not None or self.dtype() != "f32" or torch.device(self._device).type != "cpu":
            return None
        try:
            kernel = load_kernel(self._threads)
        except NoKernels:
            return None
        return kernel if kernel.isa in _FAST else None

    def free_bytes(self) -> int:
        """See `node.backend.Backend`."""
        return free_bytes(self._device)
