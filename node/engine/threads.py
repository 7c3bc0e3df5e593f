"""How many cores the engine takes, and how its threads wait. Imports no torch before it is called."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

# OpenMP reads these once, when torch is imported: whoever starts a process that computes sets them before. Threads
# that spin while they wait take the cores from every other process: measured 3-9 times slower on a shared machine.
OPENMP_ENVIRONMENT: Final = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}


def configure_threads(threads: int) -> None:
    """Let one step use this many cores, counted from 1. Call it before the first model is loaded."""
    import torch

    torch.set_num_threads(threads)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Have torch compute by itself until the end of the context: what is small takes less than waking others does."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
