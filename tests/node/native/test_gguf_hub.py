"""GGUF files by hub id: which one is meant, from the cache without a network, and what is fetched from a hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from node.estimate import estimate
from node.native.checkpoint import NativeCheckpoint
from node.native.gguf.header import read_header
from node.native.gguf.places import find_gguf
from node.native.precision import F32
from protocol.errors import ConfigError
from protocol.model import Span
from tests.node.native.test_gguf_files import in_parts
from tests.support.gguf import as_q4_0, as_q8_0, convert, tokenizer_fields, write_gguf
from tests.support.hub import REPOSITORY, REVISION, Hub, serving
from tests.support.models import make_model

WHOLE = Span(0, 6)
# Opens a model as a node does, makes sure of one stage, and says where it lies and what of it is here.
PROGRAM = """
import json, sys
from node.native.checkpoint import NativeCheckpoint
from node.native.precision import F32
from protocol.errors import SwarmError
from protocol.model import Span
try:
    opened = NativeCheckpoint.open(sys.argv[1], F32)
    sizes = [opened.stage_bytes(stage, "f32") for stage in range(opened.manifest.stages)]
    for stage in map(int, sys.argv[2:]):
        opened.require(Span(stage, stage + 1))
    print(json.dumps({"name": opened.name, "digest": opened.manifest.digest.hex(), "bytes": sizes}))
except SwarmError as error:
    print(json.dumps({"error": str(error), "kind": type(error).__name__}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of transformers."""
    return make_model("llama", tmp_path_factory.mktemp("model") / "folder", seed=4, head_dim=32)


@pytest.fixture
def repository(folder: Path, tmp_path: Path) -> Path:
    """Files as repositories of GGUF files have them."""
    path = tmp_path / "repository"
    (path / "Q5_K").mkdir(parents=True)
    convert(folder, path / "tiny-Q8_0.gguf", as_q8_0)
    convert(folder, path / "tiny-Q4_K_M.gguf", as_q4_0)
    for part in in_parts(folder, path):
        part.rename(path / "Q5_K" / part.name.replace("model", "tiny-Q5_K"))
    shutil.copy(path / "tiny-Q8_0.gguf", path / "mmproj-tiny-f16.gguf")
    (path / "README.md").write_text("tiny")
    return path


@pytest.fixture
def cache(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub cache in which all of it is, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    kept = tmp_path / "cache" / f"models--{REPOSITORY.replace('/', '--')}"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(REVISION)
    shutil.copytree(repository, kept / "snapshots" / REVISION)
    return os.fspath(tmp_path / "cache")


@pytest.mark.parametrize(
    ("asked", "file"),
    [
        (f"{REPOSITORY}:Q8_0", "tiny-Q8_0.gguf"),
        (f"{REPOSITORY}:q4_k_m", "tiny-Q4_K_M.gguf"),
        (f"{REPOSITORY}:Q5_K", "Q5_K/tiny-Q5_K-00001-of-00002.gguf"),
        (f"{REPOSITORY}/tiny-Q8_0.gguf", "tiny-Q8_0.gguf"),
        (f"{REPOSITORY}/Q5_K/tiny-Q5_K-00001-of-00002.gguf", "Q5_K/tiny-Q5_K-00001-of-00002.gguf"),
    ],
)
def test_one_of_several_is_named_by_what_is_its_own(
    asked: str, file: str, repository: Path, cache: str
) -> None:
    """Or by all of its name; it is the model of that file, without a network too."""
    opened = NativeCheckpoint.open(asked, F32, cache_dir=cache)
    same = NativeCheckpoint.open(str(repository / file), F32)
    assert opened.manifest == same.manifest
    assert opened.stage_digests(WHOLE) == same.stage_digests(WHOLE)
    assert opened.name == same.name
    assert "-of-" not in opened.name


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (REPOSITORY, r"several GGUF files; name one of them: .*/Q5_K/.*00001-of-00002\.gguf, .*Q4_K_M.*Q8_0"),
        (f"{REPOSITORY}:Q6_K", r"no GGUF file with Q6_K in its name; there are .*Q4_K_M"),
        (f"{REPOSITORY}:tiny", r"tiny is in several names; name one of them"),
    ],
)
def test_several_and_none_named_is_one_line_that_lists_them(asked: str, says: str, cache: str) -> None:
    """Projectors and later parts are no models."""
    with pytest.raises(ConfigError, match=says) as caught:
        find_gguf(asked, cache)
    assert "\n" not in str(caught.value)
    assert "mmproj" not in str(caught.value)
    assert "00002-of" not in str(caught.value)


def test_a_repository_with_one_is_that_one(repository: Path, cache: str) -> None:
    """Whatever else lies in it; an estimate is made of it too."""
    kept = Path(cache) / f"models--{REPOSITORY.replace('/', '--')}" / "snapshots" / REVISION
    (kept / "tiny-Q4_K_M.gguf").unlink()
    shutil.rmtree(kept / "Q5_K")
    file = str(repository / "tiny-Q8_0.gguf")
    assert (
        NativeCheckpoint.open(REPOSITORY, F32, cache_dir=cache).manifest
        == NativeCheckpoint.open(file, F32).manifest
    )
    assert estimate(REPOSITORY, cache_dir=cache) == estimate(file)


def test_a_repository_with_a_config_is_no_gguf_model(cache: str) -> None:
    """Unless its file is asked for."""
    kept = Path(cache) / f"models--{REPOSITORY.replace('/', '--')}" / "snapshots" / REVISION
    (kept / "config.json").write_text("{}")
    assert find_gguf(REPOSITORY, cache) is None
    assert find_gguf(f"{REPOSITORY}:Q8_0", cache) is not None


def test_what_is_not_there_is_no_gguf_model(cache: str) -> None:
    """A repository that was never fetched is told so at once; a folder is none of the hub's."""
    with pytest.raises(ConfigError, match="the hub cannot be reached"):
        find_gguf("someone/else", cache)
    assert find_gguf("folder/model.gguf", cache) is None
    assert find_gguf("./folder/model.gguf", cache) is None
    with pytest.raises(ConfigError, match="cannot be fetched"):
        find_gguf("someone/else:Q8_0", cache)


def ask(
    hub: Hub, home: Path, model: str, stages: Sequence[int] = (), *, offline: str = "0"
) -> dict[str, Any]:
    """What the program says that asks this hub."""
    environment = {**os.environ, **hub.environment, "HF_HOME": str(home), "HF_HUB_OFFLINE": offline}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, model, *map(str, stages)],
        env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_only_parts_with_the_span_are_fetched(folder: Path, tmp_path: Path) -> None:
    """What else there is is known from the beginnings of the others, sizes in memory too."""
    path = tmp_path / "repository"
    path.mkdir()
    first, second = in_parts_by_stage(folder, path)
    with serving(path) as hub:
        said = ask(hub, tmp_path / "home", REPOSITORY)
        assert 0 < hub.sent[second] < (path / second).stat().st_size / 2
        before = hub.sent[first]
        again = ask(hub, tmp_path / "home", REPOSITORY, [1, 2])
        assert again == said
        assert hub.sent[first] - before >= (path / first).stat().st_size
        whole = NativeCheckpoint.open(str(path), F32)
        assert said["digest"] == whole.manifest.digest.hex()
        assert said["bytes"] == [whole.stage_bytes(stage, "f32") for stage in WHOLE]
        kept = {file.name for file in (tmp_path / "home").rglob("*.gguf")}
        assert kept == {first}
        # Without the hub nobody knows what is in the other.
        said = ask(hub, tmp_path / "home", f"{REPOSITORY}/{first}", offline="1")
        assert second in said["error"]


def in_parts_by_stage(folder: Path, path: Path) -> tuple[str, str]:
    """The checkpoint in two parts, the first with the embedding and the first layers; the other one is long."""
    whole = convert(folder, path / "whole.gguf", as_q8_0)
    header, data = read_header(whole), whole.read_bytes()
    whole.unlink()
    fields = {key: value for key, value in header.metadata.items() if not key.startswith("tokenizer")}
    fields |= {**tokenizer_fields(folder), "split.count": 2}
    names = "tiny-00001-of-00002.gguf", "tiny-00002-of-00002.gguf"
    for number, name in enumerate(names):
        some = {
            own: (8 if entry.type == "Q8_0" else 0, entry.shape, data[entry.start : entry.stop])
            for own, entry in header.tensors.items()
            if own.startswith(("blk.2", "blk.3", "output")) == bool(number)
        }
        write_gguf(path / name, {"split.count": 2} if number else fields, some)
    with (path / names[1]).open("ab") as file:
        file.write(bytes(1 << 20))
    return names


def test_a_hub_that_lacks_it_is_told(tmp_path: Path) -> None:
    """In one line."""
    (tmp_path / "README.md").write_text("nothing here")
    with serving(tmp_path) as hub:
        assert "no config.json" in ask(hub, tmp_path / "home", REPOSITORY)["error"]
        assert ask(hub, tmp_path / "home", f"{REPOSITORY}:Q8_0")["kind"] == "ConfigError"
        assert "is missing" in ask(hub, tmp_path / "home", f"{REPOSITORY}/a.gguf")["error"]


def test_a_hub_that_gives_less_than_is_asked_for_is_told(repository: Path, tmp_path: Path) -> None:
    """It is asked a few times, for more each time."""
    with serving(repository) as hub:
        hub.most_bytes = 100
        assert "its header never ends" in ask(hub, tmp_path / "home", f"{REPOSITORY}:Q8_0")["error"]
        assert hub.sent["tiny-Q8_0.gguf"] < 1000
