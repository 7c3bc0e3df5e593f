"""A checkpoint, in which precision it is served, and the kernels that compute it."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from node.native.checkpoint import NativeCheckpoint
from node.native.engine import NativeEngine
from node.native.kernel import Kernel
from node.native.load import load_kernel
from node.native.precision import PRECISIONS
from protocol.errors import ConfigError, UnsupportedModel
from protocol.model import Span
from protocol.numerics import Numerics


@dataclass(frozen=True)
class NativeBackend:
    """See `node.backend.Backend`."""

    model: NativeCheckpoint
    _kernel: Kernel

    @classmethod
    def open(
        cls, model: str, precision: str, *, cache_dir: str | None = None, threads: int | None = None
    ) -> NativeBackend:
        """Open a folder or a model of the hub.

        Raises: BadCheckpoint; ConfigError, also where the kernels do not know the model or are not there.
        """
        kernel = load_kernel(threads)
        try:
            checkpoint = NativeCheckpoint.open(model, PRECISIONS[precision], cache_dir=cache_dir)
        except UnsupportedModel as error:
            raise ConfigError(f"{model} cannot be served in {precision}: {error}") from error
        return cls(checkpoint, kernel)

    def numerics(self) -> Numerics:
        """See `node.backend.Backend`."""
        return self.model.precision.numerics

    def kernels(self) -> str:
        """See `node.backend.Backend`."""
        return f"native {self._kernel.isa}"

    def dtype(self) -> str:
        """See `node.backend.Backend`."""
        return NativeEngine.dtype

    def load(self, span: Span) -> NativeEngine:
        """See `node.backend.Backend`."""
        return NativeEngine.load(self.model, span, self._kernel)

    def free_bytes(self) -> int:
        """See `node.backend.Backend`."""
        return int(psutil.virtual_memory().available)
