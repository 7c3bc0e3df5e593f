"""What every test may use: a deadline for slow machines, and processes that are always reaped."""

import os
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from tests.support.processes import Processes

# Before torch is imported anywhere: OpenMP threads that spin while they wait starve the other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# A machine that is busy with other tests is no bug: only pytest's own time limit counts.
settings.register_profile("swarm", deadline=None, print_blob=True)
settings.load_profile("swarm")


@pytest.fixture(scope="session")
def deadline() -> Callable[[float], float]:
    """Stretch a time limit in seconds by SWARM_TEST_SLOW (default 1), for machines with little to give."""
    slow = float(os.environ.get("SWARM_TEST_SLOW", "1"))
    return lambda seconds: seconds * slow


@pytest.fixture
def processes() -> Iterator[Processes]:
    """`processes.start([...])` starts a subprocess; all are killed and reaped when the test ends."""
    with Processes() as running:
        yield running
