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


def suited_dtype(own: str, device: str) -> str:
    """The dtype of a checkpoint, where the device computes in it natively; else "f32"."""
    if torch.device(device).type != "cpu":
        return own
    # Without these instructions bf16 prefill is three times slower than fp32, and fp16 worse.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if own == "bf16" and native else "f32"
