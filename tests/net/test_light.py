"""A node of an installation without torch: it serves what its kernels know, and says what else would need."""

from __future__ import annotations

import json
import shutil
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import swarm
from node.native import build
from tests.support.local_swarm import LOOPBACK, wait_for_news
from tests.support.processes import Process, Processes

pytestmark = pytest.mark.net

TINY = Path("swarm/models/tiny").resolve()
ROOT = Path(__file__).parents[2]
PROMPT = "one two three four"
NEW_TOKENS = 32


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """There have to be kernels."""
    if not build.build():
        pytest.skip("there is no C compiler here, so there are no native kernels to test")


def start(processes: Processes, home: Path, model: Path, extras: str, *more: str) -> Process:
    """A node of an installation with these extras."""
    words = ["node", "--json", "--model", str(model), "--home", str(home), "--listen", LOOPBACK, *more]
    return processes.start(
        [sys.executable, "-m", "tests.support.bare", extras, *words], cwd=ROOT, name="node"
    )


@cache
def generated(ids: tuple[int, ...]) -> list[int]:
    """What transformers makes of the model that ships."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    output = model.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False)
    found: list[int] = output[0, len(ids) :].tolist()
    return found


async def test_a_node_without_torch_serves_the_model_that_ships(processes: Processes, tmp_path: Path) -> None:
    """And says what transformers says, greedily."""
    process = start(processes, tmp_path, TINY, "node", "--layers", "0:8", "--threads", "1")
    addr = wait_for_news(process, "ready").fields["addrs"][0]
    assert "native " in wait_for_news(process, "serving").text
    async with swarm.connect(addr) as client:
        ids = tuple(await client.text.encode(PROMPT))
        generation = client.generate(list(ids), max_new_tokens=NEW_TOKENS)
        async for _ in generation:
            pass
        assert list(generation.answer.tokens) == generated(ids)


def test_what_would_need_torch_is_one_line(processes: Processes, tmp_path: Path) -> None:
    """What is missing, how to get it, and why."""
    folder = Path(shutil.copytree(TINY, tmp_path / "strange"))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    process = start(processes, tmp_path, folder, "node")
    process.wait_for_line(
        r"needs torch, transformers, safetensors: pip install .* \(models of type 'gpt2'", 60
    )
    assert process.wait(60) == 2
