"""From config.json to what the kernels know: families by name, every field by name, anything else not at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from node.native.fields import Fields
from node.native.rotary import rotary_table
from node.native.shape import RotaryTable, Shape
from protocol import limits
from protocol.errors import UnsupportedModel

# What a config says of training, of text and of its own file.
_HARMLESS: Final = (
    "architectures",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "embd_pdrop",
    "eos_token_id",
    "initializer_range",
    "is_llama_config",
    "model_type",
    "pad_token_id",
    "resid_pdrop",
    "transformers.js_config",
    "transformers_version",
    "use_cache",
    "_name_or_path",
)
# As config.json names what is stored, and as safetensors does; by either name of the field.
_DTYPES: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_ACTIVATIONS: Final = {"silu": 0, "gelu_pytorch_tanh": 1}
_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class Family:
    """In what a family differs from llama."""

    query_bias: bool | None = None  # None: as attention_bias says
    out_bias: bool | None = None
    fused: bool = False  # one tensor for queries, keys and values, one for gate and up
    query_norms: str = ""  # "heads": of each head, "wide": over all of them
    norms: Mapping[str, str] = field(
        default_factory=lambda: {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    )
    norm_offset: float = 0.0  # added to the stored weights of norms
    activation: str = "hidden_act"
    head_dim: int | None = None  # None: the hidden size over the heads
    tied: bool = False
    theta: float = 10_000.0
    epsilon: float = 1e-6


_FAMILIES: Final = {
    "llama": Family(),
    "mistral": Family(query_bias=False, out_bias=False),
    "qwen2": Family(query_bias=True, out_bias=False),
    "qwen3": Family(query_norms="heads", head_dim=128),
    "smollm3": Family(tied=True, theta=2_000_000.0),
    "granite": Family(),
    "phi3": Family(query_bias=False, out_bias=False, fused=True, epsilon=1e-5),
    "olmo2": Family(
        query_norms="wide",
        epsilon=1e-5,
        norms={
            "attention_post_norm": "post_attention_layernorm",
            "mlp_post_norm": "post_feedforward_layernorm",
        },
    ),
    "gemma3_text": Family(
        query_norms="heads",
        norm_offset=1.0,
        activation="hidden_activation",
        head_dim=256,
        tied=True,
        norms={
            "attention_norm": "input_layernorm",
            "attention_post_norm": "post_attention_layernorm",
            "mlp_norm": "pre_feedforward_layernorm",
            "mlp_post_norm": "post_feedforward_layernorm",
        },
    ),
}
FAMILIES: Final = tuple(_FAMILIES)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A model that the kernels know completely: what they compute, and which tensors are what."""

    shape: Shape
    family: Family
    tied: bool
    query_bias: bool
    out_bias: bool
    mlp_bias: bool
    context: int
    stored: str  # the dtype of most tensors, as safetensors names it, if config.json tells the truth


def plan_model(config: Mapping[str, Any]) -> Plan:
    """Read config.json. Raises: UnsupportedModel, naming what is not known."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _FAMILIES:
        raise UnsupportedModel(f"models of type {kind!r} are not known to the native kernels")
    family, fields = _FAMILIES[kind], Fields(config, "config.json")
    fields.ignore(*_HARMLESS)
    fields.expect("pretraining_tp", 1)
    fields.expect("rope_interleaved", False)
    context = fields.count("max_position_embeddings", most=1 << 40)
    shape = _sizes(family, fields)
    shape = _scales(kind, fields, shape)
    kinds = _layer_types(kind, fields, shape.blocks)
    shape = replace(shape, windows=_windows(kind, fields, kinds))
    shape = _rotation(kind, family, fields, shape, kinds, context)
    attention_bias = fields.flag("attention_bias", False) if family.query_bias is None else None
    plan = Plan(
        shape=shape,
        family=family,
        tied=fields.flag("tie_word_embeddings", family.tied),
        query_bias=bool(attention_bias if family.query_bias is None else family.query_bias),
        out_bias=bool(attention_bias if family.out_bias is None else family.out_bias),
        mlp_bias=fields.flag("mlp_bias", False) if kind in ("llama", "granite", "smollm3") else False,
        context=context,
        stored=_stored(fields),
    )
    fields.close()
    return plan


def _stored(fields: Fields) -> str:
    names = [fields.any(name, None) for name in ("dtype", "torch_dtype")]
    name = next((name for name in names if name is not None), "float32")
    if not isinstance(name, str) or (stored := _DTYPES.get(name.removeprefix("torch."))) is None:
        raise UnsupportedModel(f"config.json has the dtype {str(name)[:80]!r}")
    return stored


def _sizes(family: Family, fields: Fields) -> Shape:
    hidden = fields.count("hidden_size", most=limits.HIDDEN_SIZE)
    heads = fields.count("num_attention_heads", most=4096)
    kv_heads = fields.count("num_key_value_heads", heads, most=4096)
    head_dim = fields.count("head_dim", family.head_dim or hidden // heads, most=4096)
    intermediate = fields.count("intermediate_size")
    activation = fields.text(family.activation)
    if activation not in _ACTIVATIONS:
        raise UnsupportedModel(f"config.json has the activation {activation!r}")
    if heads % kv_heads:
        raise UnsupportedModel(f"{heads} heads do not share {kv_heads} evenly")
    for name, size, unit in (
        ("hidden_size", hidden, 32),
        ("intermediate_size", intermediate, 32),
        ("head_dim", head_dim, 32),
    ):
        if size % unit:
            raise UnsupportedModel(f"{name} {size} is no multiple of {unit}")
    return Shape(
        blocks=fields.count("num_hidden_layers", most=limits.STAGES - 2),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=intermediate,
        vocabulary=fields.count("vocab_size", most=limits.VOCABULARY),
        activation=_ACTIVATIONS[activation],
        epsilon=fields.number("rms_norm_eps", family.epsilon),
        query_scale=1 / math.sqrt(head_dim),
        residual_scale=1.0,
        embedding_scale=1.0,
        logits_divisor=1.0,
        rotary_dims=0,
        rotary_tables=(),
        rotary_of=(),
        windows=(),
        wide_norms=family.query_norms == "wide",
    )


def _scales(kind: str, fields: Fields, shape: Shape) -> Shape:
    if kind == "granite":
        return replace(
            shape,
            query_scale=fields.number("attention_multiplier", 1.0),
            residual_scale=fields.number("residual_multiplier", 1.0),
            embedding_scale=fields.number("embedding_multiplier", 1.0),
            logits_divisor=fields.number("logits_scaling", 1.0),
        )
    if kind == "gemma3_text":
        fields.expect("attn_logit_softcapping")
        fields.expect("final_logit_softcapping")
        fields.expect("use_bidirectional_attention", False)
        fields.ignore("cache_implementation")
        scalar = fields.number("query_pre_attn_scalar", 256)
        if scalar <= 0:
            raise UnsupportedModel(f"config.json has query_pre_attn_scalar {scalar}")
        return replace(shape, query_scale=1 / math.sqrt(scalar), embedding_scale=math.sqrt(shape.hidden))
    return shape


def _layer_types(kind: str, fields: Fields, blocks: int) -> tuple[str, ...]:
    """Of each block whether it sees everything or a window."""
    if kind in ("mistral", "phi3"):
        return (_SLIDING,) * blocks
    if kind not in ("qwen2", "qwen3", "smollm3", "gemma3_text"):
        return (_FULL,) * blocks
    default = [_FULL] * blocks
    if kind in ("qwen2", "qwen3"):
        first = fields.any("max_window_layers", 28)
        if fields.flag("use_sliding_window", False):
            default = [_SLIDING if index >= first else _FULL for index in range(blocks)]
    if kind == "gemma3_text":
        fields.ignore("_sliding_window_pattern")
        every = fields.count("sliding_window_pattern", 6)
        default = [_SLIDING if (index + 1) % every else _FULL for index in range(blocks)]
    kinds = fields.any("layer_types", default)
    if not isinstance(kinds, list) or len(kinds) != blocks or not set(kinds) <= {_FULL, _SLIDING}:
        raise UnsupportedModel(f"config.json has layer_types {str(kinds)[:80]}")
    return tuple(kinds)


def _windows(kind: str, fields: Fields, kinds: tuple[str, ...]) -> tuple[int, ...]:
    if kind in ("llama", "granite", "olmo2"):
        return (0,) * len(kinds)
    if kind == "smollm3":
        fields.expect("use_sliding_window", False)
    absent = 4096 if kind in ("mistral", "gemma3_text") and not fields.has("sliding_window") else 0
    window = fields.any("sliding_window", absent)
    if type(window) is not int or window < 0:
        raise UnsupportedModel(f"config.json has sliding_window {window!r}")
    if kind in ("qwen2", "qwen3", "smollm3") and not fields.flag("use_sliding_window", False):
        window = 0
    if window == 0 and _SLIDING in kinds and kind not in ("mistral", "phi3"):
        raise UnsupportedModel("config.json has layers with a window and no window")
    # Positions are below 2^20, so a larger window is none.
    window = window if window < limits.SESSION_TOKENS else 0
    return tuple(window if seen == _SLIDING else 0 for seen in kinds)


def _rotation(
    kind: str, family: Family, fields: Fields, shape: Shape, kinds: tuple[str, ...], context: int
) -> Shape:
    theta = fields.number("rope_theta", family.theta)
    scaling, parameters = fields.any("rope_scaling", None), fields.any("rope_parameters", None)
    share = fields.any("partial_rotary_factor", None) if kind == "phi3" else None
    if kind == "gemma3_text":
        return _two_rotations(fields, shape, kinds, context, scaling, parameters)
    given = scaling or parameters or {}
    if not isinstance(given, dict):
        raise UnsupportedModel("config.json has rope_parameters of another form")
    if kind == "phi3":
        # Phi's longer contexts scale by the length of the sequence, which positions alone do not give.
        original = fields.any("original_max_position_embeddings", context)
        if given.get("rope_type", given.get("type", "default")) != "default":
            raise UnsupportedModel(f"rotations scaled for contexts longer than {original}")
        given = {"partial_rotary_factor": 1.0 if share is None else share, **given}
    elif given.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModel(f"config.json has a partial rotation, which {kind} has not")
    table, dims = rotary_table({"rope_theta": theta, **given}, shape.head_dim, context)
    turning = [1] * shape.blocks
    if kind == "smollm3":
        every = fields.count("no_rope_layer_interval", 4)
        turning = fields.any("no_rope_layers", [int((n + 1) % every != 0) for n in range(shape.blocks)])
        if not isinstance(turning, list) or len(turning) < shape.blocks or not set(turning) <= {0, 1}:
            raise UnsupportedModel(f"config.json has no_rope_layers {str(turning)[:80]}")
    rotary_of = tuple(0 if turns else -1 for turns in turning[: shape.blocks])
    return replace(shape, rotary_dims=dims, rotary_tables=(table,), rotary_of=rotary_of)


def _two_rotations(
    fields: Fields, shape: Shape, kinds: tuple[str, ...], context: int, scaling: Any, parameters: Any
) -> Shape:
    """Blocks that see everything turn by one table, those with a window by another."""
    theta = fields.number("rope_theta", 1_000_000.0)
    local = fields.number("rope_local_base_freq", 10_000.0)
    given = parameters or {_FULL: scaling or {}, _SLIDING: {}}
    if not isinstance(given, dict) or given.keys() - {_FULL, _SLIDING} or (parameters and scaling):
        raise UnsupportedModel("config.json has rope_parameters of another form")
    tables: list[RotaryTable] = []
    dims = 0
    for name, base in ((_FULL, theta), (_SLIDING, local)):
        own = given.get(name) or {}
        if not isinstance(own, dict):
            raise UnsupportedModel("config.json has rope_parameters of another form")
        table, dims = rotary_table({"rope_theta": base, **own}, shape.head_dim, context)
        tables.append(table)
    rotary_of = tuple(0 if seen == _FULL else 1 for seen in kinds)
    return replace(shape, rotary_dims=dims, rotary_tables=tuple(tables), rotary_of=rotary_of)
