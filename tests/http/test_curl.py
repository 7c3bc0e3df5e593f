"""curl against a swarm, by the program that `scripts/clients/run.py` runs; the other clients are tried by hand."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from swarm.cli.demo_nodes import shipped_model
from tests.http.swarm import real_api

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine"),
]
PROGRAM = Path(__file__).parents[2] / "scripts" / "clients" / "programs" / "curl.sh"


def test_curl() -> None:
    """Whole, streamed, JSON of a schema, and what is refused."""
    with real_api(shipped_model()) as found:
        model = found.serving.service.model
        asked = ["bash", str(PROGRAM), found.url, model, "What is the capital of France?", "Paris"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
