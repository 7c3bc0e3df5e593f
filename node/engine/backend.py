"""A checkpoint, and on which device and in which dtype torch computes it."""

from __future__ import annotations

from dataclasses import dataclass

from node.engine.checkpoint import Checkpoint
from node.engine.device import free_bytes
from node.engine.span import SpanEngine, choose_dtype
from protocol.model import Span


@dataclass(frozen=True)
class TorchBackend:
    """See `node.backend.Backend`."""

    model: Checkpoint
    _dtype: str | None  # None: what suits the checkpoint and the device
    _device: str
    _why: str

    @classmethod
    def open(
        cls, model: str, *, cache_dir: str | None, dtype: str | None, device: str, why: str
    ) -> TorchBackend:
        """Open a folder or a model of the hub; `why` it is computed here, for people.

        Raises: ConfigError, BadCheckpoint, UnsupportedModel.
        """
        return cls(Checkpoint.open(model, cache_dir=cache_dir), dtype, device, why)

    def dtype(self) -> str:
        """See `node.backend.Backend`."""
        return choose_dtype(self.model, self._dtype, self._device)

    def numerics(self) -> str:
        """See `node.backend.Backend`."""
        return self.dtype()

    def kernels(self) -> str:
        """See `node.backend.Backend`."""
        return f"torch on {self._device}: {self._why}"

    def load(self, span: Span) -> SpanEngine:
        """See `node.backend.Backend`."""
        return SpanEngine.load(self.model, span, dtype=self._dtype, device=self._device)

    def free_bytes(self) -> int:
        """See `node.backend.Backend`."""
        return free_bytes(self._device)
