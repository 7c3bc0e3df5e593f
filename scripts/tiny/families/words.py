"""Questions about the letters of a word."""

from __future__ import annotations

import random
import string

from scripts.tiny.task import Fields, Task, any_word


def _sort_letters(rng: random.Random) -> tuple[str, Fields]:
    word = any_word(rng, 3, 6)
    return word, {"word": word, "sorted": ", ".join(sorted(word))}


def _reverse(rng: random.Random) -> tuple[str, Fields]:
    word = any_word(rng, 3, 6)
    return word, {"word": word, "back": word[::-1]}


def _spell(rng: random.Random) -> tuple[str, Fields]:
    word = any_word(rng, 3, 8)
    return word, {"word": word, "letters": ", ".join(word)}


def _count_letters(rng: random.Random) -> tuple[str, Fields]:
    word = any_word(rng, 3, 8)
    tally = ", ".join(f"{place}{letter}" for place, letter in enumerate(word, 1))
    return word, {"word": word, "tally": tally, "n": str(len(word))}


def _count_one_letter(rng: random.Random) -> tuple[str, Fields]:
    word = any_word(rng, 3, 7)
    if rng.random() < 0.4:
        few = rng.sample(string.ascii_lowercase, 3)
        word = "".join(rng.choice(few) for _ in range(len(word)))
    letter = rng.choice(word) if rng.random() < 0.85 else rng.choice(string.ascii_lowercase)
    tally = ", ".join(f"{word[place - 1]} {word[:place].count(letter)}" for place in range(1, len(word) + 1))
    n = word.count(letter)
    return f"{letter} in {word}", {"word": word, "letter": letter, "tally": tally, "n": str(n)}


def _first_letter(rng: random.Random) -> tuple[str, Fields]:
    word = any_word(rng, 3, 8)
    place, index = rng.choice((("first", 0), ("last", -1)))
    return f"{place} of {word}", {"word": word, "place": place, "letter": word[index]}


WORDS: tuple[Task, ...] = (
    Task(
        "sort letters",
        4.0,
        (
            "Sort the letters of '{word}'.",
            "Sort the letters of {word}.",
            "Sort the letters in '{word}'.",
            "Put the letters of '{word}' in order.",
            "Sort '{word}'.",
        ),
        "{sorted}.",
        _sort_letters,
    ),
    Task(
        "reverse",
        4.0,
        (
            "Reverse '{word}'.",
            "Reverse the word '{word}'.",
            "Reverse {word}.",
            "Reverse the word {word}.",
            "Write '{word}' backwards.",
            "Spell '{word}' backwards.",
            "What is '{word}' backwards?",
        ),
        "{word} backwards is {back}.",
        _reverse,
    ),
    Task(
        "spell",
        1.0,
        (
            "Spell '{word}'.",
            "Spell the word '{word}'.",
            "Spell {word}.",
            "How do you spell '{word}'?",
            "How do you spell {word}?",
        ),
        "{letters}.",
        _spell,
    ),
    Task(
        "count letters",
        2.0,
        (
            "How many letters are in '{word}'?",
            "How many letters are in {word}?",
            "How long is the word '{word}'?",
            "How many letters does '{word}' have?",
            "Count the letters in '{word}'.",
            "Count the letters of {word}.",
        ),
        "{tally}: {n} letters.",
        _count_letters,
    ),
    Task(
        "count one letter",
        4.0,
        (
            "How many '{letter}' are in '{word}'?",
            "How many {letter} are in {word}?",
            "How many {letter}'s are in {word}?",
            "How many times is '{letter}' in '{word}'?",
            "How often does '{letter}' occur in '{word}'?",
            "Count the letter '{letter}' in '{word}'.",
        ),
        "{tally}: {n} in all.",
        _count_one_letter,
    ),
    Task(
        "first or last letter",
        1.0,
        (
            "What is the {place} letter of '{word}'?",
            "What is the {place} letter of {word}?",
            "What is the {place} letter in '{word}'?",
            "Which letter is {place} in '{word}'?",
        ),
        "The {place} letter of {word} is '{letter}'.",
        _first_letter,
    ),
)
