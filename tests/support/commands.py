"""`swarm ...` as its users run it: a process, in an empty home, with what it wrote and its status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.forge import shared

WITHIN_S = 60.0


def run(*args: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command that the forge starts, nothing on its standard input."""
    env = _environment(home, environment)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull, "rb") as nothing:
        process = shared().spawn(args, [file.fileno() for file in (nothing, out, err)], env)
        try:
            status = process.wait(WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        said = [os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode() for file in (out, err)]
    return subprocess.CompletedProcess(args, status, *said)


def run_afresh(*args: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same with a Python of its own and pipes to it, where how a command starts is a part of the test."""
    return subprocess.run(
        [sys.executable, "-m", "swarm", *args],
        env=_environment(home, environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )


def _environment(home: Path, more: dict[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "SWARM_JOIN"}
    return {**inherited, "SWARM_HOME": str(home), "COLUMNS": "200", **more}
