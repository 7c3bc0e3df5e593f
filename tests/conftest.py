"""What every test may use: a deadline for slow machines, and processes that are always reaped."""

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from tests.support.forge import Forge, shared
from tests.support.processes import Processes
from tests.support.sets import Guard, keep_the_inner, mark_starters

# Before torch is imported anywhere: OpenMP threads that spin while they wait starve the other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Where the tests run in the background of a shell, or under nohup, what a terminal sends is ignored, and so it would
# be by all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(_number, signal.SIG_DFL)

# A machine that is busy with other tests is no bug: only pytest's own time limit counts.
settings.register_profile("swarm", deadline=None, print_blob=True)
settings.register_profile("fast", settings.get_profile("swarm"), max_examples=20)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--fast`: the inner loop. `--thorough`: what takes long, or judges times and so wants a machine to itself."""
    parser.addoption(
        "--fast", action="store_true", help="what starts no process, with fewer examples of each property"
    )
    parser.addoption(
        "--thorough", action="store_true", help="all shapes of the attacks, and what they cost in time"
    )


def pytest_configure(config: pytest.Config) -> None:
    """As many examples as there is time for; and no process without its marker."""
    settings.load_profile("fast" if config.getoption("--fast") else "swarm")
    config.pluginmanager.register(Guard())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what starts processes, and leave it out where only the inner loop is wanted."""
    mark_starters(items)
    if config.getoption("--fast"):
        keep_the_inner(config, items)


@pytest.fixture(scope="session", autouse=True)
def no_home_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever a fixture of a module starts neither reads nor writes the user's own folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWARM_HOME", str(tmp_path_factory.getbasetemp() / "home"))
        yield


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A client of one test remembers nothing of another's: random checkpoints have one model digest."""
    monkeypatch.setenv("SWARM_HOME", str(tmp_path_factory.getbasetemp() / f"home-{time.monotonic_ns()}"))


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


@pytest.fixture(scope="session")
def forge() -> Forge:
    """Starts `swarm ...` in a fraction of a second."""
    return shared()
