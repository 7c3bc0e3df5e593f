"""Conversations made of training questions, and batches of them with the loss mask."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from scripts.tiny.families import TASKS
from scripts.tiny.task import Task, Turn
from scripts.tiny.tokens import ASSISTANT, BOS, CONTEXT, END, USER

IGNORED = -100
POOL = 512

_WEIGHTS = [task.weight for task in TASKS]
_TURNS, _TURN_WEIGHTS = (1, 2, 3, 4, 7), (45, 25, 15, 10, 5)


@dataclass(frozen=True)
class Batch:
    """Token ids, right-padded, and the labels: the next token inside an answer, elsewhere ``IGNORED``."""

    ids: torch.Tensor
    labels: torch.Tensor


def draw(rng: random.Random, held_out: bool, task: Task | None = None) -> tuple[Turn, ...]:
    """Turns of one task (any, by weight, unless given) whose instance is on the wanted side of the split."""
    while True:
        chosen = task if task is not None else rng.choices(TASKS, _WEIGHTS)[0]
        turns = chosen.make(rng)
        if turns[-1].held_out == held_out:
            return turns


def conversation(rng: random.Random, turns: int) -> list[Turn]:
    """About ``turns`` questions to learn from, in one chat; a fact told early may be asked for much later."""
    said: list[Turn] = []
    later: list[Turn] = []
    for _ in range(turns):
        first, *rest = draw(rng, held_out=False)
        if rest and any(turn.task == first.task for turn in said):
            continue
        said.append(first)
        later.extend(rest)
        if later and rng.random() < 0.6:
            said.append(later.pop())
    return said + later


def prompt(turns: Sequence[Turn]) -> str:
    """The chat as the template renders it, up to where the answer to the last question begins."""
    past = "".join(f"{USER}{turn.question}{END}{ASSISTANT}{turn.answer}{END}" for turn in turns[:-1])
    return f"{BOS}{past}{USER}{turns[-1].question}{END}{ASSISTANT}"


class Encoder:
    """Turns conversations into token ids and into the mask of the tokens to be learnt."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bos, self._user, self._assistant, self._end = (
            self.id_of(token) for token in (BOS, USER, ASSISTANT, END)
        )

    def id_of(self, token: str) -> int:
        """The id of a token that the vocabulary is known to hold."""
        index = self._tokenizer.token_to_id(token)
        assert index is not None, token
        return int(index)

    def encode(self, turns: Sequence[Turn]) -> tuple[list[int], list[int]]:
        """Ids and labels of a chat, without the turns at its end that would pass the context length."""
        texts = [text for turn in turns for text in (turn.question, turn.answer)]
        pieces = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
        ids, labels = [self._bos], [IGNORED]
        for question, answer in zip(pieces[::2], pieces[1::2], strict=True):
            asked = [self._user, *question, self._end, self._assistant]
            told = [*answer, self._end]
            if len(ids) + len(asked) + len(told) > CONTEXT:
                break
            ids += asked + told
            labels += [IGNORED] * len(asked) + told
        return ids, labels


def batches(encoder: Encoder, seed: int, tokens: int) -> Iterator[Batch]:
    """Endless batches of at most ``tokens`` padded tokens, each of chats of about one length."""
    rng = random.Random(seed)
    pad = 0
    while True:
        pool = [encoder.encode(conversation(rng, rng.choices(_TURNS, _TURN_WEIGHTS)[0])) for _ in range(POOL)]
        pool.sort(key=lambda chat: len(chat[0]))
        groups: list[list[tuple[list[int], list[int]]]] = [[]]
        for chat in pool:
            if (len(groups[-1]) + 1) * len(chat[0]) > tokens:
                groups.append([])
            groups[-1].append(chat)
        rng.shuffle(groups)
        for group in groups:
            size = max(len(ids) for ids, _ in group)
            yield Batch(
                torch.tensor([ids + [pad] * (size - len(ids)) for ids, _ in group]),
                torch.tensor([labels[1:] + [IGNORED] * (size - len(labels) + 1) for _, labels in group]),
            )
