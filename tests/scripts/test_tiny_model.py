"""The model that ships: its size, its files, its tokenizer, and whether its answers are right."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tokenizers import Tokenizer  # noqa: E402  the imports above may skip the whole file

from scripts.tiny.data import conversation  # noqa: E402
from scripts.tiny.families import TASKS  # noqa: E402
from scripts.tiny.scoring import held_out_chats  # noqa: E402
from scripts.tiny.task import Turn  # noqa: E402

MODELS = Path(__file__).parents[2] / "swarm" / "models"
TINY, DRAFT = MODELS / "tiny", MODELS / "tiny-draft"
FILES = {
    "chat_template.jinja",
    "config.json",
    "eval.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}

both = pytest.mark.parametrize("folder", [TINY, DRAFT], ids=lambda folder: folder.name)


@cache
def load(folder: Path) -> tuple[Any, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer


def ask(*questions: str) -> list[str]:
    """The greedy answers of the shipped model to questions asked one after the other in one chat."""
    model, tokenizer = load(TINY)
    messages: list[dict[str, str]] = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        ids = prompt["input_ids"]
        output = model.generate(**prompt, do_sample=False, max_new_tokens=192)[0, ids.shape[1] :]
        messages.append({"role": "assistant", "content": tokenizer.decode(output, skip_special_tokens=True)})
    return [message["content"] for message in messages[1::2]]


def in_a_row(items: Iterable[object]) -> str:
    return ", ".join(map(str, items)) + "."


@both
def test_folder_is_complete_and_small(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES
    limit = {TINY: 12_000_000, DRAFT: 1_000_000}[folder]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= limit


def test_shapes() -> None:
    tiny, draft = (transformers.AutoConfig.from_pretrained(folder) for folder in (TINY, DRAFT))
    assert (tiny.model_type, draft.model_type) == ("llama", "llama")
    assert tiny.num_hidden_layers >= 8
    assert tiny.max_position_embeddings >= 512
    assert tiny.vocab_size == draft.vocab_size
    assert (TINY / "tokenizer.json").read_bytes() == (DRAFT / "tokenizer.json").read_bytes()


@both
def test_end_of_answer_is_the_end_token(folder: Path) -> None:
    model, tokenizer = load(folder)
    assert tokenizer.eos_token == "<|end|>"
    assert model.config.eos_token_id == tokenizer.eos_token_id == model.generation_config.eos_token_id


def test_tokenizer_is_lossless() -> None:
    bare = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    _, wrapped = load(TINY)
    rng = random.Random(3)
    texts = [
        "",
        " ",
        "  two  blanks ",
        "\r\n\t",
        "What is 27 + 58?",
        "Zażółć 你好 🤖\u200d😀 e\u0301",
        "\x00\x7f",
    ]
    for _ in range(200):
        points = [rng.choice((rng.randrange(128), rng.randrange(0xD800), 0x1F600)) for _ in range(20)]
        texts.append("".join(map(chr, points)))
    for text in texts:
        ids = bare.encode(text).ids
        assert bare.decode(ids, skip_special_tokens=False) == text
        assert wrapped(text)["input_ids"] == ids
        assert wrapped.decode(ids) == text


def test_digits_and_quoted_letters_are_single_tokens() -> None:
    bare = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    assert bare.encode(string.digits).tokens == list(string.digits)
    assert bare.encode("'planet'").tokens == ["'", *"planet", "'"]


def test_chat_template() -> None:
    _, tokenizer = load(TINY)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": " 1 + 1 "},
    ]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert (
        rendered == "<|bos|><|user|>Hello<|end|><|assistant|>Hello!<|end|><|user|>1 + 1<|end|><|assistant|>"
    )


def test_reported_accuracy() -> None:
    report = json.loads((TINY / "eval.json").read_text(encoding="utf-8"))
    assert report["accuracy"] >= 0.9
    assert {row["task"] for row in report["tasks"]} == {task.name for task in TASKS}


def test_scored_questions_are_all_held_out() -> None:
    assert all(chat[-1].held_out for chat in held_out_chats(10))


def test_training_draws_nothing_held_out() -> None:
    rng = random.Random(5)
    asked = {chat[-1].question for chat in held_out_chats(10)}
    for _ in range(2000):
        for turn in conversation(rng, 3):
            assert not turn.held_out
            assert turn.question not in asked or turn.task == "remember a name"


@pytest.mark.parametrize(
    ("task", "key", "question", "answer"),
    [
        ("sum", "28+52", "What is 28 + 52?", f"28 + 52 = {28 + 52}."),
        ("sum", "35+70", "what is 70 plus 35", f"70 + 35 = {70 + 35}."),
        ("difference", "85-59", "What is 85 - 59?", f"85 - 59 = {85 - 59}."),
        ("compare", "36,82", "Which is larger, 36 or 82?", f"{max(36, 82)} is larger than {min(36, 82)}."),
        ("reverse", "spider", "Reverse the word 'spider'.", f"spider backwards is {'spider'[::-1]}."),
        ("sort letters", "garden", "Sort the letters of 'garden'.", in_a_row(sorted("garden"))),
        ("spell", "lemon", "How do you spell 'lemon'?", in_a_row("lemon")),
        ("count up", "5..44", "Count from 5 to 44.", in_a_row(range(5, 45))),
        ("count down", "51..27", "Count down from 51 to 27.", in_a_row(range(51, 26, -1))),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_held_out_question(task: str, key: str, question: str, answer: str) -> None:
    assert Turn(task, key, question, answer).held_out
    assert ask(question) == [answer]


def test_chat_of_several_turns() -> None:
    assert Turn("remember a name", "Nadia", "", "").held_out
    answers = ask("My name is Nadia.", "Count from 11 to 35.", "What is my name?", "Why is the sky blue?")
    assert answers[1:3] == [in_a_row(range(11, 36)), "Your name is Nadia."]
    assert answers[3].startswith("I am too small to know that. I can add")


@pytest.mark.parametrize(
    "vary", [str, str.lower, lambda text: text.rstrip("?")], ids=["as is", "lower", "bare"]
)
def test_who_are_you(vary: Callable[[str], str]) -> None:
    (answer,) = ask(vary("Who are you?"))
    assert answer.startswith("I am Tiny")
