"""The helpers themselves: waits end at their condition or their deadline, processes always end."""

import signal
import sys
from collections.abc import Callable

import psutil
import pytest
import trio
from trio.testing import MockClock

from tests.support.processes import Process, Processes
from tests.support.waiting import block_until, eventually

PRINT_AND_STAY = "import time; print('up at 7'); print('ready'); time.sleep(600)"


def is_alive(pid: int) -> bool:
    """Whether `pid` is there and is no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_eventually_returns_at_the_condition(autojump_clock: MockClock) -> None:
    """It returns when the predicate turns true, long before the deadline."""
    start = trio.current_time()
    await eventually(lambda: trio.current_time() - start >= 5, within_s=1000)
    assert 5 <= trio.current_time() - start < 6


async def test_eventually_takes_an_async_predicate(autojump_clock: MockClock) -> None:
    """An awaitable answer is awaited."""

    async def yes() -> bool:
        await trio.sleep(1)
        return True

    await eventually(yes, within_s=5)


async def test_eventually_fails_at_the_deadline(autojump_clock: MockClock) -> None:
    """A condition that never comes raises AssertionError, which says what was waited for."""
    with pytest.raises(AssertionError, match=r"not within 3 s: the moon"):
        await eventually(lambda: False, within_s=3, what="the moon")


def test_wait_until_has_both_ends() -> None:
    """The sync form returns at the condition and raises at the deadline."""
    answers = iter([False, False, True])
    block_until(lambda: next(answers), within_s=5)
    with pytest.raises(AssertionError):
        block_until(lambda: False, within_s=0.05)


def test_lines_are_collected_and_awaited(processes: Processes, deadline: Callable[[float], float]) -> None:
    """A line is found by pattern, its groups are returned, and everything printed is kept."""
    process = processes.start([sys.executable, "-c", PRINT_AND_STAY])
    assert process.wait_for_line(r"up at (\d)", deadline(20))[1] == "7"
    process.wait_for_line("ready", deadline(20))
    assert process.lines == ["up at 7", "ready"]


def test_waiting_for_a_line_shows_the_output_when_it_fails(
    processes: Processes, deadline: Callable[[float], float]
) -> None:
    """A process that ends without the line is told at once, with what it said instead."""
    process = processes.start([sys.executable, "-c", "print('no luck')"], name="child")
    with pytest.raises(AssertionError, match=r"child ended (.|\n)*no luck"):
        process.wait_for_line("ready", deadline(60))


def test_kill9_is_a_crash_and_is_reaped(processes: Processes, deadline: Callable[[float], float]) -> None:
    """After kill9 the process is gone, no zombie is left, and its status says the signal."""
    process = processes.start([sys.executable, "-c", PRINT_AND_STAY])
    process.wait_for_line("ready", deadline(20))
    process.kill9()
    assert process.returncode == -signal.SIGKILL
    assert not is_alive(process.pid)


def test_stop_freezes_until_cont(processes: Processes, deadline: Callable[[float], float]) -> None:
    """A stopped process says nothing more; after cont it goes on."""
    count = "import itertools, time\nfor i in itertools.count(): print(i); time.sleep(0.01)"
    process = processes.start([sys.executable, "-c", count])
    process.wait_for_line("3", deadline(20))
    process.stop()
    frozen = psutil.Process(process.pid)
    block_until(lambda: frozen.status() == psutil.STATUS_STOPPED, deadline(10))
    process.cont()
    seen = len(process.lines)
    block_until(lambda: len(process.lines) > seen + 3, deadline(10))


def test_children_of_a_process_end_with_it(deadline: Callable[[float], float]) -> None:
    """Closing ends the whole group, also what the process started itself, frozen or not."""
    program = "import os, subprocess; c = subprocess.Popen(['sleep', '600']); print(c.pid); c.wait()"
    with Process([sys.executable, "-c", program]) as process:
        child = int(process.wait_for_line(r"^\d+$", deadline(20))[0])
        process.stop()
    block_until(lambda: not is_alive(child), deadline(10))
    assert not is_alive(process.pid)
