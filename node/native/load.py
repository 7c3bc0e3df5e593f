"""Which of the built objects this processor runs, and whether it computes as it should."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from pathlib import Path
from typing import Final

from node.native import build
from node.native.kernel import Kernel
from node.native.known_answer import wrong_answers
from protocol.errors import ConfigError

logger = logging.getLogger(__name__)

# Forces one set of instructions, for tests and for whoever compares.
ISA_VARIABLE: Final = "SWARM_ISA"


def load_kernel(threads: int | None = None) -> Kernel:
    """The fastest object that this processor runs, with so many threads; None: one for each core.

    Raises: ConfigError, if there is none, or not the one that SWARM_ISA names.
    """
    forced = os.environ.get(ISA_VARIABLE)
    for isa in (forced,) if forced else build.isas():
        if path := usable_object(isa, build.BUILT):
            return Kernel(path, isa, threads or cores())
    if forced:
        raise ConfigError(f"{ISA_VARIABLE} asks for {forced}, which is not built, or not for this processor")
    raise ConfigError(
        "there are no native kernels here: with a C compiler, `python -m node.native.build` makes them"
    )


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def usable_object(isa: str, folder: Path) -> Path | None:
    """The object, if it is built, runs here and computes what it should. Asked once of each."""
    if isa not in build.isas():
        return None
    path, plain = build.object_path(isa, folder), build.object_path("plain", folder)
    if not path.exists() or not plain.exists():
        return None
    try:
        # The plain object runs everywhere: it says whether the others may be touched.
        if not ctypes.CDLL(str(plain)).native_runs(isa.encode()):
            return None
        wrong = next(wrong_answers(Kernel(path, isa, 1)), None)
    except OSError as error:
        wrong = str(error)
    if wrong is not None:
        logger.warning("a native kernel is left out: %s", wrong)
        return None
    return path
