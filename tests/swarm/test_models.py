"""`swarm models`: what is shown of what is kept, and what removing says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from node.store.cache import Cache
from swarm.cli.app import app_of
from swarm.cli.models import table
from swarm.cli.terminal import open_terminal
from tests.node.fakes import MANIFEST
from tests.node.fetch.conftest import make_stage


def said(*args: str) -> str:
    """By the command, which ends well."""
    done = CliRunner().invoke(app_of("models"), ["models", *args], catch_exceptions=False)
    assert done.exit_code == 0
    return str(done.output)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where everything of this user is."""
    monkeypatch.setenv("SWARM_HOME", str(tmp_path))
    return tmp_path


def test_nothing_is_kept(home: Path) -> None:
    """A line for people, an empty list for programs."""
    assert said() == "no model from peers is kept here\n"
    assert json.loads(said("--json")) == {"models": []}


def test_a_model_is_listed_and_removed(home: Path) -> None:
    """With its name, the first digits of its digest, and what it takes; then it is gone."""
    cache, stage = Cache(home / "cache"), make_stage({"a": 5})
    cache.keep_files("org/tiny", MANIFEST, {"config.json": b"{}"})
    assert json.loads(said("--json")) == {"models": []}  # small files alone, as clients have them
    stage.whole(cache.stage(MANIFEST.digest, 0, stage.digest).folder).close()
    assert "org/tiny" in said()
    (listed,) = json.loads(said("--json"))["models"]
    assert (listed["name"], listed["digest"]) == ("org/tiny", MANIFEST.digest.hex())
    assert said("rm", "tiny").startswith(f"removed org/tiny ({MANIFEST.digest.hex()[:12]}), ")
    assert json.loads(said("--json")) == {"models": []}


def test_when_a_model_was_used() -> None:
    """In days, or now."""
    day = 86_400.0
    model = {
        "name": "tiny",
        "digest": "ab" * 32,
        "stages": 1,
        "size": 5 << 30,
        "used_at": 0.0,
        "in_use": False,
    }
    times = {10.0: "today", day + 1: "1 day ago", 3.5 * day: "3 days ago", -5.0: "today"}
    for now, used in times.items():
        assert list(table([model], now, open_terminal()).columns[4].cells) == [used]
    assert list(table([{**model, "in_use": True}], 9 * day, open_terminal()).columns[4].cells) == ["now"]
