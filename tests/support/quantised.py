"""Checkpoints quantised in the ways that people publish them, with what their tensors stand for.

Written anew, in torch: nothing here is shared with the readers.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
# From a weight [outs, ins] to its tensors, by what takes the place of ".weight", and the weight they stand for.
Writer = Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]
LINEAR = ("_proj.weight", "_proj_with_mqa.weight", ".w1.weight", ".w2.weight", ".w3.weight")
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
NF4 = [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0]
NF4 += [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
FP4 = [0.0, 0.005208333, 0.6666667, 1.0, 0.33333334, 0.5, 0.16666667, 0.25]
FP4 += [-value for value in FP4]
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
E2M1 += [-value for value in E2M1]


@dataclass(frozen=True)
class Method:
    """A writer, and the quantization_config of what it writes. head: it writes the head too."""

    write: Writer
    config: dict[str, Any]
    head: bool = False


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes [rows, columns] in words [rows, words] of 32 bits, the first in the lowest."""
    per = 32 // bits
    codes = torch.nn.functional.pad(codes.long(), (0, -codes.shape[1] % per)).reshape(len(codes), -1, per)
    return (codes << (bits * torch.arange(per))).sum(-1).to(torch.int32)


def grouped(weight: torch.Tensor, group: int, bits: int, symmetric: bool) -> tuple[torch.Tensor, ...]:
    """Codes [outs, ins] from 0 on, scales in fp16 and zeros [outs, groups]."""
    parts = weight.reshape(len(weight), -1, group)
    most = 2**bits - 1
    if symmetric:
        scales = (2 * parts.abs().amax(-1) / most).half()
        zeros = torch.full_like(scales, 2 ** (bits - 1))
    else:
        low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
        scales = ((high - low) / most).half()
        zeros = (-low / scales.float()).round().clamp(1, most)
    codes = (parts / scales.float()[..., None]).round() + zeros.float()[..., None]
    return codes.clamp(0, most).reshape(weight.shape), scales, zeros


def worth(
    codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | float, columns: torch.Tensor
) -> torch.Tensor:
    """(code - zero) * scale, in fp32; columns: of each column its group."""
    zeros = torch.as_tensor(zeros).float().expand(scales.shape)
    return (codes.float() - zeros[:, columns]) * scales.float()[:, columns]


def gptq(
    bits: int, group: int, *, symmetric: bool = True, first: bool = True, shuffled: bool = False
) -> Method:
    """GPTQ; shuffled: as desc_act leaves it."""

    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        ins = weight.shape[1]
        size = ins if group == -1 else group
        columns = torch.arange(ins) // size
        codes, scales, zeros = grouped(weight, size, bits, symmetric)
        if shuffled:
            order = torch.randperm(ins, generator=torch.Generator().manual_seed(ins))
            codes, columns = codes[:, order], columns[order]
        found = {
            ".qweight": pack(codes, bits).T.contiguous(),
            ".qzeros": pack(zeros.T - int(first), bits),
            ".scales": scales.T.contiguous(),
            ".g_idx": columns.to(torch.int32),
        }
        return found, worth(codes, scales, zeros, columns)

    config = {"bits": bits, "group_size": group, "desc_act": shuffled, "sym": symmetric, "damp_percent": 0.1}
    layout = "gptq" if first else "gptq_v2"
    return Method(write, {"quant_method": "gptq", "checkpoint_format": layout, **config})


def awq(group: int) -> Method:
    """AWQ as its matrix product wants it."""

    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        codes, scales, zeros = grouped(weight, group, 4, symmetric=False)

        def shuffled(numbers: torch.Tensor) -> torch.Tensor:
            return pack(numbers.T.reshape(numbers.shape[1], -1, 8)[..., AWQ_ORDER].flatten(1), 4)

        found = {".qweight": shuffled(codes), ".qzeros": shuffled(zeros), ".scales": scales.T.contiguous()}
        return found, worth(codes, scales, zeros, torch.arange(weight.shape[1]) // group)

    config = {"bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    return Method(write, {"quant_method": "awq", "modules_to_not_convert": None, **config})


def eight_bit_floats(weight: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """Floats of eight bits, scales for blocks, and what they stand for."""
    (outs, ins), (down, across) = weight.shape, block
    rows, columns = torch.arange(outs) // down, torch.arange(ins) // across
    scales = torch.zeros(math.ceil(outs / down), math.ceil(ins / across))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            scales[i, j] = weight[rows == i][:, columns == j].abs().max() / 448
    wide = scales[rows][:, columns]
    codes = (weight / wide).to(torch.float8_e4m3fn)
    return codes, scales, codes.float() * wide


def fp8(block: tuple[int, int], suffix: str, method: str, *, per: str = "block") -> Method:
    """Eight-bit floats with a scale for each block, each row or for all; blocks of no whole number too."""

    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        size = {"block": block, "row": (1, weight.shape[1]), "all": tuple(weight.shape)}[per]
        codes, scales, wide = eight_bit_floats(weight, size)  # type: ignore[arg-type]
        if per == "all":
            scales = scales.reshape(())
        return {".weight": codes, suffix: scales, ".input_scale": torch.tensor(0.5)}, wide

    config: dict[str, Any] = {"quant_method": method}
    if method == "fp8":
        config |= {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "weight_block_size": list(block) if per == "block" else None,
        }
    return Method(write, config)


def compressed(form: str, weights: dict[str, Any], write: Writer, *, head: bool = False) -> Method:
    """compressed-tensors, with one group of layers."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    config = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}
    ignore = [] if head else ["lm_head"]
    return Method(write, {**config, "ignore": ignore, "quantization_status": "compressed"}, head)


def packed(bits: int, group: int, *, symmetric: bool = True, head: bool = False) -> Method:
    """Whole numbers in words along rows; the zeros' words along columns."""

    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        size = group or weight.shape[1]
        codes, scales, zeros = grouped(weight, size, bits, symmetric)
        found = {
            ".weight_packed": pack(codes, bits),
            ".weight_scale": scales,
            ".weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            found[".weight_zero_point"] = pack(zeros.T, bits).T.contiguous()
        return found, worth(codes, scales, zeros, torch.arange(weight.shape[1]) // size)

    how = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "group" if group else "channel",
    }
    return compressed("pack-quantized", {**how, "group_size": group or None}, write, head=head)


def whole_numbers(*, symmetric: bool) -> Method:
    """A byte for each weight, a scale for each row."""

    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        codes, scales, zeros = grouped(weight, weight.shape[1], 8, symmetric)
        found = {".weight": (codes - 128).to(torch.int8), ".weight_scale": scales.bfloat16()}
        if not symmetric:
            found[".weight_zero_point"] = (zeros - 128).to(torch.int8)
        return found, worth(codes, scales.bfloat16(), zeros, torch.zeros(weight.shape[1], dtype=torch.long))

    how = {"num_bits": 8, "type": "int", "symmetric": symmetric, "strategy": "channel", "group_size": None}
    return compressed("int-quantized", how, write)


def floats(strategy: str, form: str, block: tuple[int, int] | None = None) -> Method:
    """Eight-bit floats as compressed-tensors has them."""

    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        size = block or {"tensor": tuple(weight.shape), "channel": (1, weight.shape[1])}[strategy]
        codes, scales, wide = eight_bit_floats(weight, size)  # type: ignore[arg-type]
        return {
            ".weight": codes,
            ".weight_scale": scales.reshape(1) if strategy == "tensor" else scales,
        }, wide

    how: dict[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy}
    return compressed(form, {**how, "block_structure": list(block) if block else None}, write)


def four_bit_floats(*, nvidia: bool) -> Method:
    """Pairs of floats of four bits; scales are powers of two, or floats of eight bits below one for all."""
    size = 16 if nvidia else 32

    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        parts = weight.reshape(len(weight), -1, size)
        scales = parts.abs().amax(-1) / 6
        found: Tensors = {}
        if nvidia:
            overall = 448 / scales.max()
            small = (scales * overall).to(torch.float8_e4m3fn)
            found = {".weight_scale": small, ".weight_global_scale": overall.reshape(1)}
            scales = small.float() / overall
        else:
            powers = scales.log2().ceil()
            found = {".weight_scale": (powers + 127).to(torch.uint8)}
            scales = powers.exp2()
        table = torch.tensor(E2M1)
        codes = ((parts / scales[..., None])[..., None] - table).abs().argmin(-1)
        wide = table[codes] * scales[..., None]
        flat = codes.flatten(1)
        return {**found, ".weight_packed": (flat[:, ::2] | flat[:, 1::2] << 4).to(torch.uint8)}, wide.flatten(
            1
        )

    how = {"num_bits": 4, "type": "float", "symmetric": True, "group_size": size}
    kind, strategy = ("nvfp4", "tensor_group") if nvidia else ("mxfp4", "group")
    return compressed(f"{kind}-pack-quantized", {**how, "strategy": strategy}, write)


def four_bits(
    kind: str, *, nested: bool = False, storage: torch.dtype = torch.uint8, block: int = 64
) -> Method:
    """bitsandbytes in four bits; nested: with scales in eight bits themselves."""

    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        table = torch.tensor(NF4 if kind == "nf4" else FP4)
        parts = weight.reshape(-1, block)
        scales = parts.abs().amax(-1)
        state: dict[str, Any] = {
            "quant_type": kind,
            "blocksize": block,
            "dtype": "float32",
            "shape": list(weight.shape),
        }
        found: Tensors = {".weight.quant_map": table}
        if nested:
            offset = scales.mean()
            many = torch.nn.functional.pad(scales - offset, (0, -len(scales) % 256)).reshape(-1, 256)
            greatest, map8 = many.abs().amax(-1), torch.linspace(-1, 1, 256)
            small = ((many / greatest[:, None])[..., None] - map8).abs().argmin(-1)
            scales = (map8[small] * greatest[:, None]).flatten()[: len(scales)] + offset
            found |= {".weight.absmax": small.flatten()[: len(scales)].to(torch.uint8)}
            found |= {".weight.nested_absmax": greatest, ".weight.nested_quant_map": map8}
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset.item()}
        else:
            found[".weight.absmax"] = scales
        codes = ((parts / scales[:, None])[..., None] - table).abs().argmin(-1).flatten()
        data = (codes[::2] << 4 | codes[1::2]).to(torch.uint8).reshape(-1, 1)
        found[".weight"] = data.flatten().view(storage).reshape(-1, 1)
        raw = json.dumps(state).encode()
        found[f".weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(raw), dtype=torch.uint8)
        return found, (table[codes].reshape(-1, block) * scales[:, None]).reshape(weight.shape)

    config = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "_load_in_4bit": True,
        "load_in_8bit": False,
    }
    how = {"bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": nested, "llm_int8_skip_modules": None}
    return Method(write, {**config, **how, "bnb_4bit_compute_dtype": "bfloat16", "llm_int8_threshold": 6.0})


def eight_bits() -> Method:
    """bitsandbytes in eight bits."""

    def write(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        scales = weight.abs().amax(1)
        codes = (weight / scales[:, None] * 127).round().to(torch.int8)
        found = {".weight": codes, ".SCB": scales, ".weight_format": torch.tensor(0, dtype=torch.uint8)}
        return found, codes.float() * (scales / 127)[:, None]

    config = {
        "quant_method": "bitsandbytes",
        "load_in_8bit": True,
        "_load_in_8bit": True,
        "load_in_4bit": False,
    }
    return Method(write, {**config, "llm_int8_threshold": 6.0, "llm_int8_skip_modules": ["lm_head"]})


METHODS: dict[str, Method] = {
    "gptq": gptq(4, 32),
    "gptq, zeros": gptq(4, 64, symmetric=False),
    "gptq, zeros, second version": gptq(4, 64, symmetric=False, first=False),
    "gptq, shuffled": gptq(4, 32, symmetric=False, shuffled=True),
    "gptq, 8 bits": gptq(8, 64),
    "gptq, 8 bits, zeros, one group": gptq(8, -1, symmetric=False),
    "gptq, 2 bits": gptq(2, 32, symmetric=False),
    "awq": awq(64),
    "fp8, blocks": fp8((48, 80), ".weight_scale_inv", "fp8"),
    "fp8, rows": fp8((0, 0), ".weight_scale", "fbgemm_fp8", per="row"),
    "fp8, one scale": fp8((0, 0), ".weight_scale", "fp8", per="all"),
    "packed, 4 bits": packed(4, 32),
    "packed, 4 bits, zeros": packed(4, 64, symmetric=False),
    "packed, 8 bits, head": packed(8, 0, head=True),
    "whole numbers": whole_numbers(symmetric=True),
    "whole numbers, zeros": whole_numbers(symmetric=False),
    "floats by rows": floats("channel", "float-quantized"),
    "floats, one scale": floats("tensor", "naive-quantized"),
    "floats by blocks": floats("block", "float-quantized", (64, 64)),
    "nvfp4": four_bit_floats(nvidia=True),
    "mxfp4": four_bit_floats(nvidia=False),
    "nf4": four_bits("nf4"),
    "nf4, nested, kept as bf16": four_bits("nf4", nested=True, storage=torch.bfloat16),
    "fp4, blocks over rows": four_bits("fp4", block=256),
    "bitsandbytes, 8 bits": eight_bits(),
}


def quantise(folder: Path, into: Path, method: Method) -> tuple[Path, Path]:
    """Of a plain checkpoint in one file one that is quantised, and one with what that stands for."""
    quantised = Path(shutil.copytree(folder, into / "quantised"))
    plain = Path(shutil.copytree(folder, into / "plain"))
    tensors = load_file(folder / "model.safetensors")
    wide = dict(tensors)
    for name, weight in list(tensors.items()):
        linear = name.endswith(LINEAR)
        if not linear and not (method.head and name == "lm_head.weight"):
            continue
        del tensors[name]
        parts, wide[name] = method.write(weight)
        for suffix, part in parts.items():
            tensors[name.removesuffix(".weight") + suffix] = part.contiguous()
    save_file(tensors, quantised / "model.safetensors", {"format": "pt"})
    save_file(
        {name: weight.contiguous() for name, weight in wide.items()},
        plain / "model.safetensors",
        {"format": "pt"},
    )
    config = json.loads((quantised / "config.json").read_text("utf-8"))
    (quantised / "config.json").write_text(json.dumps({**config, "quantization_config": method.config}))
    return quantised, plain
