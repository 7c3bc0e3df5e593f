"""One shared object for each set of instructions, with whatever C compiler there is: python -m node.native.build

Needs the standard library alone: the package's own build runs it as a file. Without a compiler, or with one that
knows no such instructions, there are fewer objects or none, and that is no error.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).resolve().parent
BUILT: Final = SOURCES / "built"
_COMPILERS: Final = ("cc", "gcc", "clang")
_FLAGS: Final = (
    "-O3",
    "-std=gnu11",
    "-fPIC",
    "-shared",
    "-pthread",
    # The arithmetic is the one that is written: nothing fused or reordered. Errors of sqrt and traps are nobody's.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
)
_AVX2: Final = ("-mavx2", "-mfma", "-mf16c")
_AVX512: Final = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni")
# By machine, the fastest first. Every processor runs "plain", which says what it can run beside.
_ISAS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "x86_64": {
        "avx512vnni": (*_AVX2, *_AVX512),
        "avxvnni": (*_AVX2, "-mavxvnni"),
        "avx2": _AVX2,
        "plain": ("-DNATIVE_PLAIN",),
    },
    "aarch64": {"neondot": ("-march=armv8.2-a+dotprod",), "neon": (), "plain": ("-DNATIVE_PLAIN",)},
}
_NAMES: Final = {"amd64": "x86_64", "arm64": "aarch64"}
# A compilation takes some five seconds.
_COMPILE_WITHIN_S: Final = 300.0


def isas() -> tuple[str, ...]:
    """What this kind of machine may have, the fastest first; "plain" is last."""
    return tuple(_flags_by_isa())


def object_path(isa: str, folder: Path = BUILT) -> Path:
    """Where the object of `isa` is, if it is built. The name holds a digest of all that it is made of."""
    digest = hashlib.sha256(" ".join((*_FLAGS, *_flags_by_isa()[isa])).encode())
    for path in sorted((*SOURCES.glob("*.c"), *SOURCES.glob("*.h"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return folder / f"{isa}-{digest.hexdigest()[:12]}.so"


def build(folder: Path = BUILT, say: Callable[[str], object] = lambda line: None) -> list[str]:
    """Build what is not built yet; the names of what is there then. Says in a line what could not be built."""
    using = compiler()
    found = []
    for isa in isas():
        path = object_path(isa, folder)
        if not path.exists() and using is not None:
            if error := _compile(using, isa, path):
                say(f"native kernels: {isa} does not build: {error}")
            else:
                _remove_older(path, isa)
        if path.exists():
            found.append(isa)
    if not found:
        say("native kernels: left out, there is no C compiler here that builds them")
    return found


def _flags_by_isa() -> dict[str, tuple[str, ...]]:
    machine = platform.machine().lower()
    return _ISAS.get(_NAMES.get(machine, machine), {})


def compiler() -> str | None:
    """The C compiler of this machine, $CC before any other."""
    named = os.environ.get("CC")
    return next((path for name in (named, *_COMPILERS) if name and (path := shutil.which(name))), None)


def _compile(compiler: str, isa: str, path: Path) -> str | None:
    """What went wrong, in a line."""
    part = path.with_suffix(f".{os.getpid()}.part")
    sources = sorted(str(source) for source in SOURCES.glob("*.c"))
    command = [compiler, *_FLAGS, *_flags_by_isa()[isa], *sources, "-o", str(part)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_WITHIN_S)
        if done.returncode:
            return (done.stderr.strip() or f"{compiler} ended with {done.returncode}").splitlines()[0]
        part.replace(path)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    finally:
        part.unlink(missing_ok=True)
    return None


def _remove_older(path: Path, isa: str) -> None:
    for other in path.parent.glob(f"{isa}-*.so"):
        if other != path:
            other.unlink(missing_ok=True)


if __name__ == "__main__":
    build(say=lambda line: sys.stderr.write(f"{line}\n"))
