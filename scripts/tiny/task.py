"""The question families: how each is worded, what the right answer is, and which instances are held out.

A family draws an *instance* (two numbers, a word, ...), words it in one of several ways, and computes the
answer.  Whether an instance is held out depends on nothing but its key, so every wording of a held-out
instance is held out, whatever the seed: training never sees it.
"""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from scripts.tiny import world

HELD_OUT_ONE_IN = 10

Fields = Mapping[str, str]
Draw = Callable[[random.Random], tuple[str, Fields]]


@dataclass(frozen=True)
class Turn:
    """One question with its right answer; ``key`` names the instance independently of the wording."""

    task: str
    key: str
    question: str
    answer: str

    @property
    def held_out(self) -> bool:
        """True when this instance belongs to the evaluation and must never be trained on."""
        digest = hashlib.blake2b(f"{self.task}|{self.key}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


@dataclass(frozen=True)
class Task:
    """One family of questions.

    ``asks`` and ``says`` are templates over the fields that ``draw`` returns beside the instance's key.
    With ``by_wording`` the answers are memorised facts, of which there are too few to withhold any: then
    what is held out is the pair of a fact and a wording.  ``before``, when given, is a turn that has to be
    said earlier in the same conversation.
    """

    name: str
    weight: float
    asks: tuple[str, ...]
    says: str
    draw: Draw
    by_wording: bool = False
    before: tuple[tuple[str, ...], str] | None = None

    def make(self, rng: random.Random) -> tuple[Turn, ...]:
        """A random instance in a random wording: the scored turn, after the turn it rests on, if any."""
        key, fields = self.draw(rng)
        wording = rng.randrange(len(self.asks))
        if self.by_wording:
            key = f"{key}|{wording}"
        question = loosen(rng, self.asks[wording].format(**fields))
        turn = Turn(self.name, key, question, self.says.format(**fields))
        if self.before is None:
            return (turn,)
        asks, says = self.before
        said = loosen(rng, rng.choice(asks).format(**fields))
        return (Turn(self.name, key, said, says.format(**fields)), turn)

    @property
    def held_out_by(self) -> str:
        """What is new in a held-out question: its "instance", or, where the answer is fixed, its "wording"."""
        return "wording" if self.by_wording or "{" not in self.says else "instance"

    def phrases(self) -> Iterator[str]:
        """Every template of the family, with its gaps left open."""
        yield from self.asks
        yield self.says
        if self.before is not None:
            yield from self.before[0]
            yield self.before[1]


def plain(question: str) -> str:
    """What ``loosen`` leaves of a question: equal for two questions that it could make equal."""
    return question.lower().rstrip(".?!")


def loosen(rng: random.Random, question: str) -> str:
    """The question as a hurried person might type it: lower case at the start, no punctuation at the end."""
    roll = rng.random()
    if roll < 0.06:
        question = rng.choice(("Please ", "Hey, ", "Tiny, ", "OK, ")) + question[:1].lower() + question[1:]
    elif roll < 0.35:
        question = question[:1].lower() + question[1:]
    if rng.random() < 0.3 and len(question) > 1 and question[-1] in ".?!":
        question = question[:-1]
    return question


def invented(rng: random.Random, low: int, high: int) -> str:
    """A made-up lower-case word of ``low`` to ``high`` letters; two in three can be pronounced."""
    size = rng.randint(low, high)
    if rng.random() < 0.33:
        return "".join(rng.choice(string.ascii_lowercase) for _ in range(size))
    vowel = rng.random() < 0.3
    letters: list[str] = []
    while len(letters) < size:
        letters.append(rng.choice("aaeeeiioou" if vowel else "bcdffghjkllmmnnpprrssttvwxyz"))
        vowel = not vowel if rng.random() < 0.85 else vowel
    return "".join(letters)


def any_word(rng: random.Random, low: int, high: int) -> str:
    """A word of ``low`` to ``high`` letters, either from the dictionary or made up."""
    if rng.random() < 0.4:
        while True:
            word = rng.choice(world.WORDS)
            if low <= len(word) <= high:
                return word
    return invented(rng, low, high)


def combined(**choices: tuple[str, ...]) -> Draw:
    """A draw that picks each field on its own; the instance is the combination of all of them."""

    def draw(rng: random.Random) -> tuple[str, Fields]:
        fields = {name: rng.choice(values) for name, values in choices.items()}
        return "|".join(fields.values()), fields

    return draw


OPENERS = ("", "Hello. ", "Hi. ", "Hey, ", "So, ", "Now, ", "Well, ", "Tell me, ", "OK. ", "Good day. ")
