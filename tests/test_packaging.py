"""What is declared agrees with itself: every dependency is pinned, and every script is short and safe."""

import os
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
BASH_SCRIPTS = [
    path
    for path in sorted((*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"))
    if path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env bash")
]


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    """The versions in constraints.txt, by normal name."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {normal(name): version for name, version in pairs}


def test_every_dependency_is_pinned() -> None:
    """Each distribution that the project names, extras included, has a version in constraints.txt."""
    named = [
        *PROJECT["dependencies"],
        *(d for extra in PROJECT["optional-dependencies"].values() for d in extra),
    ]
    missing = [d for d in named if normal(re.split(r"[<>=!~; \[]", d)[0]) not in pins()]
    assert missing == []


def test_exact_dependencies_agree_with_their_pins() -> None:
    """Where the project asks for one exact version, constraints.txt has that one."""
    named = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["torch"]]
    exact = dict(d.split("==") for d in named if "==" in d)
    assert exact == {name: pins()[normal(name)] for name in exact}
    assert {"libp2p", "aioquic", "transformers"} <= set(exact)


@pytest.mark.parametrize("path", BASH_SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_short_executable_and_stop_at_errors(path: Path) -> None:
    """Under 20 lines, executable, and `set -euo pipefail`."""
    text = path.read_text("utf-8")
    assert len(text.splitlines()) < 20
    assert "set -euo pipefail" in text
    assert os.access(path, os.X_OK)


def test_an_image_runs_as_nobody_in_particular() -> None:
    """A number that no host gives to anybody, set before anything is run; and what it copies is not left out."""
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    assert lines.index("USER 10001") < next(
        n for n, line in enumerate(lines) if line.startswith("ENTRYPOINT")
    )
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    copied = {
        name
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for name in line.split()[1:-1]
    }
    assert {f"!{name}" for name in copied} == {line for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
