"""From config.json to what the kernels know: families by name, every field by name, anything else not at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from node.native.experts import read_experts
from node.native.families import FAMILIES, FULL, SLIDING, Family, Flag
from node.native.fields import Fields
from node.native.latent import StoredHead, read_latent, whole_groups
from node.native.packed import GROUP
from node.native.rotation import Blocks, add_rotation
from node.native.shape import Experts, Shape
from protocol import limits
from protocol.errors import UnsupportedModel

# What a config says of training, of text and of its own file.
_HARMLESS: Final = (
    "architectures",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "cache_implementation",
    "embd_pdrop",
    "embedding_dropout",
    "eod_token_id",
    "eos_token_id",
    "hidden_dropout",
    "initializer_range",
    "is_llama_config",
    "model_type",
    "pad_token_id",
    "resid_pdrop",
    "residual_dropout",
    "transformers.js_config",
    "transformers_version",
    "use_cache",
    "_name_or_path",
)
# As config.json names what is stored, and as safetensors does; by either name of the field.
_DTYPES: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_ACTIVATIONS: Final = {"silu": 0, "gelu_pytorch_tanh": 1, "relu2": 2}
_GEMMAS: Final = ("gemma", "gemma2", "vaultgemma", "gemma3_text")


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A model that the kernels know completely: what they compute, and which tensors are what.

    head_dim    numbers of a head in the checkpoint; in `shape` it is padded with zeros
    latent_head the same where keys and values are made of latents
    """

    shape: Shape
    family: Family
    head_dim: int
    tied: bool
    query_bias: bool
    out_bias: bool
    mlp_bias: bool
    context: int
    stored: str  # the dtype of most tensors, as safetensors names it, if config.json tells the truth
    latent_head: StoredHead | None = None


def plan_model(config: Mapping[str, Any]) -> Plan:
    """Read config.json. Raises: UnsupportedModel, naming what is not known."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UnsupportedModel(f"models of type {kind!r} are not known to the native kernels")
    family, fields = FAMILIES[kind], Fields(config, "config.json")
    fields.ignore(*_HARMLESS)
    if kind == "deepseek_v2":
        fields.expect("norm_topk_prob", False)
    if family.routed is not None and family.routed.lone_shares:
        fields.ignore("num_nextn_predict_layers", "num_mtp_layers")
    if kind == "glm4_moe":
        family = replace(family, query_norms="heads" if fields.flag("use_qk_norm", False) else "")
    fields.expect("pretraining_tp", 1)
    fields.expect("rope_interleaved", False)
    context = fields.count("max_position_embeddings", most=1 << 40)
    if family.latent and kind not in ("deepseek_v2", "minicpm3"):
        family = replace(family, neighbours=fields.flag("rope_interleave", True))
    shape = _sizes(kind, family, fields)
    shape, latent_head = _with_latents(family, fields, shape) if family.latent else (shape, None)
    head_dim = shape.head_dim
    if family.routed is not None:
        shape = _with_experts(kind, fields, shape, read_experts(family.routed, fields, shape.blocks))
    shape = _scales(kind, fields, shape)
    kinds = _layer_types(kind, family, fields, shape.blocks)
    windows = _windows(family, fields, kinds)
    turning = head_dim if latent_head is None else latent_head.turning
    shape = add_rotation(
        replace(shape, windows=windows), Blocks(kind, family, kinds, context, turning), fields
    )
    plan = Plan(
        shape=replace(shape, head_dim=_padded_heads(family, head_dim)),
        family=family,
        head_dim=head_dim,
        tied=fields.flag("tie_word_embeddings", family.tied),
        query_bias=_flag(fields, family.query_bias),
        out_bias=_flag(fields, family.out_bias),
        mlp_bias=_flag(fields, family.mlp_bias),
        context=context,
        stored=_stored(fields),
        latent_head=latent_head,
    )
    for name in ("attention_bias", "mlp_bias"):
        if name not in {flag.name for flag in family.flags()}:
            fields.expect(name, False)
    fields.close()
    return plan


def _stored(fields: Fields) -> str:
    names = [fields.any(name, None) for name in ("dtype", "torch_dtype")]
    name = next((name for name in names if name is not None), "float32")
    if not isinstance(name, str) or (stored := _DTYPES.get(name.removeprefix("torch."))) is None:
        raise UnsupportedModel(f"config.json has the dtype {str(name)[:80]!r}")
    return stored


def _with_experts(kind: str, fields: Fields, shape: Shape, experts: Experts) -> Shape:
    if kind in ("qwen2_moe", "qwen3_moe"):
        fields.ignore("sliding_window", "max_window_layers")
        fields.expect("use_sliding_window", False)
        fields.expect("layer_types", [FULL] * shape.blocks)
    # Whoever has no block without experts has no MLP to speak of.
    return replace(shape, experts=experts, intermediate=0 if all(experts.blocks) else shape.intermediate)


def _with_latents(family: Family, fields: Fields, shape: Shape) -> tuple[Shape, StoredHead]:
    latent, head = read_latent(family, fields, shape.heads, max(1, shape.hidden // shape.heads))
    dim = latent.size + whole_groups(head.turning)
    scale = 1 / math.sqrt(head.query)
    return replace(shape, latent=latent, kv_heads=1, head_dim=dim, query_scale=scale), head


def _flag(fields: Fields, flag: bool | Flag) -> bool:
    return flag if isinstance(flag, bool) else fields.flag(flag.name, flag.absent)


def _padded_heads(family: Family, head_dim: int) -> int:
    if head_dim % GROUP and family.query_norms:
        raise UnsupportedModel(f"head_dim {head_dim} is no multiple of {GROUP}, and heads are normed")
    return -(-head_dim // GROUP) * GROUP


def _sizes(kind: str, family: Family, fields: Fields) -> Shape:
    hidden = fields.count("hidden_size", most=limits.HIDDEN_SIZE)
    heads = fields.count("num_attention_heads", most=4096)
    kv_heads = fields.count("num_key_value_heads", heads, most=4096)
    intermediate = fields.count("intermediate_size")
    activation = fields.text(family.activation, "gelu_pytorch_tanh" if kind in _GEMMAS else "silu")
    if kind == "gemma" and activation == "gelu":
        activation = "gelu_pytorch_tanh"  # so those who made it say
    if activation not in _ACTIVATIONS:
        raise UnsupportedModel(f"config.json has the activation {activation!r}")
    if heads % kv_heads:
        raise UnsupportedModel(f"{heads} heads do not share {kv_heads} evenly")
    for name, size in (("hidden_size", hidden), ("intermediate_size", intermediate)):
        if size % GROUP:
            raise UnsupportedModel(f"{name} {size} is no multiple of {GROUP}")
    head_dim = fields.count("head_dim", family.head_dim or max(1, hidden // heads), most=4096)
    return Shape(
        blocks=fields.count("num_hidden_layers", most=limits.STAGES - 2),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=intermediate,
        vocabulary=fields.count("vocab_size", most=limits.VOCABULARY),
        activation=_ACTIVATIONS[activation],
        epsilon=fields.number(family.epsilon_field, family.epsilon)
        if family.epsilon_field
        else family.epsilon,
        query_scale=1 / math.sqrt(head_dim),
        residual_scale=1.0,
        embedding_scale=1.0,
        logits_divisor=1.0,
        rotary_dims=0,
        rotary_tables=(),
        rotary_of=(),
        windows=(),
        wide_norms=family.query_norms == "wide",
        late_norms=family.query_norms == "late",
        gated=family.gated,
        centred=family.norm != "rms",
    )


def _scales(kind: str, fields: Fields, shape: Shape) -> Shape:
    """Multipliers, bounds, and what else one family has and no other."""
    if kind in _GEMMAS:
        return _gemma_scales(kind, fields, shape)
    if kind == "gpt_oss":
        fields.ignore("experts_per_token", "initial_context_length")
        fields.expect("swiglu_alpha", 1.702)
        fields.expect("swiglu_limit", 7.0)
        return replace(shape, activation=3, sinks=True)
    if kind in ("granite", "granitemoe", "granitemoeshared"):
        return replace(
            shape,
            query_scale=fields.number("attention_multiplier", 1.0),
            residual_scale=fields.number("residual_multiplier", 1.0),
            embedding_scale=fields.number("embedding_multiplier", 1.0),
            logits_divisor=fields.number("logits_scaling", 1.0),
        )
    if kind == "minicpm3":
        return replace(
            shape,
            residual_scale=fields.number("scale_depth") / math.sqrt(shape.blocks),
            embedding_scale=fields.number("scale_emb"),
            logits_divisor=shape.hidden / fields.count("dim_model_base"),
        )
    if kind in ("olmo", "olmoe"):
        return replace(shape, clip=_bound(fields, "clip_qkv", 0.0))
    if kind == "stablelm":
        fields.expect("qk_layernorm", False)
        return replace(shape, side_by_side=fields.flag("use_parallel_residual", False))
    if kind in ("cohere", "cohere2"):
        fields.expect("use_qk_norm", False)
        scale = fields.number("logit_scale", 0.0625)
        if scale <= 0:
            raise UnsupportedModel(f"config.json has logit_scale {scale}")
        return replace(shape, logits_divisor=1 / scale, side_by_side=True)
    return shape


def _gemma_scales(kind: str, fields: Fields, shape: Shape) -> Shape:
    fields.expect("use_bidirectional_attention", False)
    shape = replace(shape, embedding_scale=math.sqrt(shape.hidden))
    if kind == "gemma":
        fields.expect("hidden_activation", "gelu_pytorch_tanh")
        return shape
    fields.expect("hidden_act", "gelu_pytorch_tanh")
    scalar = fields.number("query_pre_attn_scalar", 256)
    if scalar <= 0:
        raise UnsupportedModel(f"config.json has query_pre_attn_scalar {scalar}")
    shape = replace(shape, query_scale=1 / math.sqrt(scalar))
    if kind == "gemma3_text":
        fields.expect("attn_logit_softcapping")
        fields.expect("final_logit_softcapping")
        return shape
    caps = _bound(fields, "attn_logit_softcapping", 50.0), _bound(fields, "final_logit_softcapping", 30.0)
    return replace(shape, score_cap=caps[0], logits_cap=caps[1])


def _bound(fields: Fields, name: str, absent: float) -> float:
    """A positive number, 0 where it is null."""
    if fields.any(name, None) is None:
        return 0.0 if fields.has(name) else absent
    bound = fields.number(name)
    if not 1e-3 <= bound <= 1e6:
        raise UnsupportedModel(f"config.json has {name} {bound}")
    return bound


def _layer_types(kind: str, family: Family, fields: Fields, blocks: int) -> tuple[str, ...]:
    """Of each block whether it sees everything or a window."""
    windows = family.windows
    if windows is None:
        return (FULL,) * blocks
    every = fields.any(windows.pattern, windows.every) if windows.pattern else windows.every
    fields.ignore("_sliding_window_pattern")
    default = [FULL] * blocks
    if kind in ("qwen2", "qwen3"):
        first = fields.any("max_window_layers", 28)
        if fields.flag(windows.flag, False):
            default = [SLIDING if index >= first else FULL for index in range(blocks)]
    elif kind != "smollm3" and type(every) is int and every >= 0:
        default = [SLIDING if not every or (index + 1) % every else FULL for index in range(blocks)]
    kinds = fields.any("layer_types", default) if windows.lists else default
    if not isinstance(kinds, list) or len(kinds) != blocks or not set(kinds) <= {FULL, SLIDING}:
        raise UnsupportedModel(f"config.json has layer_types {str(kinds)[:80]}")
    if type(every) is not int and kinds is default:
        raise UnsupportedModel(f"config.json has {windows.pattern} {str(every)[:80]!r} and no layer_types")
    return tuple(kinds)


def _windows(family: Family, fields: Fields, kinds: tuple[str, ...]) -> tuple[int, ...]:
    windows = family.windows
    if windows is None:
        return (0,) * len(kinds)
    absent = 0 if fields.has("sliding_window") else windows.absent
    window = fields.any("sliding_window", absent)
    if type(window) is not int or window < 0:
        raise UnsupportedModel(f"config.json has sliding_window {window!r}")
    if windows.flag and not fields.flag(windows.flag, False):
        window = 0
    if window == 0 and SLIDING in kinds and (windows.every or windows.flag):
        raise UnsupportedModel("config.json has layers with a window and no window")
    # Positions are below 2^20, so a larger window is none.
    window = window if window < limits.SESSION_TOKENS else 0
    return tuple(window if seen == SLIDING else 0 for seen in kinds)
