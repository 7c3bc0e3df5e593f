"""The families that the kernels know, and in what each differs from llama."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

# What a block sees: everything, or a window of positions.
FULL, SLIDING = "full_attention", "sliding_attention"

_LLAMA_NORMS: Final = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_SANDWICH: Final = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_AFTER: Final = {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


@dataclass(frozen=True, slots=True)
class Flag:
    """A field of config.json that says yes or no."""

    name: str
    absent: bool = False


_BIAS: Final = Flag("attention_bias")
_USE_BIAS: Final = Flag("use_bias")


@dataclass(frozen=True, slots=True)
class Windows:
    """Which blocks have a window where config.json does not list them, and how wide it is.

    every     0: all blocks; else every such block sees everything, the others have the window
    absent    the width where the field is not there at all, 0 for none
    flag      a field that has to be true for any window
    pattern   a field that replaces `every`
    lists     layer_types may say it of each block
    """

    every: int = 0
    absent: int = 0
    flag: str = ""
    pattern: str = ""
    lists: bool = True


@dataclass(frozen=True, slots=True)
class Routed:
    """Experts: how their tensors are called, and which fields of config.json speak of them.

    gate_up, down  names with a place for the expert's number, or without one: all in one tensor, with it in front
    transposed     their matrices lie the other way round, and gates and what they let through take turns
    biased         router and experts have biases
    shared         gate_up, down and gate of what every row goes through as well; the gate may be ""
    some           config.json may say which blocks have experts: "" of all, "step" of some, "first" all but the first
                   ones, "types" of each
    lone_shares    see `Experts`; then there is a bias for the choice
    grouped        they may be in groups, shares may have a factor, and `shared` is told in experts
    """

    intermediate: str = "moe_intermediate_size"
    whole_shares: bool | Flag = Flag("norm_topk_prob")
    router: str = "mlp.gate"
    gate_up: tuple[str, ...] = ("mlp.experts.{}.gate_proj.weight", "mlp.experts.{}.up_proj.weight")
    down: str = "mlp.experts.{}.down_proj.weight"
    transposed: bool = False
    biased: bool = False
    shared: tuple[tuple[str, ...], str, str] | None = None
    shared_intermediate: str = ""
    some: str = ""
    lone_shares: bool = False
    grouped: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """In what a family differs from llama. Names of tensors are without "weight" and "bias".

    query_norms    "heads": of each head, "wide": over all of them, "late": of each head, after the rotation
    norm           "rms"; "layer" takes the mean away; "biased" adds as well; "bare" has no weight either
    norm_offset    added to the stored weights of norms
    local_theta    blocks with a window turn by a table of their own: the field of its base, and the base without it
    rotated        the share of a head that turns where config.json does not say, None where it may not say
    neighbours     numbers that turn together are neighbours
    gated          the MLP has gates
    latent         keys and values are made of latents, see `Latent`; `stated` fields it then cannot do without
    """

    query_bias: bool | Flag = _BIAS
    out_bias: bool | Flag = _BIAS
    mlp_bias: bool | Flag = False
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    norms: Mapping[str, str] = field(default_factory=lambda: _LLAMA_NORMS)
    query_norms: str = ""
    query_norm_names: tuple[str, str] = ("self_attn.q_norm", "self_attn.k_norm")
    norm: str = "rms"
    norm_offset: float = 0.0
    epsilon: float = 1e-6
    epsilon_field: str = "rms_norm_eps"
    activation: str = "hidden_act"
    gated: bool = True
    head_dim: int | None = None  # None: the hidden size over the heads
    tied: bool = False
    theta: float = 10_000.0
    local_theta: tuple[str, float] | None = None
    rotated: float | None = None
    neighbours: bool = False
    windows: Windows | None = None
    routed: Routed | None = None
    latent: bool = False
    stated: tuple[str, ...] = ()

    def flags(self) -> tuple[Flag, ...]:
        """The fields that say where biases are."""
        biases = (self.query_bias, self.out_bias, self.mlp_bias)
        return tuple(bias for bias in biases if isinstance(bias, Flag))


_GEMMA: Final = Family(norm_offset=1.0, head_dim=256, tied=True)
_GEMMA2: Final = replace(
    _GEMMA, norms=_SANDWICH, activation="hidden_activation", windows=Windows(every=2, absent=4096)
)
_GLM: Final = Family(
    query_bias=Flag("attention_bias", True),
    out_bias=False,
    gate_up=("mlp.gate_up_proj",),
    epsilon=1.5625e-07,
    head_dim=128,
    rotated=0.5,
    neighbours=True,
)
_QWEN_WINDOWS: Final = Windows(flag="use_sliding_window", absent=4096)
_OLMO2: Final = Family(query_norms="wide", epsilon=1e-5, norms=_AFTER)
_COHERE: Final = Family(
    norm="layer",
    norms={"attention_norm": "input_layernorm"},
    epsilon=1e-5,
    epsilon_field="layer_norm_eps",
    tied=True,
    theta=500_000.0,
    neighbours=True,
)

_QWEN_ROUTED: Final = Routed(
    shared=(
        ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
        "mlp.shared_expert.down_proj",
        "mlp.shared_expert_gate",
    ),
    shared_intermediate="shared_expert_intermediate_size",
    some="step",
)
_GRANITE_ROUTED: Final = Routed(
    intermediate="intermediate_size",
    whole_shares=True,
    router="block_sparse_moe.router.layer",
    gate_up=("block_sparse_moe.input_linear.weight",),
    down="block_sparse_moe.output_linear.weight",
)
_LONE_ROUTED: Final = Routed(
    whole_shares=Flag("norm_topk_prob", True),
    shared=(
        ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
        "mlp.shared_experts.down_proj",
        "",
    ),
    shared_intermediate="n_shared_experts",
    some="first",
    lone_shares=True,
    grouped=True,
)
_DEEPSEEK: Final = Family(
    neighbours=True,
    latent=True,
    routed=_LONE_ROUTED,
    stated=(
        "first_k_dense_replace",
        "n_group",
        "norm_topk_prob",
        "routed_scaling_factor",
        "topk_group",
        "v_head_dim",
    ),
)

FAMILIES: Final[Mapping[str, Family]] = {
    "llama": Family(mlp_bias=Flag("mlp_bias")),
    "mistral": Family(query_bias=False, out_bias=False, windows=Windows(absent=4096, lists=False)),
    "ministral": Family(query_bias=False, out_bias=False, windows=Windows(absent=4096)),
    "qwen2": Family(query_bias=True, out_bias=False, windows=_QWEN_WINDOWS),
    "qwen3": Family(query_norms="heads", head_dim=128, windows=_QWEN_WINDOWS),
    "smollm3": Family(mlp_bias=Flag("mlp_bias"), tied=True, theta=2_000_000.0, windows=_QWEN_WINDOWS),
    "granite": Family(mlp_bias=Flag("mlp_bias")),
    "phi3": Family(
        query_bias=False,
        out_bias=False,
        qkv=("self_attn.qkv_proj",),
        gate_up=("mlp.gate_up_proj",),
        epsilon=1e-5,
        rotated=1.0,
        windows=Windows(lists=False),
    ),
    "olmo": Family(norm="bare", norms=_LLAMA_NORMS, epsilon=1e-5, epsilon_field=""),
    "olmo2": _OLMO2,
    "olmo3": replace(
        _OLMO2, theta=500_000.0, local_theta=("rope_theta", 500_000.0), windows=Windows(every=4, absent=4096)
    ),
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "vaultgemma": replace(
        _GEMMA2, norms={"attention_norm": "input_layernorm", "mlp_norm": "pre_feedforward_layernorm"}
    ),
    "gemma3_text": replace(
        _GEMMA2,
        query_norms="heads",
        theta=1_000_000.0,
        local_theta=("rope_local_base_freq", 10_000.0),
        windows=Windows(every=6, absent=4096, pattern="sliding_window_pattern"),
    ),
    "glm": _GLM,
    "glm4": replace(
        _GLM,
        norms={
            "attention_norm": "input_layernorm",
            "attention_post_norm": "post_self_attn_layernorm",
            "mlp_norm": "post_attention_layernorm",
            "mlp_post_norm": "post_mlp_layernorm",
        },
    ),
    "seed_oss": Family(
        query_bias=Flag("attention_bias", True),
        out_bias=Flag("attention_out_bias"),
        mlp_bias=Flag("mlp_bias"),
        head_dim=128,
    ),
    "ernie4_5": Family(
        query_bias=_USE_BIAS,
        out_bias=_USE_BIAS,
        mlp_bias=_USE_BIAS,
        epsilon=1e-5,
        head_dim=128,
        tied=True,
        theta=500_000.0,
        neighbours=True,
    ),
    "exaone4": Family(
        query_bias=False,
        out_bias=False,
        norms=_AFTER,
        query_norms="heads",
        epsilon=1e-5,
        windows=Windows(every=4, absent=4096, pattern="sliding_window_pattern"),
    ),
    "helium": Family(
        out_bias=False,
        mlp_bias=Flag("mlp_bias"),
        epsilon=1e-8,
        head_dim=128,
        theta=100_000.0,
        neighbours=True,
    ),
    "hunyuan_v1_dense": Family(
        query_norms="late",
        query_norm_names=("self_attn.query_layernorm", "self_attn.key_layernorm"),
        epsilon=1e-5,
    ),
    "arcee": Family(mlp_bias=Flag("mlp_bias"), gate_up=("mlp.up_proj",), gated=False, epsilon=1e-5),
    "nemotron": Family(
        mlp_bias=Flag("mlp_bias"),
        gate_up=("mlp.up_proj",),
        gated=False,
        norm="biased",
        norm_offset=1.0,
        epsilon=1e-5,
        epsilon_field="norm_eps",
        rotated=0.5,
    ),
    "starcoder2": Family(
        query_bias=Flag("use_bias", True),
        out_bias=Flag("use_bias", True),
        mlp_bias=Flag("use_bias", True),
        gate_up=("mlp.c_fc",),
        down="mlp.c_proj",
        gated=False,
        norm="biased",
        epsilon=1e-5,
        epsilon_field="norm_epsilon",
        tied=True,
        windows=Windows(lists=False),
    ),
    "stablelm": Family(
        query_bias=Flag("use_qkv_bias"),
        out_bias=False,
        norm="biased",
        epsilon=1e-5,
        epsilon_field="layer_norm_eps",
        rotated=0.25,
    ),
    "cohere": _COHERE,
    "cohere2": replace(_COHERE, windows=Windows(every=4, absent=4096, pattern="sliding_window_pattern")),
    "mixtral": Family(
        query_bias=False,
        out_bias=False,
        epsilon=1e-5,
        theta=1_000_000.0,
        windows=Windows(lists=False),
        routed=Routed(
            intermediate="intermediate_size",
            whole_shares=True,
            router="block_sparse_moe.gate",
            gate_up=(
                "block_sparse_moe.experts.{}.w1.weight",
                "block_sparse_moe.experts.{}.w3.weight",
            ),
            down="block_sparse_moe.experts.{}.w2.weight",
        ),
    ),
    "qwen2_moe": Family(query_bias=Flag("qkv_bias", True), out_bias=False, routed=_QWEN_ROUTED),
    "qwen3_moe": Family(
        query_norms="heads", routed=replace(_QWEN_ROUTED, shared=None, shared_intermediate="")
    ),
    "olmoe": Family(query_norms="wide", epsilon=1e-5, routed=Routed(intermediate="intermediate_size")),
    "granitemoe": Family(routed=_GRANITE_ROUTED),
    "granitemoeshared": Family(
        routed=replace(
            _GRANITE_ROUTED,
            shared=(("shared_mlp.input_linear",), "shared_mlp.output_linear", ""),
            shared_intermediate="shared_intermediate_size",
        )
    ),
    "glm4_moe": Family(
        out_bias=False,
        epsilon=1e-5,
        rotated=0.5,
        routed=_LONE_ROUTED,
    ),
    "deepseek_v2": replace(
        _DEEPSEEK,
        mlp_bias=Flag("mlp_bias"),
        routed=replace(_LONE_ROUTED, whole_shares=False, lone_shares=False),
        stated=("first_k_dense_replace", "routed_scaling_factor", "topk_method", "v_head_dim"),
    ),
    "deepseek_v3": _DEEPSEEK,
    "glm4_moe_lite": replace(
        _DEEPSEEK,
        epsilon=1e-5,
        rotated=1.0,
        routed=replace(_LONE_ROUTED, some="types"),
        stated=("n_group", "routed_scaling_factor", "topk_group", "v_head_dim"),
    ),
    "youtu": Family(neighbours=True, latent=True, tied=True, stated=("v_head_dim",)),
    "minicpm3": Family(
        mlp_bias=Flag("mlp_bias"),
        epsilon=1e-5,
        tied=True,
        latent=True,
        stated=("dim_model_base", "scale_depth", "scale_emb"),
    ),
    "gpt_oss": Family(
        query_bias=Flag("attention_bias", True),
        out_bias=Flag("attention_bias", True),
        epsilon=1e-5,
        head_dim=64,
        theta=150_000.0,
        windows=Windows(every=2, absent=128),
        routed=Routed(
            intermediate="intermediate_size",
            whole_shares=True,
            router="mlp.router",
            gate_up=("mlp.experts.gate_up_proj",),
            down="mlp.experts.down_proj",
            transposed=True,
            biased=True,
        ),
    ),
}
