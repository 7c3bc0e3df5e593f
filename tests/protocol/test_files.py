"""Files appear whole or not at all, and who cannot write one leaves nothing behind."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.errors import ConfigError
from protocol.files import write_whole
from protocol.keyfile import load_or_create
from protocol.model import Manifest
from protocol.talk import modelfiles
from swarm.cli import joined
from tests.cli.test_usage import NOBODY

LIMIT_BYTES = 20


def _on_a_full_disk(write: Callable[[Path], None], folder: Path) -> None:
    """No file may grow beyond a few bytes: what a disk is that fills up in the middle of a write."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, LIMIT_BYTES))
    write(folder)


def _write(folder: Path) -> None:
    with pytest.raises(OSError, match="too large"):
        write_whole(folder / "x", bytes(2 * LIMIT_BYTES))


def _make_key(folder: Path) -> None:
    with pytest.raises(ConfigError, match="too large"):
        load_or_create(folder / "key")


def _remember(folder: Path) -> None:
    joined.remember([NOBODY])


def _cache(folder: Path) -> None:
    modelfiles._write(folder, Manifest(1, 1, 1, 1, bytes(32), ()), {"a": bytes(2 * LIMIT_BYTES)})


@pytest.mark.process
@pytest.mark.parametrize("write", [_write, _make_key, _remember, _cache], ids=lambda write: write.__name__)
def test_a_full_disk_keeps_nothing(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of a key nor of what is only remembered; and none of it is a failure but the key's."""
    monkeypatch.setenv("SWARM_HOME", str(tmp_path))
    process = multiprocessing.get_context("fork").Process(target=_on_a_full_disk, args=(write, tmp_path))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_whole_and_private(tmp_path: Path) -> None:
    """It replaces what was there, or keeps it if asked to; nobody else may read it."""
    path = tmp_path / "x"
    write_whole(path, b"one")
    write_whole(path, b"two", replace=False)
    assert path.read_bytes() == b"one"
    write_whole(path, b"three", mode=0o644)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"three", 0o644)
    write_whole(tmp_path / "y", b"", replace=False)
    assert (tmp_path / "y").stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "y"]
