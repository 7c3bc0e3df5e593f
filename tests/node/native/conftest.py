"""The native kernels, built once where there is a compiler; skipped where there is none."""

from collections.abc import Callable

import pytest

from node.native import build
from node.native.kernel import Kernel
from node.native.load import load_kernel, usable_object

NEEDED = "there is no C compiler here, so there are no native kernels to test"


@pytest.fixture(scope="session", autouse=True)
def built() -> list[str]:
    """The sets of instructions that there are objects for."""
    said: list[str] = []
    found = build.build(say=said.append)
    if not found:
        pytest.skip(NEEDED)
    assert not said
    return found


@pytest.fixture(scope="session")
def isas(built: list[str]) -> list[str]:
    """Those that this processor runs."""
    return [isa for isa in built if usable_object(isa, build.BUILT)]


@pytest.fixture(scope="session")
def kernel_for() -> Callable[[str, int], Kernel]:
    """A kernel of one set of instructions with so many threads, made once."""
    made: dict[tuple[str, int], Kernel] = {}

    def kernel(isa: str, threads: int) -> Kernel:
        if (isa, threads) not in made:
            made[isa, threads] = Kernel(build.object_path(isa), isa, threads)
        return made[isa, threads]

    return kernel


@pytest.fixture(scope="session")
def kernel(built: list[str]) -> Kernel:
    """The fastest, with one thread."""
    return load_kernel(1)
