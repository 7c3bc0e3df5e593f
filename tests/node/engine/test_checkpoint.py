"""Opening checkpoints: what is read, what is named, and what is said of those that are damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from node.compute.call import run_alone
from node.engine import shards, weights
from node.engine.checkpoint import Checkpoint
from node.engine.span import SpanEngine
from protocol.candidates import HIDDEN
from protocol.errors import BadCheckpoint, ConfigError, UnsupportedModel
from protocol.model import Span, check_files, parse_manifest
from protocol.tensors import Tensor
from tests.node.engine.conftest import Tiny
from tests.node.engine.whole import PROMPT, Chain, Whole, chunked, states
from tests.support.models import make_model

Copy = Callable[..., Path]


@pytest.fixture
def copy(tiny: Tiny, tmp_path: Path) -> Copy:
    """`copy(family)` is a checkpoint's folder that may be damaged."""

    def copied(family: str = "llama", sharded: bool = True) -> Path:
        return Path(shutil.copytree(tiny(family, sharded), tmp_path / "damaged"))

    return copied


def weight_map(folder: Path) -> dict[str, str]:
    """Tensor -> file, from the index."""
    found: dict[str, str] = json.loads((folder / shards.INDEX_FILE).read_text())["weight_map"]
    return found


def files_of(folder: Path, *beginnings: str) -> set[str]:
    """The files that hold tensors with these beginnings of names."""
    return {file for name, file in weight_map(folder).items() if name.startswith(beginnings)}


def test_the_manifest_names_what_nodes_must_agree_on(tiny: Tiny) -> None:
    """Sizes, the small files and the tensor names; it survives the wire."""
    checkpoint = Checkpoint.open(str(tiny("llama")))
    manifest = checkpoint.manifest
    assert checkpoint.name == "llama"
    assert (manifest.blocks, manifest.hidden_size, manifest.vocab_size, manifest.context) == (4, 64, 264, 512)
    assert checkpoint.stages == 6
    names = {file.name for file in manifest.files}
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= names
    check_files(manifest, {name: checkpoint.file(name) for name in names})
    assert parse_manifest(manifest.encode(), checkpoint.digest).encode() == manifest.encode()


def test_sharded_or_not_it_is_the_same_model(tiny: Tiny) -> None:
    """One file or many: the same digests of the model and of every stage."""
    many, one = (Checkpoint.open(str(tiny("llama", sharded))) for sharded in (True, False))
    assert many.digest == one.digest
    assert many.stage_digests(Span(0, 6)) == one.stage_digests(Span(0, 6))


def test_stage_digests_tell_stages_and_weights_apart(tiny: Tiny, tmp_path: Path) -> None:
    """Eight bytes a stage, each different; other weights give other digests under the same model digest."""
    checkpoint = Checkpoint.open(str(tiny("llama")))
    digests = checkpoint.stage_digests(Span(0, 6))
    assert [len(digest) for digest in digests] == [8] * 6
    assert len(set(digests)) == 6
    assert checkpoint.stage_digests(Span(2, 4)) == digests[2:4]
    other = Checkpoint.open(str(make_model("llama", tmp_path / "other", seed=8)))
    assert other.digest == checkpoint.digest
    assert not set(other.stage_digests(Span(0, 6))) & set(digests)


def test_what_is_here_is_known_without_reading(tiny: Tiny, copy: Copy) -> None:
    """A stage whose shard is gone is not here, the others are."""
    whole = Checkpoint.open(str(tiny("llama")))
    assert all(whole.has(stage) for stage in range(6))
    folder = copy("llama")
    for name in files_of(folder, "model.layers.1."):
        (folder / name).unlink()
    part = Checkpoint.open(str(folder))
    assert not part.has(2)
    assert part.has(4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "mixtral", "opt"])
def test_stage_bytes_foretell_what_loading_takes(family: str, tiny: Tiny) -> None:
    """For every stage alone, tied heads too, in fp32 and in bf16."""
    checkpoint = Checkpoint.open(str(tiny(family)))
    for dtype in ("f32", "bf16"):
        for stage in range(checkpoint.stages):
            engine = SpanEngine.load(checkpoint, Span(stage, stage + 1), dtype=dtype)
            assert engine.weight_bytes == checkpoint.stage_bytes(stage, dtype)


@pytest.mark.parametrize("family", ["llama", "qwen2", "mixtral", "deepseek_v3"])
def test_only_the_shards_of_the_span_are_needed(family: str, tiny: Tiny, copy: Copy) -> None:
    """With every shard deleted that holds nothing of the span, the span loads and gives the same states."""
    folder = copy(family)
    complete = SpanEngine.load(Checkpoint.open(str(tiny(family))), Span(2, 4), dtype="f32")
    needed = files_of(folder, "model.layers.1.", "model.layers.2.")
    for path in folder.glob("*.safetensors"):
        if path.name not in needed:
            path.unlink()
    assert len(list(folder.glob("*.safetensors"))) < len(set(weight_map(folder).values()))
    checkpoint = Checkpoint.open(str(folder), span=Span(2, 4))
    engine = SpanEngine.load(checkpoint, Span(2, 4), dtype="f32")
    found, expected = (
        run_alone(e, e.new_cache(e.span), 0, states(3, 64), HIDDEN) for e in (engine, complete)
    )
    assert isinstance(found, Tensor)
    assert isinstance(expected, Tensor)
    assert bytes(found.data) == bytes(expected.data)
    with pytest.raises(BadCheckpoint, match=r"safetensors is missing, which holds"):
        checkpoint.require(Span(0, checkpoint.stages))


def test_no_tensor_outside_the_span_is_read(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every read of weights goes through `get_slice` or `take_inventory`; both see the span's tensors only."""
    read: set[str] = set()

    class Watched:
        """A safetensors file that notes what is asked of it; it has no other way to read."""

        def __init__(self, path: Path, framework: str) -> None:
            self._file = safe_open(path, framework=framework)

        def __enter__(self) -> "Watched":
            self._file.__enter__()
            return self

        def __exit__(self, *raised: object) -> None:
            self._file.__exit__(*raised)

        def get_slice(self, name: str) -> object:
            read.add(name)
            return self._file.get_slice(name)

    monkeypatch.setattr(weights, "safe_open", Watched)
    checkpoint = Checkpoint.open(str(tiny("qwen2")))
    SpanEngine.load(checkpoint, Span(3, 6), dtype="f32")
    expected = {n for n in weight_map(tiny("qwen2")) if n.startswith(("model.layers.2.", "model.layers.3."))}
    assert read == expected | {"model.norm.weight", "model.embed_tokens.weight"}


@pytest.mark.parametrize("stored", ["embedding", "head", "both"])
def test_tied_weights_load_from_whichever_is_stored(stored: str, tiny: Tiny, tmp_path: Path) -> None:
    """A tied matrix may be stored under the embedding's name, the head's, or both."""
    folder = Path(shutil.copytree(tiny("qwen2", False), tmp_path / stored))
    tensors = load_file(folder / shards.SINGLE_FILE)
    matrix = tensors.pop("model.embed_tokens.weight")
    if stored != "head":
        tensors["model.embed_tokens.weight"] = matrix
    if stored != "embedding":
        tensors["lm_head.weight"] = matrix.clone()
    save_file(tensors, folder / shards.SINGLE_FILE, metadata={"format": "pt"})
    chunks = chunked(PROMPT, 11, 1)
    # From the same file: where it lies in memory, aligned or not, decides the last bits of a product.
    expected = Whole(AutoModelForCausalLM.from_pretrained(folder).eval()).logits(chunks)
    for cuts in ([0, 6], [0, 2, 6]):
        found = Chain(Checkpoint.open(str(folder)), cuts).logits(chunks)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_missing_tensor_is_named(copy: Copy) -> None:
    """In the index but not in its shard; and in neither."""
    folder = copy()
    index = json.loads((folder / shards.INDEX_FILE).read_text())
    lost = "model.layers.1.mlp.up_proj.weight"
    index["weight_map"][lost] = index["weight_map"]["model.norm.weight"]
    (folder / shards.INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(BadCheckpoint, match=rf"has no tensor {lost}, though the index says so"):
        Checkpoint.open(str(folder), span=Span(2, 3))
    del index["weight_map"][lost]
    (folder / shards.INDEX_FILE).write_text(json.dumps(index))
    Checkpoint.open(str(folder), span=Span(3, 6))
    with pytest.raises(BadCheckpoint, match=f"no tensors for {lost}"):
        Checkpoint.open(str(folder), span=Span(1, 3))


@pytest.mark.parametrize("size", [0, 7, 100, 5000, -1])
def test_a_truncated_file_is_named(size: int, copy: Copy) -> None:
    """Cut off anywhere, in the header or in the weights."""
    folder = copy(sharded=False)
    path = folder / shards.SINGLE_FILE
    data = path.read_bytes()
    path.write_bytes(data[:size])
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors: (corrupt|cut off)"):
        Checkpoint.open(str(folder), span=Span(0, 6))


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [999], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": 5, "shape": [2], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}',
    ],
)
def test_a_corrupt_header_is_named(header: bytes, copy: Copy) -> None:
    """Whatever a header holds, it is a damaged checkpoint and nothing else."""
    folder = copy(sharded=False)
    data = len(header).to_bytes(8, "little") + header + bytes(8)
    (folder / shards.SINGLE_FILE).write_bytes(data)
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors: corrupt"):
        Checkpoint.open(str(folder))


@pytest.mark.parametrize("index", [b"", b"[]", b"{}", b'{"weight_map": 3}', b'{"weight_map": {"a": "../b"}}'])
def test_a_bad_index_is_named(index: bytes, copy: Copy) -> None:
    """Also one that points out of its folder."""
    folder = copy()
    (folder / shards.INDEX_FILE).write_bytes(index)
    with pytest.raises(BadCheckpoint, match=r"index\.json"):
        Checkpoint.open(str(folder))


def test_shapes_that_do_not_fit_the_configuration_are_named(copy: Copy) -> None:
    """A config.json of another size than the weights."""
    folder = copy()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    with pytest.raises(BadCheckpoint, match=r"mlp\.\w+\.weight has the shape"):
        SpanEngine.load(Checkpoint.open(str(folder)), Span(1, 2), dtype="f32")


def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path: Path, copy: Copy) -> None:
    """Unknown paths, files, empty folders, weights in other formats."""
    with pytest.raises(ConfigError, match="no such folder, and not a hub id"):
        Checkpoint.open(str(tmp_path / "nowhere" / "at" / "all"))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        Checkpoint.open(str(tmp_path / "file"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadCheckpoint, match=r"no config\.json"):
        Checkpoint.open(str(tmp_path / "empty"))
    folder = copy(sharded=False)
    (folder / shards.SINGLE_FILE).rename(folder / "flax_model.msgpack")
    with pytest.raises(BadCheckpoint, match="weights in other formats are not read"):
        Checkpoint.open(str(folder))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"quantization_config": {"quant_method": "hqq", "bits": 4}}, r"quantised by 'hqq'"),
        ({"text_config": {"quantization_config": {"quant_method": "awq", "bits": 3}}}, "3 bits"),
        ({"model_type": "vit"}, "vit cannot be built"),
        ({"model_type": "nothing_known"}, "no model type 'nothing_known'"),
        ({"model_type": "t5", "num_decoder_layers": 2, "d_model": 64}, "t5 cannot be built"),
    ],
)
def test_models_that_are_not_served_are_refused(change: dict[str, object], reason: str, copy: Copy) -> None:
    """Quantised in other ways, unknown ones (whose own code is never run) and encoder-decoders."""
    folder = copy(sharded=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "a.B"}, **change}))
    (folder / "a.py").write_text("raise SystemExit('ran code of a checkpoint')")
    with pytest.raises(UnsupportedModel, match=reason):
        SpanEngine.load(Checkpoint.open(str(folder)), Span(0, 2))


def test_a_configuration_that_makes_no_sense_is_a_bad_checkpoint(copy: Copy) -> None:
    """Of a model type that transformers knows, with values that it does not take."""
    folder = copy(sharded=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": "four"}))
    with pytest.raises(BadCheckpoint, match=r"config\.json is no llama's"):
        Checkpoint.open(str(folder))


def test_a_span_beyond_the_model_is_the_users_mistake(tiny: Tiny) -> None:
    """So is a dtype that there is not."""
    checkpoint = Checkpoint.open(str(tiny("llama")))
    with pytest.raises(ConfigError, match="has 6 stages"):
        SpanEngine.load(checkpoint, Span(4, 9))
    with pytest.raises(ConfigError, match="no dtype"):
        SpanEngine.load(checkpoint, Span(4, 6), dtype="int4")


def test_regression_looking_at_a_model_leaves_the_dtype_that_it_is_stored_in(copy: Copy) -> None:
    """Modules are built in a dtype of their own; that of the checkpoint decides on devices that compute in all."""
    folder = copy()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    checkpoint = Checkpoint.open(str(folder))
    assert checkpoint.layout.stages
    assert checkpoint.dtype == "bf16"
