"""Families that keep their own modules, with their weights packed: as they are, in eight and four bits."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from node.backend import open_backend
from node.compute.call import run_alone
from node.compute.interfaces import Call, Engine
from node.config import NodeConfig
from node.engine.backend import TorchBackend
from node.engine.checkpoint import Checkpoint
from node.engine.products import KernelProduct, Product, on_kernels
from node.engine.quantised import PackedExperts, PackedLinear, Quantiser
from node.engine.skeleton import build_skeleton, trace
from node.engine.span import SpanEngine
from node.native.load import load_kernel
from node.native.packed import Kind
from node.native.precision import F32, PRECISIONS
from protocol.candidates import Candidates, Want
from protocol.errors import BadCheckpoint
from protocol.model import Span
from protocol.tensors import from_numpy
from tests.node.engine.conftest import Tiny
from tests.node.engine.whole import PROMPT, logits_of
from tests.support.models import make_model, random_model, tiny_config

WHOLE = Span(0, 6)
ALL = Want(every=True, top=0)
# Plain layers, layers of its own kind, transposed weights, alibi, experts of both kinds, recurrent states.
FAMILIES = ("llama", "falcon", "gpt2", "bloom", "mixtral", "gpt_oss", "mamba")


def opened(folder: Path, quant: str | None) -> TorchBackend:
    """The backend of a node on one core."""
    return TorchBackend.open(str(folder), cache_dir=None, dtype=None, device="cpu", quant=quant, threads=1)


def logits(engine: Engine) -> np.ndarray:
    """Of all tokens of a prompt."""
    found = run_alone(engine, engine.new_cache(WHOLE), 0, from_numpy(PROMPT), ALL)
    assert isinstance(found, Candidates)
    return logits_of(found)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("quant", "error", "share"), [("int8", 0.05, 0.5), ("int4", 0.3, 0.45)])
def test_fewer_bits_are_close_and_small(
    family: str, quant: str, error: float, share: float, tiny: Tiny
) -> None:
    """To the logits of fp32, and in memory; errors of random weights are larger than those of trained ones."""
    exact = opened(tiny(family), None).load(WHOLE)
    packed = opened(tiny(family), quant).load(WHOLE)
    ours, theirs = logits(packed), logits(exact)
    assert 0 < np.linalg.norm(ours - theirs) < error * np.linalg.norm(theirs)
    assert packed.weight_bytes < share * exact.weight_bytes
    assert packed.dtype == "f32"


@pytest.mark.parametrize("family", FAMILIES)
def test_fp32_is_packed_as_it_is(family: str, tiny: Tiny) -> None:
    """By the kernels with the same numbers: the sums are in another order."""
    checkpoint = Checkpoint.open(str(tiny(family)))
    plain = SpanEngine.load(checkpoint, WHOLE, dtype="f32")
    packed = SpanEngine.load(
        checkpoint, WHOLE, dtype="f32", quantiser=Quantiser(on_kernels(load_kernel(1)), F32)
    )
    np.testing.assert_allclose(logits(packed), logits(plain), rtol=1e-4, atol=1e-5)
    modules = packed._model._model.modules()
    assert {kind_of(m.product) for m in modules if isinstance(m, PackedLinear)} == {Kind.F32}
    assert str(packed.numerics) == str(plain.numerics) == "f32"


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
def test_a_row_does_not_depend_on_its_batch(family: str, tiny: Tiny) -> None:
    """Scales are a row's own: what others send changes nothing beyond rounding in fp32, however large it is."""
    engine = opened(tiny(family), "int8").load(WHOLE)
    assert engine.batches
    token = from_numpy(np.array([7], np.int32))
    caches = [engine.new_cache(WHOLE) for _ in range(3)]
    for length, cache in enumerate(caches, 1):
        run_alone(engine, cache, 0, from_numpy(PROMPT[: 3 * length]), Want("nothing"))
    calls = [Call(cache, cache.length, token, ALL) for cache in caches]
    for call, given in zip(calls, engine.run(calls), strict=True):
        alone = run_alone(engine, call.cache, call.position, token, ALL)
        assert isinstance(given, Candidates)
        assert isinstance(alone, Candidates)
        np.testing.assert_allclose(logits_of(given), logits_of(alone), rtol=1e-4, atol=1e-4)


def kind_of(product: Product) -> Kind:
    """What it is packed in."""
    assert isinstance(product, KernelProduct)
    return product.matrix.kind


def test_what_is_packed_and_how() -> None:
    """Attention and head in eight bits, the rest in four; experts each; routers, norms and the embedding stay."""
    model = random_model(tiny_config("mixtral"), seed=1).requires_grad_(False)
    layout = trace(build_skeleton(model.config, "f32"))
    Quantiser(on_kernels(load_kernel(1)), PRECISIONS["int4"]).replace(model, layout)
    kinds = {n: kind_of(m.product) for n, m in model.named_modules() if isinstance(m, PackedLinear)}
    assert kinds["lm_head"] is kinds["model.layers.0.self_attn.q_proj"] is Kind.INT8
    experts = model.get_submodule("model.layers.3.mlp.experts")
    assert isinstance(experts, PackedExperts)
    assert set(map(kind_of, (*experts.first, *experts.down))) == {Kind.INT4}
    left = {name for name, _ in model.named_parameters()}
    assert left == {
        name for name in left if name.endswith(("norm.weight", "gate.weight", "embed_tokens.weight"))
    }


def test_layers_that_do_not_fit_the_groups_stay() -> None:
    """48 inputs are no whole number of groups."""
    model = random_model(tiny_config("llama", intermediate_size=48), seed=1).requires_grad_(False)
    Quantiser(on_kernels(load_kernel(1)), PRECISIONS["int8"]).replace(
        model, trace(build_skeleton(model.config, "f32"))
    )
    mlp = model.get_submodule("model.layers.0.mlp")
    assert isinstance(mlp.down_proj, torch.nn.Linear)
    assert isinstance(mlp.up_proj, PackedLinear)


def test_spans_of_fewer_bits_make_the_whole(tiny: Tiny) -> None:
    """A head that is tied to the embedding is packed too, with and without the embedding in the same span."""
    backend = opened(tiny("gpt2"), "int8")
    whole = backend.load(WHOLE)
    given = from_numpy(PROMPT)
    for span in (Span(0, 2), Span(2, 5), Span(5, 6)):
        engine = backend.load(span)
        out = run_alone(engine, engine.new_cache(span), 0, given, ALL)
        if isinstance(out, Candidates):
            np.testing.assert_array_equal(logits_of(out), logits(whole))
            return
        given = out  # type: ignore[assignment]


def test_weights_that_are_no_numbers_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    """Where they are is said."""
    folder = Path(shutil.copytree(tiny("llama", False), tmp_path / "damaged"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadCheckpoint, match=r"layers\.2\.mlp\.up_proj"):
        opened(folder, "int8").load(WHOLE)


def test_its_weights_are_those_as_stored(tiny: Tiny) -> None:
    """In whatever precision; what they are computed in is said beside. The size is known before."""
    named = {q: opened(tiny("bloom"), q).model for q in (None, "int8", "int4")}
    digests = {q: model.stage_digests(WHOLE) for q, model in named.items()}
    assert len(set(digests.values())) == 1
    assert [str(opened(tiny("bloom"), q).numerics()) for q in named] == ["f32", "int8", "int4"]
    sizes = {q: model.stage_bytes(2, "f32") for q, model in named.items()}
    assert sizes["int4"] < sizes["int8"] < sizes[None] / 3


def test_a_node_serves_what_the_kernels_do_not_know_with_its_own_modules(tmp_path: Path) -> None:
    """In the bits that were asked for; which bits, but not whose, is what numerics say."""
    folder = make_model("bloom", tmp_path / "bloom", seed=1)
    backend = open_backend(NodeConfig(str(folder), quant="int8", threads=1))
    assert isinstance(backend.model, Checkpoint)
    assert str(backend.numerics()) == "int8"
    assert backend.dtype() == "f32"
    assert backend.load(Span(1, 3)).dtype == "f32"
