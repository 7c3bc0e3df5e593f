"""A checkpoint, in which precision it is served, and the kernels that compute it."""

from __future__ import annotations

from dataclasses import dataclass

from node import memory
from node.native.checkpoint import ModelFiles, NativeCheckpoint, open_files
from node.native.engine import NativeEngine
from node.native.kernel import Kernel
from node.native.load import load_kernel
from node.native.precision import F32, PRECISIONS
from protocol.model import Span
from protocol.numerics import Numerics


@dataclass(frozen=True)
class NativeBackend:
    """See `node.backend.Backend`."""

    model: NativeCheckpoint
    _kernel: Kernel

    @classmethod
    def open(cls, model: str | ModelFiles, quant: str | None, *, threads: int | None = None) -> NativeBackend:
        """Open a folder, a GGUF file, a model of the hub, or files that are open.

        quant: None keeps the weights as they are stored.
        Raises: BadCheckpoint; UnsupportedModel, if the kernels do not know it whole; NoKernels; ConfigError.
        """
        kernel = load_kernel(threads)
        precision = F32 if quant is None else PRECISIONS[quant]
        files = open_files(model) if isinstance(model, str) else model
        return cls(NativeCheckpoint(files, precision), kernel)

    def numerics(self) -> Numerics:
        """See `node.backend.Backend`."""
        return self.model.precision.numerics

    def kernels(self) -> str:
        """See `node.backend.Backend`."""
        conversion = self.model.conversion()
        return f"native {self._kernel.isa}" + (f", {conversion}" if conversion else "")

    def dtype(self) -> str:
        """See `node.backend.Backend`."""
        return NativeEngine.dtype

    def load(self, span: Span) -> NativeEngine:
        """See `node.backend.Backend`."""
        return NativeEngine.load(self.model, span, self._kernel)

    def free_bytes(self) -> int:
        """See `node.backend.Backend`."""
        return memory.free_bytes()
