"""`swarm plan`: what is shown of what a model takes. Nothing is loaded, and no swarm entered."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from typer.testing import CliRunner

from protocol.errors import ConfigError
from swarm.cli.app import app_of
from swarm.cli.plan import advice, plan_table
from swarm.cli.terminal import Terminal

TINY = Path(__file__).parents[2] / "swarm" / "models" / "tiny"


def planned(*args: str) -> Any:
    done = CliRunner().invoke(app_of("plan"), ["plan", *args], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def sizes(**given: int | None) -> dict[str, int | None]:
    return {"stored": None, "f32": 4 << 30, "bf16": 2 << 30, "int8": 1000, "int4": 3 << 20, **given}


def found(**changed: Any) -> dict[str, Any]:
    """Of a model that nobody makes, as `node.advice` tells it."""
    serves = {
        "layers": [0, 1],
        "bytes": 9,
        "tokens": 12345,
        "command": "swarm node --model 'a b' --layers 0:1",
    }
    return {
        "model": "a\x1b[31m b",
        "type": "llama",
        "layers": 3,
        "stored_in": "fp8",
        "refused": None,
        "stages": [
            {"stage": "embedding", "layers": None, "bytes": sizes()},
            {"stage": "layer", "layers": [0, 1], "bytes": sizes()},
            {"stage": "layer", "layers": [1, 3], "bytes": sizes(stored=5 << 20)},
            {"stage": "head", "layers": None, "bytes": sizes()},
        ],
        "total": sizes(f32=2 << 40),
        "kv_1000_tokens": sizes(),
        "machines": [{"memory": 16 << 30, "count": {"f32": None, "bf16": 58, "int8": 20, "int4": 1200}}],
        "here": {"free": 8 << 30, "for_weights": 4 << 30, "serves": {"bf16": None, "int8": serves}},
        **changed,
    }


def drawn(given: dict[str, Any], width: int = 120, encoding: str = "utf-8") -> list[str]:
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding=encoding), width=width, no_color=True)
    terminal = Terminal(console, console)
    with console.capture() as capture:
        terminal.show(plan_table(given, terminal), *advice(given, terminal))
    return capture.get().splitlines()


def test_a_row_for_each_kind_of_layer_and_a_line_for_each_precision() -> None:
    """What is not known is left out, what cannot be is said."""
    lines = drawn(found())
    assert "\x1b" not in lines[0]
    words = [line.split() for line in lines]
    assert words[1] == ["stored", "f32", "bf16", "int8", "int4"]
    assert words[2] == ["embedding", "4", "GiB", "2", "GiB", "0.977", "KiB", "3", "MiB"]
    assert words[3][:2] == ["layer", "0"]
    assert words[4][:6] == ["each", "of", "layers", "1:3", "5", "MiB"]
    assert words[6][:6] == ["the", "whole", "model", "2", "TiB", "2"]
    assert words[8] == ["machines", "with", "16", "GiB", "free", "none", "58", "20", "1,200"]
    assert lines[10] == "this machine has 8 GiB free, of it 4 GiB for weights"
    assert lines[11].split() == ["bf16", "not", "one", "layer", "fits"]
    assert lines[12].split("tokens: ") == [
        "  int8  1 layer, room for 12,345 ",
        "swarm node --model 'a b' --layers 0:1",
    ]


def test_why_no_node_takes_it_is_said_in_place_of_commands() -> None:
    """On one line."""
    lines = drawn(found(refused="it is\nquantised"))
    assert lines[-1] == "it is quantised"
    assert not any("swarm node" in line for line in lines)


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_it_fits_a_terminal(width: int, encoding: str) -> None:
    """In any encoding; of 80 columns no figure is cut off."""
    lines = drawn(found(here={"free": 1, "for_weights": 0, "serves": {}}), width, encoding)
    assert all(cell_len(line) <= width for line in lines)
    assert sum("0.977 KiB" in line for line in lines) == 6
    "\n".join(lines).encode(encoding)


def test_the_model_that_ships() -> None:
    """As fields, for two sizes of memory; a folder is named in the command."""
    fields = json.loads(planned("--json", "--memory", "2M", "--memory", "16G", str(TINY)))
    assert (fields["type"], fields["layers"], fields["engine"]) == ("llama", 8, "native")
    assert [machines["memory"] for machines in fields["machines"]] == [2 << 20, 16 << 30]
    few, one = (machines["count"] for machines in fields["machines"])
    assert few["f32"] > few["int8"] > one["int8"] == 1
    file = (TINY / "model.safetensors").read_bytes()
    assert fields["total"]["stored"] == len(file) - 8 - int.from_bytes(file[:8], "little")
    assert fields["here"]["serves"]["int8"]["command"].startswith(f"swarm node --model {TINY} --quant int8")


def test_a_config_by_itself_is_no_model_to_serve() -> None:
    """In the command its place is left to be filled in."""
    text = planned(str(TINY / "config.json"))
    assert "--model MODEL" in text
    assert "machines with" in text


@pytest.mark.parametrize("memory", ["lots", "0G"])
def test_memory_that_is_none_is_told(memory: str) -> None:
    """Before anything is read."""
    with pytest.raises(ConfigError, match="memory"):
        planned("--memory", memory, "nowhere")
