"""The device that computes: whether there is one of that name, what is free on it, what suits it."""

from __future__ import annotations

import torch

from node import memory
from protocol.errors import ConfigError


def need_device(device: str) -> None:
    """Raises ConfigError, in one line, unless torch has a device of this name here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        found = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise ConfigError(
            f"torch {torch.__version__} has no device {device!r} here, only {', '.join(found)}"
        ) from error


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
