"""Checkpoints by hub id, from huggingface_hub's cache on disk, without a network."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from node.engine.checkpoint import Checkpoint
from node.engine.span import SpanEngine
from node.estimate import estimate
from protocol.errors import BadCheckpoint, ConfigError
from protocol.model import Span
from tests.node.engine.conftest import Tiny

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def cache_of(folder: Path, where: Path) -> Path:
    """A hub cache that holds the folder's files as the repository someone/tiny."""
    repository = where / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    shutil.copytree(folder, repository / "snapshots" / REVISION)
    return where


def test_a_cached_repository_is_the_folder_it_was_made_from(tiny: Tiny, tmp_path: Path) -> None:
    """The same digests, under its own name."""
    cache = cache_of(tiny("llama"), tmp_path)
    checkpoint = Checkpoint.open("someone/tiny", span=Span(1, 3), cache_dir=os.fspath(cache))
    folder = Checkpoint.open(str(tiny("llama")))
    assert checkpoint.name == "someone/tiny"
    assert checkpoint.digest == folder.digest
    assert checkpoint.stage_digests(Span(0, 6)) == folder.stage_digests(Span(0, 6))
    assert SpanEngine.load(checkpoint, Span(1, 3), dtype="f32").weight_bytes


def test_a_single_file_is_read_from_the_cache(tiny: Tiny, tmp_path: Path) -> None:
    """Names of tensors come from its header."""
    cache = cache_of(tiny("llama", False), tmp_path)
    checkpoint = Checkpoint.open("someone/tiny", span=Span(0, 6), cache_dir=os.fspath(cache))
    assert checkpoint.digest == Checkpoint.open(str(tiny("llama"))).digest


def test_what_torch_saved_is_read_from_the_cache(tiny: Tiny, tmp_path: Path) -> None:
    """In a repository without safetensors."""
    cache = cache_of(tiny("llama", False), tmp_path)
    file = cache / "models--someone--tiny" / "snapshots" / REVISION / "model.safetensors"
    torch.save(load_file(file), file.with_name("pytorch_model.bin"))
    file.unlink()
    checkpoint = Checkpoint.open("someone/tiny", span=Span(0, 6), cache_dir=os.fspath(cache))
    assert checkpoint.digest == Checkpoint.open(str(tiny("llama"))).digest


def test_a_shard_that_is_not_cached_is_named(tiny: Tiny, tmp_path: Path) -> None:
    """Off the network only what was fetched before can be served."""
    cache = cache_of(tiny("llama"), tmp_path)
    checkpoint = Checkpoint.open("someone/tiny", cache_dir=os.fspath(cache))
    stored = next(iter(checkpoint.places(5).values()))
    assert isinstance(stored, Path)
    stored.unlink()
    with pytest.raises(BadCheckpoint, match=rf"{stored.name} is missing"):
        checkpoint.require(Span(5, 6))


def test_an_unknown_repository_is_one_line_for_the_user(tmp_path: Path) -> None:
    """No folder, not cached, no network."""
    with pytest.raises(ConfigError, match="the hub cannot be reached") as caught:
        Checkpoint.open("someone/unknown", cache_dir=os.fspath(tmp_path))
    assert "\n" not in str(caught.value)


def test_an_estimate_needs_the_configuration_alone(tiny: Tiny, tmp_path: Path) -> None:
    """Off the network too, if it was fetched before: of all files it is the only one in this cache."""
    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(tiny("deepseek_v3") / "config.json", only)
    cache = cache_of(only, tmp_path / "cache")
    said = estimate("someone/tiny", cache_dir=os.fspath(cache))
    assert said.name == "someone/tiny"
    assert said.footprints == estimate(str(tiny("deepseek_v3"))).footprints
