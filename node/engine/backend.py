"""A checkpoint, and on which device and in which dtype torch computes it."""

from __future__ import annotations

from dataclasses import dataclass

from node.engine.checkpoint import Checkpoint
from node.engine.device import free_bytes
from node.engine.quantised import Quantiser
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
        model: str,
        *,
        cache_dir: str | None,
        dtype: str | None,
        device: str,
        why: str = "as asked",
        quant: str | None = None,
        threads: int | None = None,
    ) -> TorchBackend:
        """Open a folder or a model of the hub; `why` it is computed here, for people.

        `quant` packs its weights, for the CPU, with so many threads.
        Raises: ConfigError, also where weights are to be packed and there are no kernels; BadCheckpoint,
        UnsupportedModel.
        """
        if quant is None:
            return cls(Checkpoint.open(model, cache_dir=cache_dir), dtype, device, None, why)
        precision = PRECISIONS[quant]
        quantiser = Quantiser(load_kernel(threads), precision)
        checkpoint = Checkpoint.open(model, cache_dir=cache_dir, precision=precision)
        return cls(checkpoint, "f32", device, quantiser, why)

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
