"""What is free of the machine's memory."""

from __future__ import annotations

import psutil


def free_bytes() -> int:
    """Memory that nobody uses, or that the system gives back when asked."""
    return int(psutil.virtual_memory().available)
