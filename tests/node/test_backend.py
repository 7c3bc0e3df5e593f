"""Which engine computes: the native one for what it knows completely, torch for the rest, and why is said."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node import backend
from node.backend import open_backend
from node.config import NodeConfig
from node.native import build
from node.native.load import ISA_VARIABLE, usable_object
from protocol.errors import ConfigError

TINY = Path("swarm/models/tiny")
ASKED = NodeConfig(str(TINY), threads=1)


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """There have to be kernels."""
    if not build.build():
        pytest.skip("there is no C compiler here, so there are no native kernels to choose")


@pytest.fixture
def strange(tmp_path: Path) -> NodeConfig:
    """The model that ships, with a field in its config that says nothing to either engine."""
    folder = Path(shutil.copytree(TINY, tmp_path / "strange"))
    config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "new_trick": 1}))
    return replace(ASKED, model=str(folder))


@pytest.mark.parametrize("quant", [None, "int8", "int4"])
def test_what_the_kernels_know_they_compute(quant: str | None) -> None:
    """Without a word from the owner; the states travel in f32."""
    opened = open_backend(replace(ASKED, quant=quant))
    assert opened.kernels().startswith("native ")
    assert opened.dtype() == "f32"


@pytest.mark.parametrize("changed", [{"engine": "torch"}, {"dtype": "f32"}, {"dtype": "bf16"}], ids=str)
def test_torch_computes_where_it_is_asked_for(changed: dict[str, Any]) -> None:
    """By name, or by what it alone has."""
    opened = open_backend(replace(ASKED, **changed))
    assert re.fullmatch(r"torch on cpu(, linear layers by \w+)?: as asked", opened.kernels())
    assert opened.dtype() == changed.get("dtype", "f32")


@pytest.mark.parametrize("device", ["cuda:99", "toaster"])
def test_a_device_that_is_not_there_is_said_in_one_line(device: str) -> None:
    """With what there is."""
    with pytest.raises(ConfigError, match=rf"no device '{device}' here, only cpu"):
        open_backend(replace(ASKED, device=device))


@pytest.mark.parametrize(("isa", "how"), [("avx2", ", linear layers by avx2"), ("plain", "")])
def test_torch_leaves_products_in_fp32_to_the_kernels_where_they_are_faster(
    isa: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain ones are not. In bf16 torch's own are."""
    if usable_object(isa, build.BUILT) is None:
        pytest.skip(f"this processor does not run {isa}")
    monkeypatch.setenv(ISA_VARIABLE, isa)
    assert open_backend(replace(ASKED, dtype="f32")).kernels() == f"torch on cpu{how}: as asked"
    assert open_backend(replace(ASKED, dtype="bf16")).kernels() == "torch on cpu: as asked"


def test_torch_computes_what_the_kernels_do_not_know(strange: NodeConfig) -> None:
    """And the field that they do not know is named."""
    kernels = open_backend(strange).kernels()
    assert kernels.startswith("torch on cpu")
    assert kernels.endswith(": config.json has new_trick, which the native kernels do not know")


def test_torch_computes_where_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And how there would be some is said."""
    monkeypatch.setattr(build, "BUILT", tmp_path)
    assert "python -m node.native.build" in open_backend(ASKED).kernels()
    with pytest.raises(ConfigError, match=r"there are no native kernels here"):
        open_backend(replace(ASKED, engine="native"))


def test_who_insists_on_the_kernels_gets_no_other(strange: NodeConfig) -> None:
    """One line with the reason; fewer bits alone insist on nothing."""
    with pytest.raises(ConfigError, match=r"cannot be served .*new_trick"):
        open_backend(replace(strange, engine="native"))
    assert open_backend(replace(strange, quant="int8")).kernels().startswith("torch on cpu")


def test_without_torch_a_line_says_what_is_missing(
    strange: NodeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where it would compute, and why it would."""
    monkeypatch.setattr(backend, "_TORCH", ("torch_that_is_not_there",))
    assert open_backend(ASKED).kernels().startswith("native ")
    install = r'needs torch_that_is_not_there: pip install "inference-swarm\[node,torch\]" \(config\.json has'
    with pytest.raises(ConfigError, match=install):
        open_backend(strange)


@pytest.mark.parametrize("asked", ["avx2", "neon", "plain", "abacus"])
def test_instructions_that_this_processor_lacks_are_never_run(
    asked: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Asked for by name, they are refused in a line: also where torch might compute instead."""
    # On this processor nothing runs but one kind, says this object; and loading any other would end the process.
    source = tmp_path / "processor.c"
    source.write_text("#include <stdlib.h>\nint native_runs(const char *isa) { return 0; }\n")
    monkeypatch.setattr(build, "BUILT", tmp_path)
    _compile(source, build.object_path("plain", tmp_path))
    source.write_text("#include <stdlib.h>\n__attribute__((constructor)) void run(void) { abort(); }\n")
    for isa in build.isas():
        if isa != "plain":
            _compile(source, build.object_path(isa, tmp_path))
            assert usable_object(isa, tmp_path) is None
    monkeypatch.setenv(ISA_VARIABLE, asked)
    with pytest.raises(
        ConfigError, match=f"{ISA_VARIABLE} asks for {asked}, which is not built, or not for this"
    ):
        open_backend(ASKED)


def _compile(source: Path, into: Path) -> None:
    compiler = build.compiler()
    assert compiler is not None
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(into)], check=True)
