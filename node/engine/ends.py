"""Both ends of a model on the client's own machine: the embedding, and the final norm with the head."""

from __future__ import annotations

import threading

import torch

from node.compute.casting import cast_hidden
from node.compute.inputs import check_context, check_hidden, check_want
from node.engine import convert, head
from node.engine.cache import LayerCaches
from node.engine.checkpoint import Checkpoint
from node.engine.span import choose_dtype
from node.engine.split import SplitModel
from protocol.candidates import Candidates, Want
from protocol.errors import LocalProtocolError
from protocol.model import Manifest, Span
from protocol.tensors import Tensor


class LocalEnds:
    """Stages 0 and L + 1 of a model. Keeps nothing of a session; any thread may call it."""

    def __init__(self, checkpoint: Checkpoint, dtype: str, device: str) -> None:
        """Use `load`."""
        self.dtype = dtype
        self.manifest: Manifest = checkpoint.manifest
        self.hidden_size = self.manifest.hidden_size
        last = checkpoint.stages - 1
        self._first, self._last = Span(0, 1), Span(last, last + 1)
        self._checkpoint = checkpoint
        self._model = SplitModel(checkpoint, frozenset((0, last)), dtype, device)
        self.weight_bytes = self._model.weight_bytes
        self._computing = threading.Lock()  # what a forward leaves on its way is of one at a time

    @classmethod
    def load(cls, checkpoint: Checkpoint, dtype: str | None = None, device: str = "cpu") -> LocalEnds:
        """Load the tensors of both ends, no others. Raises: BadCheckpoint, UnsupportedModel, ConfigError."""
        last = checkpoint.stages - 1
        checkpoint.require(Span(0, 1))
        checkpoint.require(Span(last, last + 1))
        return cls(checkpoint, choose_dtype(checkpoint, dtype, device), device)

    def stage_digests(self) -> dict[int, bytes]:
        """The digests of the weights of both ends, by stage; reads them all. Raises: BadCheckpoint."""
        spans = (self._first, self._last)
        return {span.start: self._checkpoint.stage_digests(span)[0] for span in spans}

    @torch.inference_mode()
    def embed(self, tokens: Tensor, position: int) -> Tensor:
        """Hidden states [n, hidden_size], in `dtype`, of int32 ids [n] that stand at `position` and after.

        Raises: Malformed, if the ids are not of the vocabulary or stand beyond the model's context.
        """
        ids = convert.ids_in(tokens, self.manifest.vocab_size).to(self._model.device)
        check_context(position, tokens, self.manifest.context)
        with self._computing:
            states = self._model.hidden(self._first, self._at(self._first, position), ids)
        return convert.hidden_out(states[0])

    @torch.inference_mode()
    def head(self, hidden: Tensor, want: Want, position: int) -> Candidates:
        """Candidates of the last row or of every row of the states [n, hidden_size] from `position` on.

        The states may be in any float dtype. Raises: Malformed, the fault of whoever sent them.
        """
        if want.kind != "candidates":
            raise LocalProtocolError(f"the head makes candidates, not {want.kind!r}")
        check_want(want, self.manifest.vocab_size)
        check_hidden(hidden, self.hidden_size)
        own = cast_hidden(hidden, self.dtype)
        states = convert.hidden_in(own, self.hidden_size, self._model.dtype).to(self._model.device)
        caches = self._at(self._last, position)
        rows = 0 if want.every else 1
        with self._computing:
            if want.states:
                logits, normed = self._model.logits_and_states(self._last, caches, states, rows)
                return head.candidates(logits[0], want, normed[0])
            return head.candidates(self._model.logits(self._last, caches, states, rows)[0], want)

    def _at(self, span: Span, position: int) -> LayerCaches:
        caches = self._model.new_cache(span).layers
        caches.length = position
        return caches
