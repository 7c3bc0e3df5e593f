"""What is free on the device that computes."""

from __future__ import annotations

import torch

from node import memory


def free_bytes(device: str) -> int:
    """Memory of `device` ("cpu", "cuda", "cuda:1") that nobody uses; of the machine, where it shares that."""
    kind = torch.device(device)
    if kind.type == "cuda":
        return int(torch.cuda.mem_get_info(kind)[0])
    return memory.free_bytes()
