"""What a client asks of both ends of the model, where it runs them itself."""

from __future__ import annotations

from typing import Protocol

from protocol.candidates import Candidates, Want
from protocol.model import Manifest
from protocol.tensors import Tensor


class Ends(Protocol):
    """Both ends of the model at the client (see `node.native.ends`); called in worker threads."""

    @property
    def manifest(self) -> Manifest:
        """Of the model whose ends these are."""

    def stage_digests(self) -> dict[int, bytes]:
        """The digests of the weights of both ends, by stage; reads them all."""

    def embed(self, tokens: Tensor, position: int) -> Tensor:
        """int32 [tokens] -> hidden states [tokens, hidden_size]."""

    def head(self, hidden: Tensor, want: Want, position: int) -> Candidates:
        """Hidden states [rows, hidden_size], the first at `position` -> candidates of each row."""
