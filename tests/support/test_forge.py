"""Processes of a forge are processes like any other, and end with it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.forge import Forge
from tests.support.processes import Processes
from tests.support.waiting import block_until

pytestmark = pytest.mark.net


def test_a_forged_process_is_one_like_any_other(deadline: Callable[[float], float], tmp_path: Path) -> None:
    """It has its own pid and group, prints, exits with a status, is killed; none outlives the forge."""
    swarm = [sys.executable, "-m", "swarm"]
    serving = [*swarm, "node", "--model", "swarm/models/tiny", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1"]
    one, other = ([*serving, "--home", str(tmp_path / name)] for name in ("one", "other"))
    with Forge() as forge, Processes(launch=forge.start) as processes:
        asked = processes.start([*swarm, "--version"])
        assert asked.wait(deadline(60)) == 0
        asked.wait_for_line(r"\d+\.\d+", deadline(5))
        wrong = processes.start([*swarm, "node", "--model", "/nowhere"])
        assert wrong.wait(deadline(20)) == 2
        killed, left = processes.start(one), processes.start(other)
        assert len({asked.pid, wrong.pid, killed.pid, left.pid}) == 4
        killed.wait_for_line("^opening", deadline(20))
        killed.kill9()
        assert killed.returncode == -9
        left.wait_for_line("^opening", deadline(20))
        forge.close()
        block_until(lambda: not psutil.pid_exists(left.pid), deadline(10))
