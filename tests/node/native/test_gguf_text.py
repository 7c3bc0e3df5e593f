"""What a GGUF file says of its text, as the client reads it: tokens, ends, templates, always in the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from node.native.gguf.tokenizer import text_files
from protocol.errors import BadCheckpoint, UnsupportedModel
from swarm.text.model import TextModel
from tests.support.gguf import tokenizer_fields

TINY = Path("swarm/models/tiny")
# A vocabulary with scores: of what can be merged the best comes first.
PIECES = {"▁": -3.0, "h": -3.1, "i": -3.2, "▁h": -1.0, "hi": -2.0, "▁hi": -0.5, "ii": -2.5}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def by_scores(**changed: Any) -> dict[str, Any]:
    """Metadata of a tokenizer with scores; dots are written as "__"."""
    tokens = ["<unk>", "<s>", "</s>", "<|end|>", *BYTES, *PIECES]
    kinds = [2, 3, 3, 3, *[6] * 256, *[1] * len(PIECES)]
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(kinds),
        "tokenizer.ggml.scores": np.array([0.0] * 260 + list(PIECES.values()), np.float32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return fields | {name.replace("__", "."): value for name, value in changed.items()}


def text(metadata: Mapping[str, Any]) -> TextModel:
    """As a client has it."""
    return TextModel(text_files(metadata))


def shown(model: TextModel, said: str, metadata: Mapping[str, Any]) -> list[str]:
    """The tokens of a text."""
    return [metadata["tokenizer.ggml.tokens"][token] for token in model.encode(said)]


def test_scores_decide_what_is_merged() -> None:
    """A word has a space before it, what is unknown is spelt in bytes, and the text comes back."""
    fields = by_scores()
    model = text(fields)
    assert shown(model, "hi hii", fields) == ["<s>", "▁hi", "▁hi", "i"]
    assert shown(model, "é", fields) == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    assert model.decode(model.encode("hi é hi")) == "hi é hi"
    assert shown(model, "hi<|end|>", fields)[-1] == "<|end|>"


def test_a_file_may_want_neither_a_space_nor_a_beginning() -> None:
    """As Gemma's and Phi's say."""
    fields = by_scores(tokenizer__ggml__add_space_prefix=False, tokenizer__ggml__add_bos_token=False)
    model = text(fields)
    assert shown(model, "hi hi", fields) == ["hi", "▁hi"]
    assert model.decode(model.encode("hi")) == "hi"


def test_ends_are_those_that_are_said_and_those_that_are_known() -> None:
    """An answer ends with the end of a turn, whatever the file names as the end of a text."""
    assert text(by_scores()).eos == {2, 3}
    assert text(by_scores(tokenizer__ggml__eot_token_id=1)).eos == {1, 2, 3}
    assert text(by_scores(tokenizer__ggml__eos_token_id=10_000)).eos == {3}


def test_a_text_comes_back_and_the_template_is_the_folders() -> None:
    """From a file that was made of the model that ships; and nothing hangs on the order of its fields."""
    folder = {path.name: path.read_bytes() for path in TINY.iterdir()}
    template = folder["chat_template.jinja"].decode()
    fields = tokenizer_fields(TINY) | {"tokenizer.chat_template": template}
    fields["tokenizer.ggml.token_type"] = np.array(fields["tokenizer.ggml.token_type"])
    files = text_files(fields)
    assert files == text_files(dict(reversed(fields.items())))
    assert files["chat_template.jinja"] == folder["chat_template.jinja"]
    model, other = TextModel(files), TextModel({n: folder[n] for n in ("tokenizer.json", "config.json")})
    assert (model.silent, model.bos) == (other.silent, 257)
    for said in ("Hello, world", "naïve  日本 🙂\n\tx", "12 + 345 ="):
        assert model.decode(model.encode(said)) == said


@pytest.mark.parametrize(
    ("cut", "pieces"),
    [
        ("gpt-2", [" 1234", " it", "'s", " ok"]),
        ("smollm", [" ", "1", "2", "3", "4", " it", "'s", " ok"]),
        ("llama-bpe", [" ", "123", "4", " it", "'s", " ok"]),
        ("qwen2", [" ", "1", "2", "3", "4", " it", "'s", " ok"]),
        ("gpt-4o", [" ", "123", "4", " it", "'s", " ok"]),
        ("tekken", [" ", "1", "2", "3", "4", " it", "'s", " ok"]),
    ],
)
def test_text_is_cut_as_the_file_says(cut: str, pieces: list[str]) -> None:
    """With a vocabulary that has every piece of either way whole, what comes out shows where text was cut."""
    alphabet = sorted({*"Ġ1234it'sok"})
    wanted = ["1234", "123", "12", "it", "'s", "ok"]
    merges = ["1 2", "12 3", "123 4", "i t", "' s", "o k", "Ġ 1234", "Ġ it", "Ġ ok"]
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": cut,
        "tokenizer.ggml.tokens": [*alphabet, *wanted, "Ġ1234", "Ġit", "Ġok"],
        "tokenizer.ggml.merges": merges,
    }
    model = text(fields)
    assert [model.decode([token]) for token in model.encode(" 1234 it's ok")] == pieces


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tokenizer__ggml__scores": np.array([1.0], np.float32)}, "no scores"),
        ({"tokenizer__ggml__scores": np.full(267, np.nan, np.float32)}, "no scores"),
        ({"tokenizer__ggml__token_type": np.full(267, 1.5)}, "token types"),
        ({"tokenizer__ggml__tokens": []}, "no vocabulary"),
        ({"tokenizer__ggml__model": None}, "type 'NoneType'"),
        ({"tokenizer__chat_template": "x" * (1 << 21)}, "chat template"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_makes_no_tokenizer_is_refused(changed: dict[str, Any], said: str) -> None:
    """In one line."""
    with pytest.raises((BadCheckpoint, UnsupportedModel), match=said):
        text_files(by_scores(**changed))


def test_json_is_written_by_hand() -> None:
    """What a library would write could change with it, and the model's digest with that."""
    written = json.loads(text_files(by_scores())["tokenizer.json"])
    assert written["model"]["merges"][:2] == [["▁", "hi"], ["▁h", "i"]]
