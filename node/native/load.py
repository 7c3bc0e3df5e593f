"""Which of the built objects this processor runs, and whether it computes as it should: python -m node.native.load"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
from pathlib import Path
from typing import Final

from node.native import build
from node.native.kernel import Kernel
from node.native.known_answer import wrong_answers
from protocol.errors import ConfigError

logger = logging.getLogger(__name__)

# Forces one set of instructions, for tests and for whoever compares.
ISA_VARIABLE: Final = "SWARM_ISA"


class NoKernels(ConfigError):
    """There are none on this machine that it runs and that compute what they should."""


def load_kernel(threads: int | None = None) -> Kernel:
    """The fastest object that this processor runs, with so many threads; None: one for each core.

    Raises: NoKernels, if there is none; ConfigError, if not the one that SWARM_ISA names.
    """
    forced = os.environ.get(ISA_VARIABLE)
    for isa in (forced,) if forced else build.isas():
        if path := usable_object(isa, build.BUILT):
            return Kernel(path, isa, threads or cores())
    if forced:
        raise ConfigError(f"{ISA_VARIABLE} asks for {forced}, which is not built, or not for this processor")
    raise NoKernels(
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


if __name__ == "__main__":
    try:
        sys.stderr.write(f"native kernels: {load_kernel(1).isa}\n")
    except ConfigError as error:
        sys.exit(f"native kernels: {error}")
