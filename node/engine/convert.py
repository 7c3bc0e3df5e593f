"""Between tensors that travel and torch's, checked at the door."""

from __future__ import annotations

import torch

from node.engine.skeleton import DTYPES
from protocol.errors import Malformed
from protocol.tensors import Tensor, check_finite

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def ids_in(tensor: Tensor, vocab_size: int) -> torch.Tensor:
    """Token ids [1, tokens], int64, from int32 [tokens] within the vocabulary. Raises: Malformed."""
    if tensor.dtype != "i32" or len(tensor.shape) != 1 or not tensor.rows:
        raise Malformed(f"a first stage takes int32 token ids [tokens], not {tensor!r}")
    ids = tensor.numpy()
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise Malformed(f"a token id outside the vocabulary of {vocab_size}")
    return torch.from_numpy(ids.astype("int64"))[None]


def check_context(position: int, rows: Tensor, context: int) -> None:
    """Raises Malformed if rows from `position` on go beyond what the model is made for.

    Learned positions end there; on a CUDA device reading past them would take the whole process with it.
    """
    if position + rows.rows > context:
        raise Malformed(f"{rows.rows} tokens at position {position}, the model's context is {context}")


def hidden_in(tensor: Tensor, hidden_size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Hidden states [1, tokens, hidden_size] on the device, a copy. Raises: Malformed."""
    check_hidden(tensor, hidden_size)
    if tensor.dtype != _NAMES[dtype]:
        raise Malformed(f"this span computes in {_NAMES[dtype]}, the states are {tensor.dtype}")
    # torch wants memory that it may write to; a frame's is not.
    flat = torch.frombuffer(bytearray(tensor.data), dtype=dtype)
    return flat.view(1, *tensor.shape).to(device)


def check_hidden(tensor: Tensor, hidden_size: int) -> None:
    """Raises Malformed unless these are finite float states [tokens, hidden_size] of at least one token."""
    if tensor.dtype not in DTYPES or len(tensor.shape) != 2 or not tensor.rows:
        raise Malformed(f"this stage takes hidden states [tokens, {hidden_size}], not {tensor!r}")
    if tensor.shape[1] != hidden_size:
        raise Malformed(f"hidden states of {tensor.shape[1]} numbers, this model has {hidden_size}")
    check_finite(tensor)


def hidden_out(hidden: torch.Tensor) -> Tensor:
    """Hidden states [1, tokens, hidden] as they travel; a view where they lie contiguous on the CPU."""
    rows = hidden[0].cpu().contiguous()
    data = rows.view(torch.uint8).flatten().numpy()
    return Tensor(_NAMES[rows.dtype], tuple(rows.shape), data.data)
