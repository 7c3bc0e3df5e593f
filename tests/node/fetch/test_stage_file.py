"""Stages on a disk: resumed, spoilt, too large for it, and what else is in the folder."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from node.engine.shards import read_header
from node.store.stage import PART, WHOLE, InUse, StageFile, StagePaths
from protocol.errors import ConfigError
from tests.node.fetch.conftest import MIB, Stage, make_stage

ROOT = Path(__file__).parents[3]


def test_a_stage_becomes_a_safetensors_file(stage: Stage, tmp_path: Path) -> None:
    """Once all parcels are here, in whatever order they came; before that there is no file of its name."""
    with stage.file(tmp_path) as file:
        parcels = sorted(file.missing)
        last = [file.put(parcel, stage.parcels[parcel]) for parcel in parcels]
        assert last == [False] * (len(parcels) - 1) + [True]
        assert not file.path.exists()
        file.finish()
        places = file.stored()
    assert read_header(file.path) == {name: tensor for name, (_, tensor) in places.items()}
    with safe_open(file.path, framework="np") as opened:
        for tensor in stage.inventory.tensors:
            expected = b"".join(
                stage.parcels[p.hash] for p in stage.inventory.parcels() if p.tensor == tensor.name
            )
            assert opened.get_tensor(tensor.name).tobytes() == expected
    assert not list(tmp_path.glob(f"*{PART}"))


def test_tensors_can_be_mapped_as_what_they_are(tmp_path: Path) -> None:
    """The widest numbers come first, so every tensor begins at a multiple of its width."""
    odd = make_stage({"a": 3}, dtype="U8").inventory.tensors
    floats = make_stage({"b": 8, "c": 4}, dtype="F32").inventory.tensors
    halves = make_stage({"d": 6}, dtype="BF16").inventory.tensors
    widths = {"U8": 1, "F32": 4, "BF16": 2}
    from protocol.inventory import make_inventory

    inventory = make_inventory({tensor: [bytes(32)] for tensor in (*odd, *floats, *halves)})
    file = StageFile(StagePaths(tmp_path, 0, inventory.digest), inventory)
    for _, tensor in file.stored().values():
        assert tensor.start % widths[tensor.dtype] == 0


def test_what_was_there_is_taken_up_again(stage: Stage, tmp_path: Path) -> None:
    """After an end in the middle: what hashes to what it should counts, what does not is missing."""
    with stage.file(tmp_path) as file:
        first, second, *rest = sorted(file.missing)
        file.put(first, stage.parcels[first])
        file.put(second, bytes(len(stage.parcels[second])))  # half written, or never synced
    with stage.file(tmp_path) as file:
        assert file.missing == {second, *rest}
        assert file.missing_bytes == sum(len(stage.parcels[parcel]) for parcel in (second, *rest))


@pytest.mark.parametrize("left", [b"", b"\0" * 10_000, b"rubbish", b"\xff" * 9_000_000])
def test_what_others_left_there_counts_for_nothing(stage: Stage, left: bytes, tmp_path: Path) -> None:
    """An odd file in the place of one that is being fetched."""
    paths = StagePaths(tmp_path, 0, stage.digest)
    paths(PART).write_bytes(left)
    stage.whole(tmp_path).close()
    with stage.file(tmp_path) as file:
        assert not file.missing


def test_a_file_that_the_disk_has_spoilt_is_mended(stage: Stage, tmp_path: Path) -> None:
    """What is wrong is missing again, and the file has not its name until that is here."""
    stage.whole(tmp_path).close()
    paths = StagePaths(tmp_path, 0, stage.digest)
    data = bytearray(paths(WHOLE).read_bytes())
    data[-MIB - 100] ^= 1
    paths(WHOLE).write_bytes(data)
    with stage.file(tmp_path) as file:
        (wrong,) = file.missing
        assert not paths(WHOLE).exists()
        assert file.put(wrong, stage.parcels[wrong])
        file.finish()
    with stage.file(tmp_path) as file:
        assert not file.missing


def test_one_process_writes_a_stage(stage: Stage, tmp_path: Path) -> None:
    """Another one is told so, until the first is done; then it finds it whole."""
    with stage.file(tmp_path) as file:
        with pytest.raises(InUse):
            stage.file(tmp_path)
        for parcel in list(file.missing):
            file.put(parcel, stage.parcels[parcel])
        file.finish()
        with stage.file(tmp_path) as other:
            assert not other.missing


def test_a_killed_process_leaves_what_it_had(stage: Stage, tmp_path: Path) -> None:
    """SIGKILL between two parcels: the lock is gone with it, and the first parcel is here."""
    first = next(stage.inventory.parcels())
    (tmp_path / "inventory").write_bytes(stage.inventory.encode())
    (tmp_path / "parcel").write_bytes(stage.parcels[first.hash])
    program = """
import os, signal, sys
from pathlib import Path
from node.store.stage import StageFile, StagePaths
from protocol.inventory import parse_inventory
folder, digest, parcel = Path(sys.argv[1]), bytes.fromhex(sys.argv[2]), bytes.fromhex(sys.argv[3])
file = StageFile.open(StagePaths(folder, 0, digest), parse_inventory((folder / "inventory").read_bytes(), digest))
file.put(parcel, (folder / "parcel").read_bytes())
os.kill(os.getpid(), signal.SIGKILL)
"""
    argv = [sys.executable, "-c", program, str(tmp_path), stage.digest.hex(), first.hash.hex()]
    assert subprocess.run(argv, cwd=ROOT, timeout=60).returncode == -signal.SIGKILL
    with stage.file(tmp_path) as file:
        assert file.missing == stage.parcels.keys() - {first.hash}


def test_a_full_disk_is_one_line(stage: Stage, tmp_path: Path) -> None:
    """The system takes no byte beyond a bound, as a full disk would: it is told, and nothing has the final name."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with stage.file(tmp_path) as file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
            parcel = next(
                p.hash for p in stage.inventory.parcels() if p.tensor == "f"
            )  # the last in the file
            with pytest.raises(ConfigError, match=r"weights cannot be kept in .* too large; --cache-dir"):
                file.put(parcel, stage.parcels[parcel])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list(tmp_path.glob(f"*{WHOLE}"))


def test_a_folder_that_cannot_be_is_one_line(stage: Stage, tmp_path: Path) -> None:
    """A file is in its place."""
    (tmp_path / "models").write_bytes(b"")
    with pytest.raises(ConfigError, match="weights cannot be kept"):
        stage.file(tmp_path / "models")


def test_the_header_is_that_of_the_format(stage: Stage, tmp_path: Path) -> None:
    """Tensors follow one another without holes, from the end of a header whose length is a multiple of eight."""
    stage.whole(tmp_path).close()
    data = StagePaths(tmp_path, 0, stage.digest)(WHOLE).read_bytes()
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    ends = sorted(entry["data_offsets"] for entry in entries.values())
    assert [start for start, _ in ends] == [0, *(stop for _, stop in ends[:-1])]
    assert ends[-1][1] == len(data) - 8 - length
    assert os.stat(StagePaths(tmp_path, 0, stage.digest)(WHOLE)).st_mode & 0o077 == 0
