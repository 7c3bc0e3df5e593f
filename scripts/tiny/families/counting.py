"""Questions with long answers: numbers and letters in a row."""

from __future__ import annotations

import random
import string

from scripts.tiny.task import OPENERS, Fields, Task, combined


def _numbers(first: int, last: int, step: int) -> dict[str, str]:
    numbers = range(first, last + (1 if step > 0 else -1), step)
    return {"a": str(first), "b": str(last), "step": str(abs(step)), "list": ", ".join(map(str, numbers))}


def _count_up(rng: random.Random) -> tuple[str, Fields]:
    first = rng.choice((0, 1, 1, 1)) if rng.random() < 0.3 else rng.randrange(61)
    last = first + rng.randint(4, 39)
    return f"{first}..{last}", _numbers(first, last, 1)


def _count_down(rng: random.Random) -> tuple[str, Fields]:
    last = rng.choice((0, 1)) if rng.random() < 0.4 else rng.randrange(61)
    first = last + rng.randint(4, 39)
    return f"{first}..{last}", _numbers(first, last, -1)


def _count_steps(rng: random.Random) -> tuple[str, Fields]:
    step = rng.choice((2, 2, 3, 5, 10))
    first = rng.choice((0, step)) if rng.random() < 0.3 else rng.randrange(40)
    last = first + step * rng.randint(3, min(20, (99 - first) // step))
    return f"{first}..{last} by {step}", _numbers(first, last, step)


def _alphabet(rng: random.Random) -> tuple[str, Fields]:
    a, b = sorted(rng.sample(range(26), 2))
    letters = string.ascii_lowercase[a : b + 1]
    if rng.random() < 0.3:
        letters = letters[::-1]
    return f"{letters[0]}-{letters[-1]}", {"a": letters[0], "b": letters[-1], "list": ", ".join(letters)}


COUNTING: tuple[Task, ...] = (
    Task(
        "count up",
        1.5,
        (
            "Count from {a} to {b}.",
            "Count from {a} up to {b}.",
            "Count to {b}, starting at {a}.",
            "List the numbers from {a} to {b}.",
        ),
        "{list}.",
        _count_up,
    ),
    Task(
        "count down",
        1.2,
        ("Count down from {a} to {b}.", "Count backwards from {a} to {b}.", "Count from {a} down to {b}."),
        "{list}.",
        _count_down,
    ),
    Task(
        "count in steps",
        2.0,
        (
            "Count from {a} to {b} in steps of {step}.",
            "Count from {a} to {b} by {step}.",
            "Count in steps of {step} from {a} to {b}.",
        ),
        "{list}.",
        _count_steps,
    ),
    Task(
        "part of the alphabet",
        1.2,
        (
            "Say the alphabet from {a} to {b}.",
            "Spell the alphabet from {a} to {b}.",
            "List the letters from {a} to {b}.",
            "What are the letters from '{a}' to '{b}'?",
        ),
        "{list}.",
        _alphabet,
    ),
    Task(
        "whole alphabet",
        0.3,
        ("{opener}{ask}",),
        ", ".join(string.ascii_lowercase) + ".",
        combined(
            opener=OPENERS,
            ask=(
                "Spell the alphabet.",
                "Say the alphabet.",
                "What is the alphabet?",
                "List the alphabet.",
                "Recite the alphabet.",
                "Say the whole alphabet.",
                "Tell me the alphabet.",
                "Spell the whole alphabet.",
                "What are the letters of the alphabet?",
            ),
        ),
    ),
)
