"""From a GGUF file's metadata to tokenizer.json and what stands beside it; no library decides a byte of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from protocol import limits
from protocol.errors import BadCheckpoint, UnsupportedModel

_NORMAL, _UNKNOWN, _CONTROL, _DEFINED, _BYTE = 1, 2, 3, 4, 6
_SPACE: Final = "\u2581"
# What a turn ends with, in models whose files name another token as their end.
_ENDS: Final = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|eom_id|>")
# A merge is sought at each place of a token, so no token may be long.
_TOKEN_CHARACTERS: Final = 512
_CHARACTERS: Final = 1 << 24
_CHAT_TEMPLATE: Final = 1 << 20

_CONTRACTIONS: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS: Final = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3: Final = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"
# Words by the case of their letters, as cut by tokenizers of 200 000 tokens and by Mistral's newer ones.
_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD: Final = r"[^\r\n\p{L}\p{N}]?"
_CASED: Final = (f"{_LEAD}{_UPPER}*{_LOWER}+", f"{_LEAD}{_UPPER}+{_LOWER}*")
_REST_SLASH: Final = _REST.replace(r"[\r\n]*|", r"[\r\n/]*|", 1)
_TEKKEN: Final = rf"{'|'.join(_CASED)}|\p{{N}}|{_REST_SLASH}"
_GPT4O: Final = rf"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_REST_SLASH}"
_QWEN2: Final = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_REST}"
# How text is cut before it is merged, by llama.cpp's names: as GPT-2 does (""), so with digits one by one (None), or
# by a pattern.
_CUTS: Final[Mapping[str, str | None]] = {
    "default": "",
    "gpt-2": "",
    "smollm": None,
    "starcoder": None,
    "refact": None,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "dbrx": _LLAMA3,
    "glm4": _LLAMA3,
    "chatglm-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "stablelm2": _QWEN2,
    "tekken": _TEKKEN,
    "gpt-4o": _GPT4O,
}
# Of these a text begins with bos unless the file says otherwise, and what is a token whole is not merged.
_WHOLE: Final = ("llama-bpe", "llama3", "llama-v3", "falcon3", "tekken")


def text_files(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json, generation_config.json, and the chat template if there is one.

    Raises: BadCheckpoint; UnsupportedModel, naming a tokenizer that is not known.
    """
    tokens, kinds = _tokens(metadata), _kinds(metadata)
    match _word(metadata, "model"):
        case "gpt2":
            tokenizer = _by_merges(metadata, tokens)
        case "llama":
            tokenizer = _by_scores(metadata, tokens, kinds)
        case other:
            raise UnsupportedModel(f"GGUF tokenizers of type {other[:40]!r} are not known")
    tokenizer["added_tokens"] = [
        _added(index, token, kind)
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_UNKNOWN, _CONTROL, _DEFINED)
    ]
    files = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": _about(metadata, tokens),
        "generation_config.json": {"eos_token_id": _ends(metadata, tokens, kinds)},
    }
    written = {name: _json(value) for name, value in files.items()}
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        if len(template) > _CHAT_TEMPLATE:
            raise BadCheckpoint("the GGUF file has a chat template of more than a megabyte")
        written["chat_template.jinja"] = template.encode()
    for name, data in written.items():
        if len(data) > limits.MODEL_FILE_BYTES:
            raise BadCheckpoint(f"the GGUF file makes a {name} of {len(data)} bytes")
    return written


def _word(metadata: Mapping[str, Any], name: str) -> str:
    """A field of the tokenizer that is text; of any other kind it is shown as that."""
    value = metadata.get(f"tokenizer.ggml.{name}", "")
    return value if isinstance(value, str) else type(value).__name__


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _tokens(metadata: Mapping[str, Any]) -> Sequence[str]:
    """The vocabulary. One that is there twice is told apart, as only the first can be meant by a text."""
    given = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(given, list) or not 0 < len(given) <= limits.VOCABULARY:
        raise BadCheckpoint("the GGUF file has no vocabulary")
    if max(map(len, given)) > _TOKEN_CHARACTERS or sum(map(len, given)) > _CHARACTERS:
        raise BadCheckpoint("the GGUF file has longer tokens than any vocabulary")
    seen: set[str] = set()
    tokens = []
    for index, token in enumerate(given):
        own = token if token not in seen else f"{token}[{index}]"
        if own in seen:
            raise BadCheckpoint("the GGUF file has tokens that cannot be told apart")
        seen.add(own)
        tokens.append(own)
    return tokens


def _kinds(metadata: Mapping[str, Any]) -> Sequence[int]:
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type")
    if kinds is None:
        return [_NORMAL] * len(tokens)
    if not isinstance(kinds, np.ndarray) or len(kinds) != len(tokens) or kinds.dtype.kind not in "iu":
        raise BadCheckpoint("the GGUF file has token types that are not of its vocabulary")
    return [int(kind) for kind in kinds]


def _added(index: int, token: str, kind: int) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": token, **plain, "special": kind != _DEFINED}


def _by_merges(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """Byte-level BPE, with its merges in the file."""
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise BadCheckpoint("the GGUF file has no merges")
    pairs = [merge.split(" ") for merge in merges]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    for pair in pairs:
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys():
            raise BadCheckpoint(f"the GGUF file merges {str(pair)[:80]}, which is not of its vocabulary")
    named = _word(metadata, "pre") or "default"
    if named not in _CUTS:
        raise UnsupportedModel(f"GGUF tokenizers that cut text like {named[:40]!r} are not known")
    cut = _CUTS[named]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": not cut}
    steps: list[dict[str, Any]] = [byte_level]
    if cut:
        split = {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False}
        steps.insert(0, split)
    elif cut is None:
        steps.insert(0, {"type": "Digits", "individual_digits": True})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": {"type": "NFC"} if cut is _QWEN2 else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {**_BPE, "vocab": vocabulary, "merges": pairs, "ignore_merges": named in _WHOLE},
    }


_BPE: Final = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


def _by_scores(metadata: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int]) -> dict[str, Any]:
    """SentencePiece's BPE: of two neighbours that make a token those come first whose token has the best score."""
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(tokens) or not np.isfinite(scores).all():
        raise BadCheckpoint("the GGUF file has no scores for its tokens")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN), None)
    strip: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]
    if metadata.get("tokenizer.ggml.add_space_prefix", True) is not False:
        steps.insert(0, {"type": "Prepend", "prepend": _SPACE})
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    ranked = sorted(_splits(vocabulary, kinds), key=lambda split: (-scores[split[0]], split[0], split[1]))
    model = {
        **_BPE,
        "unk_token": unknown,
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": vocabulary,
        "merges": [[tokens[left], tokens[right]] for _, left, right in ranked],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def _splits(vocabulary: Mapping[str, int], kinds: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Of each token that two others make: it, and these."""
    for token, index in vocabulary.items():
        if kinds[index] in (_UNKNOWN, _CONTROL, _BYTE):
            continue
        for at in range(1, len(token)):
            left, right = vocabulary.get(token[:at]), vocabulary.get(token[at:])
            if left is not None and right is not None:
                yield index, left, right


def _about(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for theirs, name in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        token = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if type(token) is int and token < len(tokens):
            found[f"{name}_token"] = tokens[token]
    begins = _word(metadata, "model") == "llama" or _word(metadata, "pre") in _WHOLE
    found["add_bos_token"] = metadata.get("tokenizer.ggml.add_bos_token", begins) is True
    return found


def _ends(metadata: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int]) -> list[int]:
    """The tokens that end an answer: those that the file says, and those that are known by name."""
    given = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    found = {token for token in given if type(token) is int and 0 <= token < len(tokens)}
    named = set(_ENDS)
    found |= {i for i, token in enumerate(tokens) if token in named and kinds[i] == _CONTROL}
    return sorted(found)
