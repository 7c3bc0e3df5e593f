"""Which tests are the inner loop (`--fast`): those that start no process, and need no network but a socket or two.

A test starts processes if its code, its fixtures', or what of ours they call names what starts one. So a new test is
in the right set by itself; and one of which that is guessed wrong fails as soon as it starts a process.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

OURS = {"protocol", "node", "swarm", "scripts", "tests"}
# What the inner loop leaves out, by marker; `process` is put on by `mark_starters`.
OUTER = ("attack", "gpu", "net", "process", "slow", "wan")
STARTERS = (subprocess, multiprocessing, os.fork)
# Cases of one test, in the inner loop.
CASES = 8
# What Python tells when a process is started.
STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"}


def mark_starters(items: list[pytest.Item]) -> None:
    """Put the marker `process` on the tests that start one."""
    for item in items:
        if isinstance(item, pytest.Function):
            fixtures = [used.func for each in item._fixtureinfo.name2fixturedefs.values() for used in each]
            if any(starts_processes(code) for code in (item.function, *fixtures)):
                item.add_marker("process")


def keep_the_inner(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the others out, and of a test with many cases all but some, from all over."""
    kept: list[pytest.Item] = []
    for _, same in groupby(items, lambda item: item.nodeid.partition("[")[0]):
        cases = [item for item in same if not any(item.get_closest_marker(name) for name in OUTER)]
        kept += cases if len(cases) <= CASES else [cases[len(cases) * n // CASES] for n in range(CASES)]
    keep = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in keep])
    items[:] = kept


class Guard:
    """Python tells it of every process that starts: a test that is not marked so may not start one."""

    def __init__(self) -> None:
        self._running: pytest.Item | None = None
        sys.addaudithook(self._hear)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Remember who runs."""
        self._running = item
        try:
            return (yield)
        finally:
            self._running = None

    def _hear(self, event: str, _: object) -> None:
        if event not in STARTS or self._running is None:
            return
        if self._running.get_closest_marker("process") is None:
            raise AssertionError(f"{self._running.nodeid} starts a process: mark it pytest.mark.process")


@cache
def starts_processes(code: Any) -> bool:
    """Whether a function or a class of ours names what starts processes, itself or by what it calls."""
    ahead, seen = [code], {code}
    while ahead:
        for other in _named(ahead.pop()):
            if other in STARTERS:
                return True
            if other not in seen:
                seen.add(other)
                ahead.append(other)
    return False


@cache
def _named(code: Any) -> tuple[Any, ...]:
    """The functions, classes and modules that a function's code or that of a class's methods names."""
    if not _is_ours(code):
        return ()
    found: list[object] = []
    for function in _functions(code):
        found += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        for names in _names(function.__code__):
            values = [function.__globals__.get(name) for name in names]
            modules = [value for value in values if isinstance(value, ModuleType)]
            found += [*values, *(_member(module, name) for module in modules for name in names)]
    plain = [getattr(thing, "__wrapped__", thing) for thing in found]
    return tuple(t for t in plain if isinstance(t, FunctionType | type) or any(t is s for s in STARTERS))


def _member(module: ModuleType, name: str) -> object:
    """Of ours also what a module imports only when it is asked for."""
    ours = module.__name__.partition(".")[0] in OURS
    return getattr(module, name, None) if ours else vars(module).get(name)


def _is_ours(code: Any) -> bool:
    return code.__module__.partition(".")[0] in OURS


def _functions(code: Any) -> Iterator[FunctionType]:
    bases = [base for base in code.__mro__ if _is_ours(base)] if isinstance(code, type) else []
    for part in [part for base in bases for part in vars(base).values()] or [code]:
        inner = getattr(part, "fget", getattr(part, "__func__", part))  # of a property, of a class method
        inner = getattr(inner, "__wrapped__", inner)
        if isinstance(inner, FunctionType):
            yield inner


def _names(code: CodeType) -> Iterator[tuple[str, ...]]:
    yield code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
