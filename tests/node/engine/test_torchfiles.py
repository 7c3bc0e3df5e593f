"""Files that torch.save wrote are read without it: the same tensors, and none of what a pickle can do."""

from __future__ import annotations

import json
import os
import pickle  # noqa: TID251 - what others pickle is what is read here
import pickletools
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from node.engine.checkpoint import Checkpoint
from node.engine.shards import StoredTensor
from node.engine.span import SpanEngine
from node.engine.state_dict import read_state_dict
from node.engine.torchfiles import INDEX_FILE, SINGLE_FILE, read_header
from node.native.checkpoint import NativeCheckpoint
from node.native.load import load_kernel
from node.native.precision import F32
from node.native.sizes import expected
from node.native.weights import Loader
from protocol.errors import BadCheckpoint
from protocol.model import Span
from tests.node.engine.whole import PROMPT, Chain, Whole

Tiny = Callable[..., Path]
WHOLE = Span(0, 6)
DTYPES = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32),
    *(torch.int16, torch.int8, torch.uint8, torch.bool),
)


def raw(path: Path, tensor: StoredTensor) -> bytes:
    """Its bytes."""
    return path.read_bytes()[tensor.start : tensor.stop]


def content(tensor: torch.Tensor) -> bytes:
    """The same of torch's."""
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())


@pytest.fixture
def in_bin(tiny: Tiny, tmp_path: Path) -> Callable[[int], Path]:
    """A checkpoint that was saved by torch, in so many files."""

    def make(files: int) -> Path:
        folder = Path(shutil.copytree(tiny("llama", False), tmp_path / f"bin{files}"))
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        if files == 1:
            torch.save(OrderedDict(tensors), folder / SINGLE_FILE)
            return folder
        named = {name: f"pytorch_model-{i % files}.bin" for i, name in enumerate(sorted(tensors))}
        for file in set(named.values()):
            torch.save({name: tensors[name] for name in tensors if named[name] == file}, folder / file)
        (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": named}))
        return folder

    return make


@pytest.mark.parametrize("files", [1, 3])
def test_it_is_the_model_that_it_is_in_safetensors(
    files: int, tiny: Tiny, in_bin: Callable[[int], Path]
) -> None:
    """The same digests by either engine, and the tokens of transformers."""
    folder, plain = in_bin(files), Checkpoint.open(str(tiny("llama")))
    for opened in (NativeCheckpoint.open(str(folder), F32), Checkpoint.open(str(folder))):
        assert opened.manifest == plain.manifest
        assert opened.stage_digests(WHOLE) == plain.stage_digests(WHOLE)
        assert all(opened.has(stage) for stage in WHOLE)
    whole = Whole(AutoModelForCausalLM.from_pretrained(tiny("llama")).eval())
    assert Chain(Checkpoint.open(str(folder)), [0, 2, 6]).greedy(PROMPT, 5) == whole.greedy(PROMPT, 5)


def test_the_kernels_read_the_same_bits(tiny: Tiny, in_bin: Callable[[int], Path]) -> None:
    """Wherever torch has put the numbers."""
    kernel = load_kernel(1)
    blocks = [
        Loader(NativeCheckpoint.open(str(folder), F32), kernel).block(2)
        for folder in (in_bin(3), tiny("llama"))
    ]
    assert np.array_equal(blocks[0].qkv.codes, blocks[1].qkv.codes)
    assert np.array_equal(blocks[0].out.codes, blocks[1].out.codes)


def test_memory_is_the_files_own(in_bin: Callable[[int], Path]) -> None:
    """Weights in the dtype that they are computed in are mapped, not copied."""
    engine = SpanEngine.load(Checkpoint.open(str(in_bin(1))), Span(1, 2), dtype="f32")
    assert engine.weight_bytes
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        assert SINGLE_FILE in mapped.read_text("utf-8")


def test_a_head_that_is_tied_may_be_stored_as_well(tiny: Tiny, tmp_path: Path) -> None:
    """As torch saves it, both names in one storage; frequencies of older versions do no harm either."""
    folder = Path(shutil.copytree(tiny("gemma2", False), tmp_path / "tied"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    torch.save(tensors, folder / SINGLE_FILE)
    native, other = NativeCheckpoint.open(str(folder), F32), Checkpoint.open(str(folder))
    assert native.plan.tied
    assert expected(native.plan, None)("lm_head.weight") == native.plan.stored
    native.require(WHOLE)
    other.require(WHOLE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_lies_where_it_is_said_to(dtype: torch.dtype, tmp_path: Path) -> None:
    """Parts of a storage, scalars, empty tensors and parameters too."""
    base = torch.arange(60).reshape(12, 5).to(dtype)
    tensors = {"a": base, "part": base[3:7], "row": base[4], "scalar": base[2, 3], "none": base[:0]}
    if dtype.is_floating_point:
        tensors["parameter"] = torch.nn.Parameter(base.clone())
    torch.save(tensors, tmp_path / "x.bin")
    found = read_header(tmp_path / "x.bin")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].shape == tensor.shape
        assert raw(tmp_path / "x.bin", found[name]) == content(tensor.detach())


def test_state_dicts_of_modules_have_attributes(tmp_path: Path) -> None:
    """Which are left out, as is what any other protocol of pickles adds."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    for protocol in (2, 3, 4, 5):
        torch.save(module.state_dict(), tmp_path / "x.bin", pickle_protocol=protocol)
        assert read_header(tmp_path / "x.bin").keys() == module.state_dict().keys()


def test_rows_that_lie_apart_are_refused(tmp_path: Path) -> None:
    """They are no run of bytes."""
    torch.save({"turned": torch.zeros(3, 4).T}, tmp_path / "x.bin")
    with pytest.raises(BadCheckpoint, match="turned has its rows apart: save it as safetensors"):
        read_header(tmp_path / "x.bin")


def test_older_files_are_said_to_be_old(tmp_path: Path) -> None:
    """And what is no such file at all."""
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(BadCheckpoint, match=r"x\.bin: no zip archive, which torch writes since version 1\.6"):
        read_header(tmp_path / "x.bin")
    (tmp_path / "y.bin").write_bytes(b"")
    with pytest.raises(BadCheckpoint, match=r"y\.bin: no zip archive"):
        read_header(tmp_path / "y.bin")
    with pytest.raises(BadCheckpoint, match=r"z\.bin: cannot be read"):
        read_header(tmp_path / "z.bin")


class _Runs:
    """What runs as it is loaded."""

    def __init__(self, called: Callable[..., object], *given: Any) -> None:
        self._reduced = called, given

    def __reduce__(self) -> Any:
        return self._reduced


def archive(path: Path, pickled: bytes, **more: bytes) -> Path:
    """A zip archive as torch's, of these parts."""
    with zipfile.ZipFile(path, "w") as file:
        for name, data in {"data.pkl": pickled, **more}.items():
            file.writestr(f"archive/{name}", data)
    return path


@pytest.mark.parametrize(
    "value",
    [
        _Runs(os.system, "touch ran"),
        _Runs(eval, "1 + 1"),
        _Runs(getattr, "a", "upper"),
        _Runs(torch.zeros, 3),
        _Runs(bytearray, 1 << 40),
        {"a": _Runs(exec, "raise SystemExit")},
        OrderedDict(a=_Runs(os.getcwd)),
        np.zeros(3),
        {"a": {1, 2}},
        complex(1, 2),
    ],
)
def test_nothing_is_called(value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a pickle names."""
    monkeypatch.chdir(tmp_path)
    for protocol in range(2, 6):
        path = archive(tmp_path / "x.bin", pickle.dumps(value, protocol))
        with pytest.raises(BadCheckpoint, match=r"x\.bin: its pickle (calls|has the instruction)") as caught:
            read_header(path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([1, 2], "no dictionary of tensors"),
        ({"a": 1}, "'a', which is no tensor"),
        ({1: 1}, "'1', which is no tensor"),
        ({"a": {"b": 1}}, "'a', which is no tensor"),
        ({("a",): 1}, "makes no sense"),
    ],
)
def test_what_is_no_state_dict_is_said(value: object, said: str) -> None:
    """Harmless, and nothing to load."""
    with pytest.raises(ValueError, match=said):
        read_state_dict(pickle.dumps(value, 2))


def test_pickles_that_grow_are_bounded(tmp_path: Path) -> None:
    """Deep ones, ones that name a place in the memo far away, and ones that are compressed."""
    deep = b"\x80\x02)" + b"\x85" * 200_000 + b"."
    with pytest.raises(ValueError, match="no dictionary"):
        read_state_dict(deep)
    as_key = b"\x80\x02})" + b"\x85" * 200_000 + b"Ns."
    with pytest.raises(ValueError, match="makes no sense"):
        read_state_dict(as_key)
    assert read_state_dict(b"\x80\x02}r\xff\xff\xff\x7f.") == {}
    with zipfile.ZipFile(tmp_path / "x.bin", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(1 << 24))
    with pytest.raises(BadCheckpoint, match=r"data\.pkl is compressed, or too large"):
        read_header(tmp_path / "x.bin")


def test_archives_that_lie_are_refused(tmp_path: Path) -> None:
    """About their parts, their sizes and where these are."""
    path = tmp_path / "x.bin"
    torch.save({"a": torch.arange(1000.0)}, path)
    with zipfile.ZipFile(path) as file:
        pickled = next(file.read(name) for name in file.namelist() if name.endswith("data.pkl"))
    for more, said in (
        ({}, "data/0, which is missing"),
        ({"data/0": bytes(100)}, "a goes beyond its 100 bytes"),
        ({"data/0": bytes(4000), "byteorder": b"big"}, "the other way round"),
        ({"data/0": bytes(4000), "deeper/data.pkl": pickled}, "2 files named data.pkl"),
    ):
        with pytest.raises(BadCheckpoint, match=said):
            read_header(archive(path, pickled, **more))
    whole = archive(path, pickled, **{"data/0": bytes(4000)}).read_bytes()
    assert read_header(path)["a"].shape == (1000,)
    for cut in (10, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(BadCheckpoint, match="cut off"):
            read_header(path)
    path.write_bytes(whole + b"after")
    with pytest.raises(BadCheckpoint, match="cut off"):
        read_header(path)


@given(st.data())
def test_damaged_files_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """With any bytes of theirs changed: what is read lies inside the file."""
    path = tmp_path_factory.mktemp("fuzz") / "x.bin"
    torch.save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2, dtype=torch.int8)}, path)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(whole) - 1) | st.integers(-700, -1))
        whole[at] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        found = read_header(path)
    except BadCheckpoint as error:
        assert "\n" not in str(error)  # noqa: PT017 - either is right
        return
    assert all(0 <= tensor.start <= tensor.stop <= len(whole) for tensor in found.values())


OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]


@given(st.lists(st.sampled_from(OPCODES) | st.binary(max_size=9), max_size=40))
def test_any_pickle_is_a_dictionary_of_tensors_or_a_value_error(pieces: list[bytes]) -> None:
    """Also of instructions in any order."""
    try:
        found = read_state_dict(b"\x80\x02" + b"".join(pieces) + b".")
    except ValueError:
        return
    assert isinstance(found, dict)
