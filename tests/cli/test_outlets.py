"""There is one way to the terminal: the rest of the code cannot go round it. Held by walking the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest

from tests.test_imports import ROOT, sources

# Calls that write, and the file that may make them.
WRITERS = {
    "Console": "swarm/cli/terminal.py",
    "RichHandler": "swarm/cli/logs.py",
    "basicConfig": "swarm/cli/logs.py",
    "echo": "swarm/cli/app.py",
    "print_exc": "",
    "print_exception": "",
    "from_markup": "",
    "input": "swarm/cli/lines.py",
}


def _detours(path: PurePosixPath, source: str) -> Iterator[str]:
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name == "print" and isinstance(call.func, ast.Name):
            bare = not call.args or ast.unparse(call.args[0]).startswith("json.dumps(")
            if not bare or call.keywords:
                yield f"{path}:{call.lineno}: prints what is not JSON"
        elif WRITERS.get(name, str(path)) != str(path):
            yield f"{path}:{call.lineno}: calls {name}"


@pytest.mark.parametrize("package", ["protocol", "node", "swarm"])
def test_nothing_goes_round_the_terminal(package: str) -> None:
    """Every line for people goes through `Terminal`, every record through the one handler."""
    found = [text for path in sources(package) for text in _detours(path, (ROOT / path).read_text("utf-8"))]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "source", ["print(name)", "Console().print(x)", "print('x', file=f)", "typer.echo(x)"]
)
def test_a_detour_is_found(source: str) -> None:
    """The checker itself."""
    assert list(_detours(PurePosixPath("swarm/x.py"), source))
