"""What is kept of models, how it is found, and what makes room."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from node.store.cache import Cache, choose, default_folder
from node.store.stage import INVENTORY
from protocol.errors import ConfigError
from tests.node.fakes import MANIFEST
from tests.node.fetch.conftest import MIB, Stage, make_stage

MODEL = MANIFEST.digest


def put(cache: Cache, number: int, used_at: float) -> Stage:
    """A stage of two MiB that was used at that time."""
    stage = make_stage({"a": 2 * MIB}, seed=number)
    paths = cache.stage(MODEL, number, stage.digest)
    stage.whole(paths.folder, number).close()
    os.utime(paths(INVENTORY), (used_at, used_at))
    return stage


def left(cache: Cache) -> list[int]:
    """The stages that are there."""
    return [
        int(path.name[:4]) for path in sorted((cache.model_folder(MODEL) / "stages").glob(f"*{INVENTORY}"))
    ]


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    """As much as is needed, and never what is to stay, though it is the oldest."""
    cache = Cache(tmp_path, 9 * MIB)
    for number in range(4):
        put(cache, number, 1000.0 + number)
    keep = next((cache.model_folder(MODEL) / "stages").glob(f"0000-*{INVENTORY}"))
    gone = cache.make_room(2 * MIB, [keep])
    assert [path.name[:4] for path in gone] == ["0001"]
    assert left(cache) == [0, 2, 3]


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    """A node that serves a stage keeps it on the disk, whatever others need."""
    cache = Cache(tmp_path, 5 * MIB)
    stage = put(cache, 0, 1000.0)
    put(cache, 1, 2000.0)
    with stage.file(cache.stage(MODEL, 0, stage.digest).folder, 0):
        with pytest.raises(ConfigError, match=r"the weights take 4 MiB, for which .* lacks"):
            cache.make_room(4 * MIB, [])
        assert left(cache) == [0, 1]  # nothing goes in vain
        (kept,) = cache.models()
        assert kept.in_use
        with pytest.raises(ConfigError, match="is in use"):
            cache.remove(kept)
    cache.remove(kept)
    assert cache.models() == []


def test_more_than_there_may_be(tmp_path: Path) -> None:
    """Nothing is removed in vain where the bound itself is too low, or the disk too small."""
    with pytest.raises(ConfigError, match="--cache-size"):
        Cache(tmp_path, MIB).make_room(2 * MIB, [])
    with pytest.raises(ConfigError, match="lacks"):
        Cache(tmp_path).make_room(1 << 60, [])


def test_models_are_listed_and_named(tmp_path: Path) -> None:
    """By name, its last part, or the first digits of the digest; a name that others wrote is one plain line."""
    cache = Cache(tmp_path)
    assert cache.models() == []
    folder = cache.keep_files("org/tiny\x1b[2J\n", MANIFEST, {"config.json": b"{}"})
    put(cache, 0, 1000.0)
    (folder / "name.txt").write_bytes(b"org/tiny\x1b[2J\n\xff")
    (tmp_path / "models" / "no digest").mkdir()
    (model,) = cache.models()
    assert "\x1b" not in model.name
    assert (model.digest, model.stages, model.in_use, model.used_at) == (MODEL, 1, False, 1000.0)
    assert model.size_bytes >= 2 * MIB
    assert choose([model], MODEL.hex()[:8]) is model
    assert choose([model], model.name) is model
    with pytest.raises(ConfigError, match="no model 'other' is kept here"):
        choose([model], "other")


def test_the_folder_is_that_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Beside what SWARM_HOME holds, where that is set."""
    monkeypatch.setenv("SWARM_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "cache"
    monkeypatch.delenv("SWARM_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tmp_path in (default_folder(), *default_folder().parents)
