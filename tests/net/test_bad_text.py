"""Nodes that hand out a hostile tokenizer or chat template: one error for the client, which goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

import swarm
from protocol.errors import RemoteProtocolError
from tests.support.inprocess import running_nodes
from tests.support.models import make_model
from tests.support.waiting import block_until

pytestmark = [pytest.mark.net, pytest.mark.timeout(180)]

LAYERS = 2
DOUBLE = {"type": "Replace", "pattern": {"String": "o"}, "content": "oo"}
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def hostile_model(folder: Path, template: str | None = None, **parts: Any) -> Path:
    """A sound checkpoint but for its chat template, or these parts of its tokenizer."""
    make_model("llama", folder, seed=3, layers=LAYERS)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [DOUBLE] * 40}},
        {"normalizer": {"type": "Prepend", "prepend": "o" * 60_000_000}},
        {"template": "{{ ('a' * 99999).translate({97: 'b' * 99999}) }}"},
    ],
    ids=["normaliser", "prefix", "template"],
)
async def test_the_client_outlives_what_nodes_hand_out(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text of the prompt cannot be had; token ids can still be continued by the same client."""
    monkeypatch.setenv("SWARM_HOME", str(tmp_path / "home"))
    folder = hostile_model(tmp_path / "model", **parts)
    async with running_nodes(folder, [(0, LAYERS)]) as addrs, swarm.connect(addrs[0]) as client:
        before = psutil.Process().memory_info().rss
        with pytest.raises(RemoteProtocolError, match="too much"):
            async for _ in client.generate("hello o", chat=True):
                pass
        assert psutil.Process().memory_info().rss - before < 2**28  # the nodes compute in here too
        generation = client.generate([5, 4, 3], max_new_tokens=4)
        async for _ in generation:
            pass
        assert generation.answer.finish_reason == "length"


async def test_ctrl_c_at_a_hostile_template(tmp_path: Path, deadline: Callable[[float], float]) -> None:
    """`swarm generate` ends at once with status 130, and so does the process that was computing for it."""
    folder = hostile_model(tmp_path / "model", LOOPS)

    def interrupted(addr: str) -> int:
        """Ctrl-C once the command's text process computes; the status it ends with."""
        words = [sys.executable, "-m", "swarm", "generate", "hello", "--join", addr]
        command = subprocess.Popen(words, env={**os.environ, "SWARM_HOME": str(tmp_path / "home")})
        try:
            client = psutil.Process(command.pid)
            block_until(lambda: any(c.cpu_times().user > 1.0 for c in client.children()), deadline(60))
            [child] = client.children()
            command.send_signal(signal.SIGINT)
            status = command.wait(deadline(10))
            block_until(lambda: not child.is_running(), deadline(10))
        finally:
            command.kill()
            command.wait()
        return status

    async with running_nodes(folder, [(0, LAYERS)]) as addrs:
        assert await trio.to_thread.run_sync(interrupted, addrs[0]) == 130
