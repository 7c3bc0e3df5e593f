"""One browser for all tests of the page, and one swarm of node processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import pytest
from playwright.sync_api import Browser, expect

from swarm import entry
from swarm.cli.demo_nodes import shipped_model
from swarm.http.serve import serve
from swarm.http.settings import Settings
from swarm.portal import Portal
from tests.page.browser import WITHIN_MS, browser, chromium
from tests.support.forge import Forge
from tests.support.local_swarm import LocalSwarm
from tests.support.processes import Processes

LAYERS = ("0:4", "4:8", "4:8")


@pytest.fixture(scope="package")
def looking() -> Iterator[Browser]:
    """The browser."""
    if chromium() is None:
        pytest.skip("there is no Chromium here: apt-get install chromium fonts-dejavu-core")
    expect.set_options(timeout=WITHIN_MS)
    with browser() as running:
        yield running


@dataclass(frozen=True)
class Served:
    """Node processes and the address of their page."""

    nodes: LocalSwarm
    url: str

    def named(self, peer: str | None) -> int:
        """Which of the nodes that is."""
        return next(n for n, node in enumerate(self.nodes.nodes) if node.peer == peer)


@pytest.fixture(scope="module")
def served(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The model that ships on three nodes, of which one of the last two may die."""
    home = tmp_path_factory.mktemp("page")
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("SWARM_HOME", os.fspath(home / "client"))
        processes = stack.enter_context(Processes(launch=forge.start))
        nodes = LocalSwarm(processes, shipped_model(), home, extra=["--kv-tokens", "8192", "--threads", "1"])
        nodes.start(*LAYERS)
        portal = stack.enter_context(Portal())
        enter = partial(entry.connect, nodes.join)
        serving = stack.enter_context(serve(portal, lambda tell: enter(on_event=tell), Settings(port=0)))
        yield Served(nodes, serving.url)
