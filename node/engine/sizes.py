"""What the stages of a model take where torch computes it, told from its configuration alone: nothing is loaded."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from node.engine.cache import LayerCaches
from node.engine.forward import Forward
from node.engine.kinds import kind_of, packed_bytes
from node.engine.skeleton import Layout, build_skeleton, probing, text_config, trace
from node.engine.sources import first_line
from node.formats.methods import is_read, read_scheme
from node.formats.scheme import Scheme
from node.native.precision import Precision
from protocol import limits
from protocol.errors import BadCheckpoint, UnsupportedModel
from protocol.tensors import ITEM_BYTES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_TOKENS: Final = 3
_F32_BYTES: Final = 4
# As configurations name it.
_STORED: Final = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True, slots=True)
class SkeletonSizes:
    """What is known of a model without its weights.

    stored       the dtype that config.json gives, "f32", "f16" or "bf16"
    kept         of each stage the bytes in the files; None where they are in a form that is not known here
    shared       bytes of the files that embedding and head have in common
    kv_numbers   of each block the keys and values of one position; recurrent states are not counted
    """

    layout: Layout
    hidden: int
    stored: str
    kept: tuple[int, ...] | None
    shared: int
    kv_numbers: tuple[int, ...]

    def stages(self, dtype: str, precision: Precision | None) -> tuple[int, ...]:
        """Bytes that each stage takes in memory."""
        count = len(self.layout.stages)
        return tuple(stage_bytes(self.layout, stage, dtype, precision) for stage in range(count))


def stage_bytes(layout: Layout, stage: int, dtype: str, precision: Precision | None) -> int:
    """Bytes that one stage takes alone in `dtype`; packed, about so many.

    A head that is tied to the embedding counts it.
    """
    names = layout.stages[stage]
    if precision is None or not stage:
        sizes = [layout.sizes[name] for name in names]
        return sum(count * (ITEM_BYTES[dtype] if floating else 8) for count, floating in sizes)
    return sum(packed_bytes(kind_of(precision, name, layout.stack), layout.sizes[name][0]) for name in names)


def read_sizes(raw: Mapping[str, Any]) -> SkeletonSizes:
    """From a config.json, also of a checkpoint that is stored quantised. Raises: UnsupportedModel, BadCheckpoint."""
    config = _configuration(raw)
    model = build_skeleton(config, "f32")
    layout = trace(model)
    said = text_config(config).dtype or config.dtype
    stored = _STORED.get(str(said).removeprefix("torch."), "f32")
    with probing(config):
        return SkeletonSizes(
            layout=layout,
            hidden=int(text_config(config).hidden_size),
            stored=stored,
            kept=_kept(model, layout, stored, read_scheme(raw)) if is_read(raw) else None,
            shared=_shared_bytes(layout, stored),
            kv_numbers=_kv_numbers(model, layout),
        )


def _configuration(raw: Mapping[str, Any]) -> PreTrainedConfig:
    """transformers' configuration of the model, as if its weights were stored plainly."""
    from transformers import CONFIG_MAPPING

    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UnsupportedModel(f"transformers has no model type {str(kind)[:80]!r} of its own")
    try:
        config: PreTrainedConfig = CONFIG_MAPPING[kind].from_dict(
            {name: value for name, value in raw.items() if name != "quantization_config"}
        )
    except Exception as error:
        raise BadCheckpoint(f"config.json is no {kind}'s: {first_line(error)}") from error
    blocks = getattr(text_config(config), "num_hidden_layers", None)
    if type(blocks) is not int or not 1 <= blocks <= limits.STAGES - 2:
        raise UnsupportedModel(f"a {kind} with {str(blocks)[:80]} layers is no language model of ours")
    return config


def _kept(model: PreTrainedModel, layout: Layout, stored: str, scheme: Scheme | None) -> tuple[int, ...]:
    """Of each stage the bytes in the files: in one dtype, or about so many in the forms of a scheme."""
    if scheme is None:
        return tuple(stage_bytes(layout, stage, stored, None) for stage in range(len(layout.stages)))
    names = _converted_weights(model, layout, scheme)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    wide = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())

    def size(name: str) -> int:
        if name in names:
            *stack, outs, ins = shapes[name]
            return int(math.prod(stack)) * scheme.weight_bytes(name, outs, ins)
        item = _F32_BYTES if name.rpartition(".")[2] in wide else ITEM_BYTES[stored]
        return item * layout.sizes[name][0]

    return tuple(sum(size(name) for name in stage) for stage in layout.stages)


def _shared_bytes(layout: Layout, stored: str) -> int:
    """Ends are never in eight bits."""
    first, last = layout.stages[0], layout.stages[-1]
    shared = (name for name in last if first & layout.tied.get(name, frozenset({name})))
    return sum(layout.sizes[name][0] for name in shared) * ITEM_BYTES[stored]


def _converted_weights(model: PreTrainedModel, layout: Layout, scheme: Scheme) -> set[str]:
    """The weights of the layers' linear modules and experts that a scheme converts."""
    found = set()
    for path, module in model.get_submodule(layout.stack).named_modules(prefix=layout.stack):
        if isinstance(module, nn.Linear):
            found.add(f"{path}.weight")
        else:  # of all experts in one tensor
            own = module.named_parameters(recurse=False)
            found |= {f"{path}.{name}" for name, weight in own if weight.dim() == 3}
    return {name for name in found if scheme.converts(f"{name.removesuffix('.weight')}.weight")}


def _kv_numbers(model: PreTrainedModel, layout: Layout) -> tuple[int, ...]:
    """Of each block, by running it without weights.

    What comes after attention may fail without them (which expert is it?); keys and values are kept by then.
    """
    owner_path, _, name = layout.stack.rpartition(".")
    owner = model.get_submodule(owner_path)
    layers: nn.ModuleList = getattr(owner, name)
    caches = LayerCaches(model.config, frozenset(range(len(layers))))
    for layer in layers:
        layer.forward = partial(_attend, layer.forward, layout.returns)
    try:
        with torch.inference_mode():
            Forward(model, owner).hidden(caches, torch.zeros(1, _TOKENS, dtype=torch.long, device="meta"))
    finally:
        for layer in layers:
            del layer.__dict__["forward"]
    caches.advance(_TOKENS)
    return tuple(caches.slot_bytes(index) // _F32_BYTES for index in range(len(layers)))


def _attend(forward: Any, returns: int, *args: Any, **kwargs: Any) -> Any:
    hidden = args[0] if args else kwargs["hidden_states"]
    with contextlib.suppress(Exception):  # a family's own code, see `_kv_numbers`
        forward(*args, **kwargs)
    return (hidden, *(None,) * (returns - 1)) if returns else hidden
