"""GGUF files as they come: in parts, in folders, quantised, cut off, and lying about themselves."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from node.backend import open_backend
from node.config import NodeConfig
from node.estimate import estimate
from node.native.checkpoint import NativeCheckpoint
from node.native.engine import NativeEngine
from node.native.gguf.header import parse_header, read_header
from node.native.gguf.quants import widen
from node.native.kernel import Kernel
from node.native.packed import Kind
from node.native.precision import F32, INT4, INT8, PRECISIONS, Precision
from node.native.weights import Loader
from protocol.errors import BadCheckpoint, ConfigError, UnsupportedModel
from protocol.model import Span
from tests.node.native.test_gguf import logits
from tests.node.native.test_quant import values
from tests.support.gguf import (
    Store,
    Stored,
    as_f32,
    as_q4_0,
    as_q8_0,
    convert,
    tokenizer_fields,
    write_gguf,
)
from tests.support.models import make_model

WHOLE = Span(0, 6)


def some_of_each(name: str, tensor: NDArray[np.float32]) -> Stored:
    """As files in four bits often are: what most depends on is in more."""
    more = "attn_v" in name or "ffn_down" in name or "token_embd" in name
    return as_q8_0(name, tensor) if more else as_q4_0(name, tensor)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of transformers."""
    path = tmp_path_factory.mktemp("model") / "folder"
    return make_model("llama", path, seed=4, num_attention_heads=4, num_key_value_heads=2, head_dim=32)


@pytest.fixture
def file(folder: Path, tmp_path: Path) -> Path:
    """The same as a GGUF file."""
    return convert(folder, tmp_path / "model.gguf")


@pytest.mark.parametrize("head_dim", [32, 24])
@pytest.mark.parametrize("store", [as_q8_0, as_q4_0, some_of_each])
def test_the_memory_that_a_quantised_file_takes_is_told_before(
    store: Store, head_dim: int, tmp_path: Path, kernel: Kernel
) -> None:
    """Of every stage to the byte, before anything is packed: a node that starts asks for it, and so does a plan."""
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": head_dim}
    folder = make_model("llama", tmp_path / "folder", seed=4, **heads)
    file = convert(folder, tmp_path / "model.gguf", store)
    planned = estimate(str(file))
    for name, precision in PRECISIONS.items():
        model = NativeCheckpoint.open(str(file), precision)
        sizes = [model.stage_bytes(stage, "f32") for stage in WHOLE]
        assert sum(sizes) == NativeEngine.load(model, WHOLE, kernel).weight_bytes
        assert planned.footprints[name].stages == tuple(sizes)
    assert planned.stored is not None
    tensors = read_header(file).tensors.values()
    assert sum(planned.stored) == sum(tensor.stop - tensor.start for tensor in tensors)


def test_a_quantised_file_is_the_model_of_its_dequantised_weights(
    folder: Path, tmp_path: Path, kernel: Kernel
) -> None:
    """In f32, to the bit, also where rows are stored in pairs."""
    file = convert(folder, tmp_path / "model.gguf", as_q8_0)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (other / name).write_bytes((folder / name).read_bytes())
    weights = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        kind, shape, raw = as_q8_0(name, tensor)
        rows = np.frombuffer(raw, np.uint8).reshape(shape[0], -1)
        weights[name] = widen("Q8_0", rows) if kind else tensor
    save_file(weights, other / "model.safetensors")
    assert np.array_equal(logits(file, kernel), logits(other, kernel))


@pytest.mark.parametrize("precision", [INT8, INT4])
def test_four_bits_compute_what_they_stand_for(
    precision: Precision, folder: Path, tmp_path: Path, kernel: Kernel
) -> None:
    """Packed as they are, with steps that rise and that fall, in eight bits too: only the states lose a little."""
    file = convert(folder, tmp_path / "model.gguf", as_q4_0)
    checkpoint = NativeCheckpoint.open(str(file), precision)
    block = Loader(checkpoint, kernel).block(2)
    assert block.down is not None
    assert block.gate_up is not None
    for matrix in (block.qkv, block.out, block.gate_up, block.down):
        assert matrix.kind is Kind.INT4
        assert (matrix.scales.view("<f2") < 0).any()
    expected = checkpoint.rows(
        3, "model.layers.2.self_attn.k_proj.weight"
    )  # of which the rows are stored in pairs
    queries, keys = 4 * 32, 2 * 32
    found = values(block.qkv)[queries : queries + keys]
    assert np.allclose(found, np.concatenate(list(expected.pieces())), rtol=0, atol=1e-6)
    wide, packed = (logits(file, kernel, each) for each in (F32, precision))
    assert np.abs(packed - wide).max() < 0.1 * np.abs(wide).max()


def test_what_is_not_all_in_four_bits_has_eight_where_eight_are_asked_for(
    folder: Path, tmp_path: Path, kernel: Kernel
) -> None:
    """Queries and keys are, and values are not: they are one matrix."""
    file = convert(folder, tmp_path / "model.gguf", some_of_each)
    block = Loader(NativeCheckpoint.open(str(file), INT8), kernel).block(2)
    assert block.gate_up is not None
    assert (block.qkv.kind, block.gate_up.kind) == (Kind.INT8, Kind.INT4)


def test_the_banner_says_what_was_made_of_the_weights(folder: Path, tmp_path: Path) -> None:
    """By the names that GGUF has for types."""
    file = convert(folder, tmp_path / "model.gguf", as_q8_0)
    opened = open_backend(NodeConfig(str(file), threads=1, quant="int8"))
    assert opened.kernels().endswith(", Q8_0 into int8")


def test_a_folder_with_one_file_is_that_file(file: Path) -> None:
    """And with two it has to be said which."""
    named, found = (NativeCheckpoint.open(str(path), F32) for path in (file, file.parent))
    assert named.manifest == found.manifest
    assert named.stage_digests(WHOLE) == found.stage_digests(WHOLE)
    file.with_name("another.gguf").write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match=r"several GGUF files.*another\.gguf"):
        NativeCheckpoint.open(str(file.parent), F32)


def test_where_a_file_lies_is_no_part_of_the_model(file: Path, tmp_path: Path) -> None:
    """Two owners of one file serve one model, whatever they call it."""
    other = tmp_path / "sha256-0123"
    other.write_bytes(file.read_bytes())
    assert NativeCheckpoint.open(str(file), F32).manifest == NativeCheckpoint.open(str(other), F32).manifest


def in_parts(folder: Path, path: Path) -> list[Path]:
    """The checkpoint in two files, the second without metadata of its own."""
    whole = convert(folder, path / "whole.gguf")
    header, data = read_header(whole), whole.read_bytes()
    stored = {n: (0, e.shape, data[e.start : e.stop]) for n, e in header.tensors.items()}
    names = sorted(stored)
    whole.unlink()
    own = {key: value for key, value in header.metadata.items() if not key.startswith("tokenizer")}
    fields = {**own, **tokenizer_fields(folder), "split.count": 2}
    return [
        write_gguf(path / f"model-0000{number}-of-00002.gguf", metadata, {n: stored[n] for n in some})
        for number, metadata, some in ((1, fields, names[::2]), (2, {"split.count": 2}, names[1::2]))
    ]


def test_a_file_in_parts_is_one_model(folder: Path, tmp_path: Path, kernel: Kernel) -> None:
    """Named by its first part, or by the folder; without a part it is no model."""
    first, second = in_parts(folder, tmp_path)
    assert np.allclose(logits(first, kernel), logits(folder, kernel), rtol=1e-4, atol=1e-4)
    assert (
        NativeCheckpoint.open(str(tmp_path), F32).manifest == NativeCheckpoint.open(str(first), F32).manifest
    )
    with pytest.raises(BadCheckpoint, match=r"name the first.*-00001-of-00002\.gguf"):
        NativeCheckpoint.open(str(second), F32)
    second.unlink()
    with pytest.raises(BadCheckpoint, match=r"00002-of-00002\.gguf: cannot be read"):
        NativeCheckpoint.open(str(first), F32)


def test_torch_does_not_read_it(file: Path) -> None:
    """Asked for by name or by what it alone does, it is one line."""
    for asked in (NodeConfig(str(file), engine="torch"), NodeConfig(str(file), dtype="bf16")):
        with pytest.raises(ConfigError, match="GGUF file, which only the native kernels serve"):
            open_backend(asked)


def open_whole(path: Path) -> None:
    """Open it and make sure of all its tensors."""
    checkpoint = NativeCheckpoint.open(str(path), F32)
    checkpoint.require(Span(0, checkpoint.manifest.stages))


def changed(folder: Path, path: Path, **fields: Any) -> Path:
    """The file with other metadata."""
    return convert(folder, path / "changed.gguf", **fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"general__architecture": "mamba"}, "architecture 'mamba'"),
        ({"llama__block_count": 4_000_000_000}, "block_count 4000000000"),
        ({"llama__block_count": 5}, "no tensors for model.layers.4"),
        ({"llama__attention__head_count": 0}, "head_count 0"),
        ({"llama__attention__head_count": 3}, "heads"),
        ({"llama__embedding_length": 96}, "shape"),
        ({"llama__new_trick": 1}, "new_trick"),
        ({"llama__rope__scaling__type": "x" * 70}, "of another form"),
        ({"llama__rope__dimension_count": 16}, "turns 16 numbers of 32"),
        ({"rope_freqs": [1.0, 2.0, 3.0] + [4.0] * 13}, "rope_freqs of a scaling that is not known"),
        ({"general__alignment": 3}, "alignment of 3"),
        ({"split__count": 70_000}, "in 70000 parts"),
        ({"tokenizer__ggml__model": "bert"}, "type 'bert'"),
        ({"tokenizer__ggml__pre": "new"}, "like 'new'"),
        ({"tokenizer__ggml__tokens": ["a", "a[2]", "a"]}, "cannot be told apart"),
        ({"tokenizer__ggml__tokens": ["a" * 600]}, "longer tokens"),
        ({"tokenizer__ggml__tokens": [f"{i}" for i in range(265)]}, "265 tokens"),
        ({"tokenizer__ggml__token_type": [1]}, "token types"),
        ({"tokenizer__ggml__merges": ["a b c"]}, "not of its vocabulary"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(
    folder: Path, tmp_path: Path, fields: Mapping[str, Any], said: str
) -> None:
    """In one line, before any weights are read."""
    path = changed(folder, tmp_path, **fields)
    with pytest.raises((BadCheckpoint, UnsupportedModel), match=said) as error:
        open_whole(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


ODD: list[Any] = [
    0,
    4_294_967_295,
    True,
    -1.0,
    float("nan"),
    "",
    "x" * 5000,
    [],
    ["a"],
    [1.5] * 264,
    [0] * 264,
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: str(odd)[:20])
def test_no_field_is_taken_for_what_it_is_not(folder: Path, tmp_path: Path, odd: Any) -> None:
    """Of any field, any value of another kind: a named error in one line of bounded length, or a model."""
    fields = read_header(convert(folder, tmp_path / "plain.gguf")).metadata
    more = ("rope.scaling.type", "rope.scaling.factor", "expert_count", "attention.sliding_window")
    names = [*fields, "general.alignment", "split.count", *(f"llama.{name}" for name in more)]
    names += [f"tokenizer.ggml.{name}" for name in ("add_bos_token", "scores", "eot_token_id")]
    errors: list[str] = []
    for name in names:
        path = changed(folder, tmp_path, **{name.replace(".", "__"): odd})
        try:
            open_whole(path)
        except (BadCheckpoint, UnsupportedModel) as error:
            errors.append(str(error))
    assert len(errors) > 4
    assert all("\n" not in error and len(error) < 600 for error in errors)


def test_a_beginning_says_what_the_whole_says_or_that_it_goes_on(file: Path) -> None:
    """Wherever it is cut; and a size that no file of this length can hold is told at once."""
    whole, raw = read_header(file), file.read_bytes()
    stop = min(entry.start for entry in whole.tensors.values())
    for cut in (*range(0, stop - 32, 41), *range(stop - 32, stop + 2), len(raw)):
        found = parse_header(raw[:cut], len(raw), "some.gguf")
        if found is None:
            assert cut < stop
        else:
            assert cut > stop - 32
            assert found.tensors == whole.tensors
            assert found.metadata.keys() == whole.metadata.keys()
    with pytest.raises(BadCheckpoint, match=r"some\.gguf: .*cut off"):
        parse_header(raw, stop - 32, "some.gguf")


def header(*, pairs: int = 0, tensors: int = 0, rest: bytes = b"") -> bytes:
    """A file of these counts."""
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs) + rest


def pair(kind: int, rest: bytes) -> bytes:
    """A field named k."""
    return struct.pack("<QcI", 1, b"k", kind) + rest


def tensor(shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    """An entry named t."""
    return struct.pack(f"<QcI{len(shape)}QIQ", 1, b"t", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        b"GGML" + bytes(40),
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        header(pairs=1 << 60),
        header(tensors=1 << 60),
        header(pairs=1, rest=struct.pack("<Q", 1 << 62)),
        header(pairs=1, rest=pair(8, struct.pack("<Q", 1 << 63))),
        header(pairs=1, rest=pair(9, struct.pack("<IQ", 8, 1 << 40))),
        header(pairs=1, rest=pair(9, struct.pack("<IQ", 12, 1 << 61))),
        header(pairs=1, rest=pair(9, struct.pack("<IQ", 9, 1))),
        header(pairs=1, rest=pair(13, bytes(8))),
        header(pairs=2, rest=pair(0, b"1") * 2),
        header(tensors=1, rest=struct.pack("<QcI", 1, b"t", 0)),
        header(tensors=1, rest=struct.pack("<QcI", 1, b"t", 1 << 31)),
        header(tensors=1, rest=tensor((32,), 99, 0)),
        header(tensors=1, rest=tensor((0,), 0, 0)),
        header(tensors=1, rest=tensor((1 << 63, 1 << 63), 0, 0)),
        header(tensors=1, rest=tensor((33,), 8, 0) + bytes(400)),
        header(tensors=1, rest=tensor((32,), 0, 1 << 40)),
        header(tensors=1, rest=tensor((32,), 0, 8) + bytes(400)),
        header(tensors=1, rest=tensor((32,), 0, 0) + bytes(100)),
        header(tensors=2, rest=tensor((32,), 0, 0) * 2 + bytes(400)),
    ],
    ids=lambda data: str(len(data)),
)
def test_a_lie_in_the_header_is_an_error_of_one_line(data: bytes, tmp_path: Path) -> None:
    """Sizes, counts, kinds, places: nothing is taken from the system for what is not in the file."""
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(BadCheckpoint, match=r"model\.gguf: no GGUF file that can be read") as error:
        read_header(path)
    assert "\n" not in str(error.value)


@given(st.data())
def test_broken_files_open_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, folder: Path, data: st.DataObject
) -> None:
    """Cut off anywhere, or with bytes of the header changed: a named error, or a model."""
    path = tmp_path_factory.mktemp("broken") / "model.gguf"
    raw = bytearray(convert(folder, path).read_bytes())
    length = read_header(path).tensors["token_embd.weight"].start
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with contextlib.suppress(BadCheckpoint, UnsupportedModel):
        open_whole(path)


def test_only_what_is_asked_for_is_read(folder: Path, tmp_path: Path) -> None:
    """A node of two blocks opens a file whose other blocks hold no numbers, and a node of those does not."""

    def store(name: str, values: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
        return as_f32(name, np.full_like(values, np.nan) if name.startswith("blk.3.") else values)

    path = convert(folder, tmp_path / "model.gguf", store)
    config = NodeConfig(str(path), threads=1)
    open_backend(config).load(Span(1, 3))
    with pytest.raises(BadCheckpoint, match=r"model\.layers\.3\..*NaN"):
        open_backend(config).load(Span(3, 5))
