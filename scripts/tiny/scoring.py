"""Greedy answers to held-out questions, compared with the right ones letter by letter."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from scripts.tiny.data import Encoder, conversation, draw, prompt
from scripts.tiny.families import TASKS
from scripts.tiny.task import Turn, plain
from scripts.tiny.tokens import CONTEXT, END, PAD

SEED = 20_240_229
LONGEST_ANSWER = 160
TOGETHER = 48
KNOWN = 10_000


@dataclass(frozen=True)
class Score:
    """How many held-out questions of one task were answered right: asked alone, or later in a chat."""

    task: str
    held_out_by: str
    alone: int
    alone_right: int
    later: int
    later_right: int

    @property
    def rate(self) -> float:
        """The share of right answers among all questions."""
        return (self.alone_right + self.later_right) / (self.alone + self.later)


@dataclass(frozen=True)
class Report:
    """The scores of all tasks."""

    scores: tuple[Score, ...]

    @property
    def questions(self) -> int:
        """The number of questions asked."""
        return sum(score.alone + score.later for score in self.scores)

    @property
    def rate(self) -> float:
        """The share of right answers among all questions of all tasks."""
        return sum(score.alone_right + score.later_right for score in self.scores) / self.questions

    def rate_of(self, held_out_by: str) -> float:
        """The same share among the tasks held out in one way."""
        chosen = Report(tuple(score for score in self.scores if score.held_out_by == held_out_by))
        return chosen.rate

    def as_json(self) -> dict[str, object]:
        """What eval.json says about accuracy."""
        return {
            "accuracy": round(self.rate, 4),
            "accuracy_held_out_by_instance": round(self.rate_of("instance"), 4),
            "accuracy_held_out_by_wording": round(self.rate_of("wording"), 4),
            "questions": self.questions,
            "tasks": [{**asdict(score), "accuracy": round(score.rate, 4)} for score in self.scores],
        }

    def table(self) -> str:
        """The scores as a Markdown table, the total last."""
        lines = [
            "| task | held out by | alone | later in a chat | right |",
            "| --- | --- | --: | --: | --: |",
        ]
        for score in self.scores:
            lines.append(
                f"| {score.task} | {score.held_out_by} | {score.alone_right}/{score.alone} "
                f"| {score.later_right}/{score.later} | {score.rate:.1%} |"
            )
        lines.append(f"| **total** | | | {self.questions} questions | **{self.rate:.1%}** |")
        return "\n".join(lines)


def held_out_chats(per_task: int) -> list[list[Turn]]:
    """Chats ending in held-out questions, the same at each call: half begin with it, half lead up to it.

    Where the wording is what is held out, one that training could reach by its case and final point is no
    question here.
    """
    rng = random.Random(SEED)
    chats: list[list[Turn]] = []
    for task in TASKS:
        known: set[str] = set()
        if task.held_out_by == "wording":
            known = {plain(draw(rng, held_out=False, task=task)[-1].question) for _ in range(KNOWN)}
        asked: set[tuple[str, str]] = set()
        for _ in range(per_task * 20):
            if len(asked) == per_task:
                break
            turns = draw(rng, held_out=True, task=task)
            identity = (turns[-1].key, turns[-1].question)
            if identity not in asked and plain(turns[-1].question) not in known:
                before = conversation(rng, rng.randint(1, 3)) if len(asked) % 2 else []
                asked.add(identity)
                chats.append([*(turn for turn in before if turn.task != task.name), *turns])
    return chats


@torch.inference_mode()
def answers(model: LlamaForCausalLM, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[str]:
    """The greedy answer to each prompt, without the token that ends it."""
    encoder = Encoder(tokenizer)
    pad, end = encoder.id_of(PAD), encoder.id_of(END)
    generate: Callable[..., torch.Tensor] = cast(Any, model).generate
    encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(prompts))]
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    told: dict[int, str] = {}
    for start in range(0, len(order), TOGETHER):
        chosen = order[start : start + TOGETHER]
        size = max(len(encoded[index]) for index in chosen)
        rows = [[pad] * (size - len(encoded[index])) + encoded[index] for index in chosen]
        ids = torch.tensor(rows)
        output = generate(
            input_ids=ids,
            attention_mask=ids.ne(pad).long(),
            do_sample=False,
            max_new_tokens=LONGEST_ANSWER,
            eos_token_id=end,
            pad_token_id=pad,
        )
        for index, row in zip(chosen, output[:, size:].tolist(), strict=True):
            cut = row.index(end) if end in row else len(row)
            told[index] = tokenizer.decode(row[:cut], skip_special_tokens=False)
    return [told[index] for index in range(len(prompts))]


def evaluate(
    model: LlamaForCausalLM, tokenizer: Tokenizer, per_task: int
) -> tuple[Report, list[tuple[Turn, str]]]:
    """The report on ``per_task`` held-out questions of each task, and every wrong answer."""
    model.eval()
    chats = held_out_chats(per_task)
    chats = [chat for chat in chats if len(tokenizer.encode(prompt(chat)).ids) + LONGEST_ANSWER <= CONTEXT]
    told = answers(model, tokenizer, [prompt(chat) for chat in chats])
    counts = {task.name: [0, 0, 0, 0] for task in TASKS}
    wrong: list[tuple[Turn, str]] = []
    for chat, answer in zip(chats, told, strict=True):
        turn = chat[-1]
        assert turn.held_out
        count = counts[turn.task]
        column = 0 if all(other.task == turn.task for other in chat) else 2
        count[column] += 1
        count[column + 1] += answer == turn.answer
        if answer != turn.answer:
            wrong.append((turn, answer))
    scores = [Score(task.name, task.held_out_by, *counts[task.name]) for task in TASKS]
    return Report(tuple(scores)), wrong
