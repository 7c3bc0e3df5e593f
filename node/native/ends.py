"""Both ends of a model on the client's own machine, by the kernels: `node.engine.ends` without torch."""

from __future__ import annotations

import threading

import numpy as np

from node.compute.casting import cast_hidden
from node.compute.inputs import check_context, check_hidden, check_want, token_ids
from node.native.checkpoint import NativeCheckpoint
from node.native.head import Head
from node.native.kernel import Kernel
from node.native.weights import Loader
from protocol.candidates import Candidates, Want
from protocol.errors import LocalProtocolError, Malformed
from protocol.model import Manifest, Span
from protocol.tensors import Tensor, from_numpy


class NativeEnds:
    """Stages 0 and L + 1 of a model. Keeps nothing of a session; any thread may call it."""

    dtype = "f32"

    def __init__(self, checkpoint: NativeCheckpoint, kernel: Kernel) -> None:
        """Use `load`."""
        self.manifest: Manifest = checkpoint.manifest
        self._checkpoint = checkpoint
        self._shape = checkpoint.plan.shape
        loader = Loader(checkpoint, kernel)
        self._embedding = loader.embedding()
        self._head = Head(kernel, self._shape, loader.head())
        self._computing = threading.Lock()  # a kernel is for one thread at a time

    @classmethod
    def load(cls, checkpoint: NativeCheckpoint, kernel: Kernel) -> NativeEnds:
        """Map the tensors of the one end and pack those of the other. Raises: BadCheckpoint, ConfigError."""
        last = checkpoint.manifest.stages - 1
        checkpoint.require(Span(0, 1))
        checkpoint.require(Span(last, last + 1))
        return cls(checkpoint, kernel)

    def stage_digests(self) -> dict[int, bytes]:
        """The digests of the weights of both ends, by stage; reads them all. Raises: BadCheckpoint."""
        last = self.manifest.stages - 1
        spans = Span(0, 1), Span(last, last + 1)
        return {span.start: self._checkpoint.stage_digests(span)[0] for span in spans}

    def embed(self, tokens: Tensor, position: int) -> Tensor:
        """Hidden states [n, hidden_size] in f32 of int32 ids [n] that stand at `position` and after.

        Raises: Malformed, if the ids are not of the vocabulary or stand beyond the model's context.
        """
        ids = token_ids(tokens, self.manifest.vocab_size)
        check_context(position, tokens, self.manifest.context)
        rows = self._embedding.pick(ids)
        scale = self._shape.embedding_scale
        return from_numpy(rows if scale == 1.0 else rows * np.float32(scale))

    def head(self, hidden: Tensor, want: Want, position: int) -> Candidates:
        """Candidates of the last row or of every row of the states [n, hidden_size], wherever they stand.

        The states may be in any float dtype. Raises: Malformed, the fault of whoever sent them.
        """
        if want.kind != "candidates":
            raise LocalProtocolError(f"the head makes candidates, not {want.kind!r}")
        check_want(want, self.manifest.vocab_size)
        check_hidden(hidden, self.manifest.hidden_size)
        states = cast_hidden(hidden, self.dtype).numpy()
        with self._computing:
            [found] = self._head.candidates([(states if want.every else states[-1:], want)])
        if isinstance(found, Malformed):
            raise found
        return found
