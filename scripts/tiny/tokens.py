"""The tokenizer: whole words for the fixed phrases of the tasks, single bytes for everything else."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from scripts.tiny.families import TASKS

PAD, BOS, USER, ASSISTANT, END = SPECIAL = ("<|pad|>", "<|bos|>", "<|user|>", "<|assistant|>", "<|end|>")
CONTEXT = 512
WORDS_AT_MOST = 250
FILLERS = "a larger bigger greater smaller less even odd first last day month"

# A piece is an operator between numbers, a comma of a list, a word, one digit, some punctuation or one blank.
PIECE = r" [+=-] (?=[0-9?])|, (?=[0-9]|[a-z]\b)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s"

CHAT_TEMPLATE = (
    "{{- '<|bos|>' -}}\n"
    "{%- for message in messages -%}\n"
    "{%- if message['role'] in ('user', 'assistant') -%}\n"
    "{{- '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' -}}\n"
    "{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}\n"
)


def build_tokenizer() -> Tokenizer:
    """A lossless tokenizer: a piece that is in the vocabulary is one token, any other goes byte by byte.

    Only words after a blank and words with a capital are in it, so that a quoted word is always spelled.
    """
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    counts: Counter[str] = Counter()
    for phrase in [FILLERS, *(phrase for task in TASKS for phrase in task.phrases())]:
        pieces = (piece for piece, _ in split.pre_tokenize_str(re.sub(r"\{.*?\}", "0", phrase)))
        counts.update(piece for piece in pieces if len(piece) > 1 and not piece[0].islower())
    for operator in (" + ", " - ", " = ", ", "):
        counts[split.pre_tokenize_str(f"1{operator}1")[1][0]] += 1000
    words = sorted(counts, key=lambda piece: (-counts[piece], piece))[:WORDS_AT_MOST]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet, *words])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja into the folder."""
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    config = {
        "tokenizer_class": PreTrainedTokenizerFast.__name__,
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
