"""Between tensors that travel and torch's, checked at the door."""

from __future__ import annotations

import torch

from node.compute import inputs
from node.engine.skeleton import DTYPES
from protocol.tensors import Tensor

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def ids_in(tensor: Tensor, vocab_size: int) -> torch.Tensor:
    """Token ids [1, tokens], int64, from int32 [tokens] within the vocabulary. Raises: Malformed."""
    return torch.from_numpy(inputs.token_ids(tensor, vocab_size).astype("int64"))[None]


def hidden_in(tensor: Tensor, hidden_size: int, dtype: torch.dtype) -> torch.Tensor:
    """Hidden states [1, tokens, hidden_size] on the CPU, a copy. Raises: Malformed."""
    inputs.check_hidden(tensor, hidden_size)
    inputs.check_dtype(tensor, _NAMES[dtype])
    # torch wants memory that it may write to; a frame's is not.
    flat = torch.frombuffer(bytearray(tensor.data), dtype=dtype)
    return flat.view(1, *tensor.shape)


def hidden_out(hidden: torch.Tensor) -> Tensor:
    """Hidden states [tokens, hidden] as they travel; a view where they lie contiguous on the CPU."""
    rows = hidden.cpu().contiguous()
    data = rows.view(torch.uint8).flatten().numpy()
    return Tensor(_NAMES[rows.dtype], tuple(rows.shape), data.data)
