"""Questions about one or two numbers, and lists of numbers to sort."""

from __future__ import annotations

import random

from scripts.tiny.task import Fields, Task


def _operands(rng: random.Random) -> tuple[int, int]:
    """Two numbers below 100, not both of one digit."""
    while True:
        a, b = rng.randrange(100), rng.randrange(100)
        if max(a, b) >= 10:
            return a, b


def _sum_of(a: int, b: int) -> tuple[str, Fields]:
    return f"{min(a, b)}+{max(a, b)}", {"a": str(a), "b": str(b), "c": str(a + b)}


def _difference_of(a: int, b: int) -> tuple[str, Fields]:
    return f"{a}-{b}", {"a": str(a), "b": str(b), "c": str(a - b)}


def _sum(rng: random.Random) -> tuple[str, Fields]:
    return _sum_of(*_operands(rng))


def _small_sum(rng: random.Random) -> tuple[str, Fields]:
    return _sum_of(rng.randrange(10), rng.randrange(10))


def _difference(rng: random.Random) -> tuple[str, Fields]:
    a, b = _operands(rng)
    return _difference_of(a, b) if a >= b or rng.random() < 0.2 else _difference_of(b, a)


def _small_difference(rng: random.Random) -> tuple[str, Fields]:
    return _difference_of(rng.randrange(10), rng.randrange(10))


def _compare(rng: random.Random) -> tuple[str, Fields]:
    a, b = rng.sample(range(100), 2)
    which, best = rng.choice(
        (("larger", max), ("bigger", max), ("greater", max), ("smaller", min), ("less", min))
    )
    first = best(a, b)
    fields = {"a": str(a), "b": str(b), "which": which, "first": str(first), "second": str(a + b - first)}
    return f"{min(a, b)},{max(a, b)}", fields


def _parity(rng: random.Random) -> tuple[str, Fields]:
    n = rng.randrange(1000) if rng.random() < 0.5 else rng.randrange(100)
    return str(n), {"n": str(n), "kind": "odd" if n % 2 else "even"}


def _after(rng: random.Random) -> tuple[str, Fields]:
    n = rng.randrange(999) if rng.random() < 0.6 else rng.randrange(100)
    return str(n), {"n": str(n), "m": str(n + 1)}


def _before(rng: random.Random) -> tuple[str, Fields]:
    n = rng.randrange(1, 1000) if rng.random() < 0.6 else rng.randrange(1, 100)
    return str(n), {"n": str(n), "m": str(n - 1)}


def _sort_numbers(rng: random.Random) -> tuple[str, Fields]:
    numbers = [rng.randrange(100) for _ in range(rng.randint(3, 5))]
    ordered = ", ".join(map(str, sorted(numbers)))
    return ordered, {"list": ", ".join(map(str, numbers)), "sorted": ordered}


_SUMS = (
    "What is {a} + {b}?",
    "What is {a} + {b}?",
    "{a} + {b}",
    "{a} + {b}",
    "{a} + {b} = ?",
    "{a}+{b}",
    "What is {a} plus {b}?",
    "Add {a} and {b}.",
    "How much is {a} + {b}?",
    "Calculate {a} + {b}.",
    "What is the sum of {a} and {b}?",
)
_DIFFERENCES = (
    "What is {a} - {b}?",
    "What is {a} - {b}?",
    "{a} - {b}",
    "{a} - {b} = ?",
    "{a}-{b}",
    "What is {a} minus {b}?",
    "Subtract {b} from {a}.",
    "How much is {a} - {b}?",
    "Calculate {a} - {b}.",
)

# Sums and differences of one digit are few, and learnt by heart as people do: what is held out is a wording.
NUMBERS: tuple[Task, ...] = (
    Task("sum", 4.0, _SUMS, "{a} + {b} = {c}.", _sum),
    Task("small sum", 1.0, _SUMS, "{a} + {b} = {c}.", _small_sum, by_wording=True),
    Task("difference", 4.0, _DIFFERENCES, "{a} - {b} = {c}.", _difference),
    Task("small difference", 1.0, _DIFFERENCES, "{a} - {b} = {c}.", _small_difference, by_wording=True),
    Task(
        "compare",
        2.0,
        (
            "Which is {which}, {a} or {b}?",
            "Which number is {which}: {a} or {b}?",
            "What is {which}, {a} or {b}?",
            "Is {a} or {b} {which}?",
        ),
        "{first} is {which} than {second}.",
        _compare,
    ),
    Task(
        "parity",
        1.0,
        ("Is {n} even or odd?", "Is {n} odd or even?", "Is the number {n} even or odd?", "{n}: even or odd?"),
        "{n} is {kind}.",
        _parity,
    ),
    Task(
        "next number",
        1.2,
        (
            "What comes after {n}?",
            "What number comes after {n}?",
            "Which number follows {n}?",
            "What is after {n}?",
        ),
        "After {n} comes {m}.",
        _after,
    ),
    Task(
        "previous number",
        1.2,
        ("What comes before {n}?", "What number comes before {n}?", "Which number precedes {n}?"),
        "Before {n} comes {m}.",
        _before,
    ),
    Task(
        "sort numbers",
        5.0,
        (
            "Sort {list}.",
            "Sort these numbers: {list}.",
            "Sort the numbers {list}.",
            "Put {list} in order.",
            "Sort {list} from smallest to largest.",
        ),
        "{sorted}.",
        _sort_numbers,
    ),
)
