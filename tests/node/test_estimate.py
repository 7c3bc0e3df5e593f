"""Configurations of large models as they are published, and the bytes of their layers by hand, from the shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from node.advice import advise
from node.estimate import Estimate, estimate
from protocol.errors import BadCheckpoint, ConfigError, UnsupportedModel

LLAMA: dict[str, Any] = {  # meta-llama/Llama-3.3-70B-Instruct
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 8192,
    "initializer_range": 0.02,
    "intermediate_size": 28672,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.47.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
QWQ: dict[str, Any] = {  # Qwen/QwQ-32B
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "intermediate_size": 27648,
    "max_position_embeddings": 40960,
    "max_window_layers": 64,
    "model_type": "qwen2",
    "num_attention_heads": 40,
    "num_hidden_layers": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
DEEPSEEK: dict[str, Any] = {  # deepseek-ai/DeepSeek-V3
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_deepseek.DeepseekV3Config",
        "AutoModel": "modeling_deepseek.DeepseekV3Model",
        "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM",
    },
    "aux_loss_alpha": 0.001,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "pretraining_tp": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
GEMMA: dict[str, Any] = {  # google/gemma-3-27b-it
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "model_type": "gemma3_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 168,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    },
}


@pytest.fixture
def of(tmp_path: Path) -> Any:
    """The estimate of a model of which there is the configuration alone."""

    def estimated(config: dict[str, Any]) -> Estimate:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config), "utf-8")
        return estimate(str(path))

    return estimated


def int8(weights: int) -> int:
    """A byte each, and two for the scale of 32 of them."""
    return weights + 2 * weights // 32


def int4(weights: int) -> int:
    """Half a byte each, and four for scale and minimum of 32 of them."""
    return weights // 2 + 4 * weights // 32


def test_llama_3_3_70b(of: Any) -> None:
    """Norms are kept in f32."""
    attention = 8192 * 8192 + 2 * 1024 * 8192 + 8192 * 8192
    mlp = 3 * 28672 * 8192
    norms, ends = 2 * 8192, 128256 * 8192
    said = of(LLAMA)
    assert (said.engine, said.own, said.stored_in, said.blocks) == ("native", "bf16", "bf16", 80)
    layers = {name: footprint.stages[1:-1] for name, footprint in said.footprints.items()}
    assert layers == {
        "f32": (4 * (attention + mlp + norms),) * 80,
        "bf16": (2 * (attention + mlp) + 4 * norms,) * 80,
        "int8": (int8(attention + mlp) + 4 * norms,) * 80,
        "int4": (int8(attention) + int4(mlp) + 4 * norms,) * 80,
    }
    assert said.stored == (2 * ends, *(2 * (attention + mlp + norms),) * 80, 2 * (ends + 8192))
    assert sum(said.stored) == 2 * 70_553_706_496
    assert said.footprints["int4"].stages[-1] == int8(ends) + 4 * 8192
    assert said.footprints["bf16"].kv == (2 * 8 * 128 * 4,) * 80
    assert said.footprints["int8"].kv == (2 * 8 * 128 * 2,) * 80


def test_qwq_32b(of: Any) -> None:
    """Queries, keys and values have biases, kept in f32."""
    attention = 5120 * 5120 + 2 * 1024 * 5120 + 5120 * 5120
    biases = 5120 + 2 * 1024
    mlp = 3 * 27648 * 5120
    norms, ends = 2 * 5120, 152064 * 5120
    said = of(QWQ)
    assert (said.engine, said.own, said.stored_in, said.blocks) == ("native", "bf16", "bf16", 64)
    layers = {name: footprint.stages[1:-1] for name, footprint in said.footprints.items()}
    assert layers == {
        "f32": (4 * (attention + mlp + biases + norms),) * 64,
        "bf16": (2 * (attention + mlp) + 4 * (biases + norms),) * 64,
        "int8": (int8(attention + mlp) + 4 * (biases + norms),) * 64,
        "int4": (int8(attention) + int4(mlp) + 4 * (biases + norms),) * 64,
    }
    assert said.stored is not None
    assert sum(said.stored) == 2 * 32_763_876_352
    assert said.footprints["bf16"].stages[0] == 2 * ends
    assert said.footprints["int8"].kv == (2 * 8 * 128 * 2,) * 64


def test_deepseek_v3(of: Any) -> None:
    """Queries, keys and values by way of few numbers, of which the cache holds 512 + 64; stored in eight bits."""
    matrices = [
        (1536, 7168),  # to the few numbers of queries
        (128 * (128 + 64), 1536),  # and from them to the heads
        (512 + 64, 7168),  # to those of keys and values, and what turns
        (128 * (128 + 128), 512),  # and from them
        (7168, 128 * 128),
    ]
    attention = sum(rows * columns for rows, columns in matrices)
    norms = 2 * 7168 + 1536 + 512
    dense = [(18432, 7168), (18432, 7168), (7168, 18432)]
    expert = [(2048, 7168), (2048, 7168), (7168, 2048)]
    router, bias, ends = 256 * 7168, 256, 129280 * 7168

    def weights(shapes: list[tuple[int, int]]) -> int:
        return sum(rows * columns for rows, columns in shapes)

    def fp8(shapes: list[tuple[int, int]]) -> int:
        """A byte each, and four for the scale of each block of 128 x 128, the last ones partly filled."""
        return sum(rows * columns + 4 * -(-rows // 128) * -(-columns // 128) for rows, columns in shapes)

    said = of(DEEPSEEK)
    assert (said.engine, said.stored_in, said.blocks) == ("native", "fp8", 61)
    first, later = weights(dense), 257 * weights(expert)
    blocks = 3 * (attention + first + norms) + 58 * (attention + later + router + norms + bias)
    assert blocks + 2 * ends + 7168 == 671_026_419_200
    # What routes is stored in bf16 and stays so; norms and the bias of choices are kept in f32.
    beside = 2 * router + 4 * (norms + bias)
    expected = {
        "f32": (4 * (attention + first + norms), 4 * (attention + later) + beside),
        "bf16": (2 * (attention + first) + 4 * norms, 2 * (attention + later) + beside),
        "int8": (int8(attention + first) + 4 * norms, int8(attention + later) + beside),
        "int4": (int8(attention) + int4(first) + 4 * norms, int8(attention) + int4(later) + beside),
    }
    for name, (dense_layer, routed_layer) in expected.items():
        assert said.footprints[name].stages[1:-1] == (dense_layer,) * 3 + (routed_layer,) * 58
        assert said.footprints[name].kv == ((512 + 64) * (4 if name in ("f32", "bf16") else 2),) * 61
    assert said.footprints["int8"].stages[-1] == int8(ends) + 4 * 7168
    stored_first = fp8(matrices) + fp8(dense) + 2 * norms
    stored_later = fp8(matrices) + 257 * fp8(expert) + 2 * (router + norms + bias)
    assert said.stored == (2 * ends, *(stored_first,) * 3, *(stored_later,) * 58, 2 * (ends + 7168))


def test_gemma_3_27b(of: Any) -> None:
    """The part that reads text, of a model that sees; its head is the embedding."""
    attention = 2 * 4096 * 5376 + 2 * 2048 * 5376
    mlp = 3 * 21504 * 5376
    norms = 4 * 5376 + 2 * 128
    ends = 262208 * 5376
    said = of(GEMMA)
    assert (said.engine, said.stored_in, said.blocks) == ("torch", "bf16", 62)
    assert said.stored == (2 * ends, *(2 * (attention + mlp + norms),) * 62, 2 * (ends + 5376))
    assert sum(said.stored) - said.shared == 2 * 27_009_346_304
    assert said.footprints["f32"].stages[1:-1] == (4 * (attention + mlp + norms),) * 62
    assert said.footprints["bf16"].kv == (2 * 16 * 128 * 2,) * 62


def test_gemma_3_of_text_alone_is_computed_by_the_kernels(of: Any) -> None:
    """In bf16 to the byte as torch keeps it, but for the norms."""
    text = {**GEMMA["text_config"], "vocab_size": 262208, "torch_dtype": "bfloat16"}
    text |= {"max_position_embeddings": 131072}
    said, seeing = of(text), of(GEMMA)
    assert said.engine == "native"
    assert said.stored == seeing.stored
    norms = 4 * 5376 + 2 * 128
    assert said.footprints["bf16"].stages[1] - seeing.footprints["bf16"].stages[1] == 2 * norms


def test_advice_for_machines(of: Any) -> None:
    """Of 64 GiB three fifths hold weights: 70 billion in bf16 are four such, in four bits two."""
    found = advise(of(LLAMA), "MODEL", [64 << 30, 16 << 30], 40 << 30)
    assert [machines["count"]["bf16"] for machines in found["machines"]] == [4, 14]
    assert found["machines"][0]["count"]["int4"] == 2
    assert [stage["layers"] for stage in found["stages"]] == [None, [0, 80], None]
    assert found["kv_1000_tokens"]["int8"] == 1000 * 80 * 2 * 8 * 128 * 2
    serves = found["here"]["serves"]
    assert list(serves) == ["bf16", "int8", "int4"]
    assert serves["bf16"]["command"] == "swarm node --model MODEL --layers 1:16"
    assert serves["bf16"]["bytes"] <= found["here"]["for_weights"]
    assert serves["int8"]["command"] == "swarm node --model MODEL --quant int8 --layers 1:29"
    assert json.loads(json.dumps(found)) == found
    assert advise(of(LLAMA), "MODEL", [], 500 << 20)["here"]["serves"] == dict.fromkeys(serves)


def test_what_no_node_takes_is_not_offered(of: Any) -> None:
    """It is said why."""
    found = advise(of({**DEEPSEEK, "quantization_config": {"quant_method": "hqq"}}), "MODEL", [], 1 << 40)
    assert "hqq" in found["refused"]
    assert found["here"]["serves"] == {}
    assert [stage["layers"] for stage in found["stages"]] == [None, [0, 3], [3, 61], None]


def test_the_form_of_weights_may_be_unknown(of: Any) -> None:
    """Then what they take in the files is, and nothing else."""
    for given in ("gptq", {"quant_method": "hqq"}, {"quant_method": "fp8", "weight_block_size": [0, 128]}):
        assert of({**LLAMA, "quantization_config": given}).stored is None
    said = of({**LLAMA, "quantization_config": {"quant_method": "gptq", "bits": 3}})
    assert (said.stored, said.stored_in) == (None, "gptq")
    assert "3 bits" in said.refused
    found = advise(said, "MODEL", [], 1 << 40)
    assert found["total"]["stored"] is None
    assert found["total"]["bf16"] == 2 * 70_553_706_496


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("{", BadCheckpoint, "no JSON"),
        ("[" * 100_000, BadCheckpoint, "no JSON"),
        ("[]", BadCheckpoint, "does not say what model"),
        ('{"model_type": ["llama"]}', UnsupportedModel, "no model type"),
        ('{"model_type": "nonesuch"}', UnsupportedModel, "no model type"),
        ('{"model_type": "llama", "hidden_size": "many"}', BadCheckpoint, "no llama's"),
        ('{"model_type": "llama", "num_hidden_layers": 1e999}', BadCheckpoint, "no llama's"),
        ('{"model_type": "llama", "num_hidden_layers": 1000000000}', UnsupportedModel, "1000000000 layers"),
    ],
)
def test_a_config_that_is_none_is_told(text: str, error: type[Exception], says: str, tmp_path: Path) -> None:
    """In one line."""
    (tmp_path / "config.json").write_text(text, "utf-8")
    for model in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(error, match=says) as caught:
            estimate(str(model))
        assert len(str(caught.value).splitlines()) == 1


def test_a_folder_without_a_config_is_told(tmp_path: Path) -> None:
    """And so is what is no folder."""
    with pytest.raises(BadCheckpoint, match=r"no config\.json"):
        estimate(str(tmp_path))
    with pytest.raises(ConfigError, match="no such folder"):
        estimate(str(tmp_path / "gone"))
