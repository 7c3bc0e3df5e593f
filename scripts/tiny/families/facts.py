"""Questions about the few facts that the model knows by heart."""

from __future__ import annotations

import random

from scripts.tiny import world
from scripts.tiny.task import Fields, Task


def _capital(rng: random.Random) -> tuple[str, Fields]:
    land, city = rng.choice(world.CAPITALS)
    return land, {"land": land, "city": city}


def _creature(rng: random.Random) -> tuple[str, Fields]:
    name, colour, home, food = rng.choice(world.CREATURES)
    return name, {"name": name, "colour": colour, "home": home, "food": food}


def _calendar(rng: random.Random) -> tuple[str, Fields]:
    names = world.DAYS if rng.random() < 0.5 else world.MONTHS
    at = rng.randrange(len(names))
    return names[at], {
        "x": names[at],
        "next": names[(at + 1) % len(names)],
        "unit": "day" if names is world.DAYS else "month",
    }


FACTS: tuple[Task, ...] = (
    Task(
        "capitals",
        1.0,
        (
            "What is the capital of {land}?",
            "Which city is the capital of {land}?",
            "Name the capital of {land}.",
            "What is {land}'s capital?",
            "Tell me the capital of {land}.",
            "Capital of {land}?",
        ),
        "The capital of {land} is {city}.",
        _capital,
        by_wording=True,
    ),
    Task(
        "creature colours",
        0.6,
        (
            "What colour is a {name}?",
            "What colour is the {name}?",
            "Which colour does a {name} have?",
            "Tell me the colour of a {name}.",
            "What is the colour of the {name}?",
        ),
        "A {name} is {colour}.",
        _creature,
        by_wording=True,
    ),
    Task(
        "creature homes",
        0.6,
        (
            "Where does a {name} live?",
            "Where does the {name} live?",
            "Where do you find a {name}?",
            "What is the home of a {name}?",
            "Tell me where a {name} lives.",
        ),
        "A {name} lives in {home}.",
        _creature,
        by_wording=True,
    ),
    Task(
        "creature food",
        0.6,
        (
            "What does a {name} eat?",
            "What does the {name} eat?",
            "What is the food of a {name}?",
            "Tell me what a {name} eats.",
            "What do you feed to a {name}?",
        ),
        "A {name} eats {food}.",
        _creature,
        by_wording=True,
    ),
    Task(
        "calendar",
        0.8,
        (
            "What comes after {x}?",
            "Which {unit} comes after {x}?",
            "What {unit} comes after {x}?",
            "Which {unit} follows {x}?",
            "What is the {unit} after {x}?",
        ),
        "After {x} comes {next}.",
        _calendar,
        by_wording=True,
    ),
)
