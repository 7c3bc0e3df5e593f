"""Two small tokenizers of the kinds that models use, and the files of a made-up model."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPECIAL = ["<s>", "</s>", "<|user|>", "<|assistant|>"]
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_level() -> Tokenizer:
    """As GPT-2's: every byte is a token, some merges cut through characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("Ġ", "h"), ("Ã", "©"), ("ð", "Ł"), ("¥", "æ"), ("æ", "Ĺ")]
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def metaspace() -> Tokenizer:
    """As Llama 2's: spaces become ▁, one is put in front, unknown characters go byte by byte."""
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyz,.", "▁h", "he", "▁he", "ll", "日", "é"]
    vocabulary = {token: index for index, token in enumerate([*tokens, *pieces])}
    merges = [("▁", "h"), ("h", "e"), ("▁h", "e"), ("▁", "he"), ("l", "l")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    return tokenizer


def model_files(tokenizer: Tokenizer | None = None, **other: bytes | dict[str, Any]) -> dict[str, bytes]:
    """The small files of a checkpoint; `other` replaces or adds files (`config=...` is config.json)."""
    files: dict[str, bytes | dict[str, Any]] = {
        "config": {"vocab_size": 400, "max_position_embeddings": 128, "eos_token_id": 1},
        "generation_config": {"eos_token_id": [1, 2]},
        "tokenizer_config": {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": CHAT},
        **other,
    }
    encoded = {
        f"{name}.json": value if isinstance(value, bytes) else json.dumps(value).encode()
        for name, value in files.items()
    }
    encoded["tokenizer.json"] = (tokenizer or byte_level()).to_str().encode()
    return encoded
