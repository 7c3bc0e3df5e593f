"""The memory of weights that were used: whole files, and nothing odd in them does harm."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.errors import ConfigError
from swarm.routing.weightstore import FolderStore, _parse

MODEL = bytes(range(32))
ONE, OTHER = b"weights1", b"weights2"


def test_what_was_kept_stands(tmp_path: Path) -> None:
    """Stages are added, not changed; anew replaces all."""
    store = FolderStore(tmp_path / "weights")
    assert store.load(MODEL) == {}
    store.save(MODEL, {0: ONE, 1: ONE}, False)
    store.save(MODEL, {1: OTHER, 2: OTHER}, False)
    assert store.load(MODEL) == {0: ONE, 1: ONE, 2: OTHER}
    store.save(MODEL, {1: OTHER}, True)
    assert FolderStore(tmp_path / "weights").load(MODEL) == {1: OTHER}
    assert store.load(bytes(32)) == {}


def test_the_largest_model_fits(tmp_path: Path) -> None:
    """Every stage that can be."""
    store, whole = FolderStore(tmp_path), dict.fromkeys(range(limits.STAGES), ONE)
    store.save(MODEL, whole, False)
    assert store.load(MODEL) == whole


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"stages": {}}',
        b'{"format": "swarm weights 2", "stages": {}}',
        b'{"format": "swarm weights 1"}',
        b'{"format": "swarm weights 1", "stages": {"0": 5}}',
        b'{"format": "swarm weights 1", "stages": {"0": "zz"}}',
        b'{"format": "swarm weights 1", "stages": {"-1": "0011223344556677"}}',
        b'{"format": "swarm weights 1", "stages": {"9999": "0011223344556677"}}',
        b"[" * 20_000,
        b" " * 10_000_000,
    ],
)
def test_an_odd_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    """What is not ours is refused with its place, and the next use writes over it."""
    store = FolderStore(tmp_path)
    path = tmp_path / f"{MODEL.hex()}.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        store.load(MODEL)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    store.save(MODEL, {0: ONE}, False)
    assert store.load(MODEL) == {0: ONE}


def test_a_disk_that_takes_nothing_is_no_error(tmp_path: Path) -> None:
    """A folder in the file's place, or a file in the folder's."""
    (tmp_path / f"{MODEL.hex()}.json").mkdir()
    FolderStore(tmp_path).save(MODEL, {0: ONE}, False)
    assert [path.name for path in tmp_path.iterdir()] == [f"{MODEL.hex()}.json"]
    with pytest.raises(ConfigError):
        FolderStore(tmp_path).load(MODEL)
    (tmp_path / "plain").write_text("")
    FolderStore(tmp_path / "plain").save(MODEL, {0: ONE}, False)


def test_the_files_are_the_users_own(tmp_path: Path) -> None:
    """Nobody else reads which models somebody uses."""
    FolderStore(tmp_path / "weights").save(MODEL, {0: ONE}, False)
    assert stat.S_IMODE((tmp_path / "weights").stat().st_mode) == 0o700
    assert stat.S_IMODE(next((tmp_path / "weights").iterdir()).stat().st_mode) == 0o600


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.binary(max_size=200) | values.map(lambda v: json.dumps(v).encode()), values)
def test_any_bytes_are_stages_or_refused(data: bytes, stages: object) -> None:
    """Nothing else comes out of reading."""
    for content in (data, json.dumps({"format": "swarm weights 1", "stages": stages}).encode()):
        try:
            found = _parse(content)
        except ValueError:
            continue
        assert all(0 <= stage < limits.STAGES and len(found[stage]) == 8 for stage in found)
