"""One of three nodes serves another head under the model's name, and strangers vouch for it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.attack.arena import Arena
from tests.attack.conftest import SHIPPED, running
from tests.support.forge import Forge
from tests.support.local_swarm import LocalSwarm

pytestmark = [pytest.mark.attack, pytest.mark.timeout(480)]

HEAD = "lm_head.weight"


@pytest.fixture
def nodes(forge: Forge) -> Iterator[LocalSwarm]:
    """Two honest nodes of the whole model."""
    with running(forge, SHIPPED, ("0:8", "0:8")) as started:
        yield started


@pytest.fixture
def odd(forge: Forge, nodes: LocalSwarm, tmp_path: Path) -> Iterator[LocalSwarm]:
    """A third one whose head gives every token its neighbour's logit."""
    folder = shutil.copytree(SHIPPED, tmp_path / "odd")
    tensors = load_file(folder / "model.safetensors")
    tensors[HEAD] = tensors[HEAD].roll(1, 0).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with running(forge, folder, ("0:8",), join=nodes.join) as started:
        yield started


async def test_strangers_do_not_outvote_the_honest(arena: Arena, odd: LocalSwarm) -> None:
    """However many confirm the wrong weights, answers are those of the honest majority."""
    wrong = odd.nodes[0]
    harm = await arena.endure("vouchers", seconds=6.0, addrs=[*arena.addrs, wrong.addr], odd=wrong.peer)
    harm.check()


async def test_strangers_who_listen_do_not_either(arena: Arena, odd: LocalSwarm) -> None:
    """The same where each of them can be met."""
    wrong = odd.nodes[0]
    harm = await arena.endure(
        "listening_vouchers", seconds=6.0, addrs=[*arena.addrs, wrong.addr], odd=wrong.peer
    )
    harm.check()
