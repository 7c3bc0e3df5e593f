"""What `docs/decoding.md` shows is true: its Python runs, its command lines are taken."""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

import swarm
from swarm.cli.app import app_of
from swarm.cli.demo_nodes import shipped_model
from swarm.decoding import STRATEGIES
from swarm.generation import Generation
from tests.support.inprocess import running_nodes

DOCUMENT = (Path(__file__).parents[2] / "docs" / "decoding.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL) for line in block.splitlines()
]


@pytest.mark.net
async def test_examples_run() -> None:
    """As they stand, over the shipped model; an answer that is begun there ends."""
    async with (
        running_nodes(shipped_model(), [(0, 4), (4, 8)]) as addrs,
        swarm.connect(addrs[0], remember=False) as client,
    ):
        for source in PYTHON:
            code = compile(source, "docs/decoding.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            names: dict[str, Any] = {"swarm": swarm, "client": client, "ADDRESS": addrs[0]}
            names |= {"amateur": client, "draft": client}
            running = eval(code, names)
            if running is not None:
                await running
            generation = names.get("generation")
            if generation is not None:
                assert isinstance(generation, Generation)
                async for _ in generation:
                    pass
                assert generation.answer.finish_reason != "cancelled"


@pytest.mark.parametrize("line", COMMANDS)
def test_command_lines_are_taken(line: str) -> None:
    """Every option is one that there is."""
    program, command, *args = shlex.split(line)
    assert program == "swarm"
    group = typer.main.get_group(app_of("generate", "chat"))
    group.commands[command].make_context(command, args)


def test_the_document_names_everything() -> None:
    """Every strategy, every setting, and every field of a request."""
    for kind in STRATEGIES.values():
        assert f"`{kind.__name__}`" in DOCUMENT
    for field in fields(swarm.Sampling):
        assert f"`{field.name}`" in DOCUMENT
    for field in fields(swarm.Request):
        assert field.name in DOCUMENT
