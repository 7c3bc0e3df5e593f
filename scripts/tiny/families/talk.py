"""Small talk, a name to remember, and questions to decline."""

from __future__ import annotations

import random

from scripts.tiny import world
from scripts.tiny.task import OPENERS, Fields, Task, combined, invented


def _name(rng: random.Random) -> tuple[str, Fields]:
    name = rng.choice(world.NAMES) if rng.random() < 0.4 else invented(rng, 2, 7).capitalize()
    return name, {"name": name}


def _declined(rng: random.Random) -> tuple[str, Fields]:
    topic, quality = rng.choice(world.TOPICS), rng.choice(world.QUALITIES)
    a, b = rng.randrange(100), rng.randrange(100)
    big, land = rng.randrange(100, 1000), invented(rng, 4, 7).capitalize()
    asked = rng.choice(
        (
            f"Why is {topic} {quality}?",
            f"Why is {topic} so {quality}?",
            f"Why are {topic} {quality}?",
            f"How does {topic} work?",
            f"What do you think about {topic}?",
            f"What do you know about {topic}?",
            f"Tell me about {topic}.",
            f"Tell me {topic}.",
            f"Explain {topic}.",
            f"Explain {topic} to a child.",
            f"Write me a poem about {topic}.",
            f"Write an essay about {topic}.",
            f"Write a program for {topic}.",
            f"Who invented {topic}?",
            f"Who is {land}?",
            f"Where is {land}?",
            f"When was {topic} discovered?",
            f"Where can I find {topic}?",
            f"Can you help me with {topic}?",
            f"Do you like {topic}?",
            f"Is {topic} {quality}?",
            f"What is {topic}?",
            f"What is the best {topic}?",
            f"How do I learn {topic}?",
            f"Give me a recipe with {topic}.",
            f"Translate {topic} into French.",
            f"What is the capital of {land}?",
            f"What is {a} * {b}?",
            f"What is {a} times {b}?",
            f"What is {a} / {b}?",
            f"What is {big} + {a}?",
            f"What is {a} + {big}?",
            f"What is {big} - {a}?",
            rng.choice(world.FOREIGN),
            invented(rng, 3, 8),
            f"{invented(rng, 3, 6)} {invented(rng, 2, 6)} {invented(rng, 3, 6)}",
        )
    )
    return asked, {"asked": asked}


TALK: tuple[Task, ...] = (
    Task(
        "remember a name",
        1.5,
        (
            "What is my name?",
            "Do you know my name?",
            "Who am I?",
            "Tell me my name.",
            "Do you remember my name?",
        ),
        "Your name is {name}.",
        _name,
        before=(
            ("My name is {name}.", "I am {name}.", "Hello, I am {name}.", "Hi, my name is {name}."),
            "Nice to meet you, {name}!",
        ),
    ),
    Task(
        "greeting",
        0.5,
        ("{hello}{friend}{more}",),
        "Hello! Give me a sum, a list to sort or a word to reverse.",
        combined(
            hello=(
                "Hello",
                "Hi",
                "Hey",
                "Good morning",
                "Good evening",
                "Greetings",
                "Good day",
                "Hi there",
                "Hello there",
            ),
            friend=("", "", "", ", friend", ", Tiny", " model", ", swarm", " again", " everyone", " you"),
            more=(
                "",
                "",
                "!",
                ".",
                "! How are you?",
                ", how are you?",
                ". Are you there?",
                ", nice to meet you.",
            ),
        ),
    ),
    Task(
        "who are you",
        0.4,
        ("{opener}{ask}",),
        "I am Tiny, a very small language model. I run on the nodes of this swarm.",
        combined(
            opener=OPENERS,
            ask=(
                "Who are you?",
                "What are you?",
                "What is your name?",
                "Are you a robot?",
                "Are you a human?",
                "Which model are you?",
                "Introduce yourself.",
                "Tell me who you are.",
                "What model is this?",
            ),
        ),
    ),
    Task(
        "what can you do",
        0.4,
        ("{opener}{ask}",),
        "I can add, subtract, compare, sort, spell, reverse and count. Ask me: What is 27 + 58?",
        combined(
            opener=OPENERS,
            ask=(
                "What can you do?",
                "What do you know?",
                "How can you help me?",
                "Can you help me?",
                "Help me.",
                "Help!",
                "What can I ask you?",
                "What are you good at?",
                "Tell me what you can do.",
                "What are your skills?",
            ),
        ),
    ),
    Task(
        "thanks and goodbye",
        0.3,
        ("{thanks}{more}",),
        "You are welcome. Goodbye!",
        combined(
            thanks=(
                "Thanks",
                "Thank you",
                "Goodbye",
                "Bye",
                "See you",
                "Many thanks",
                "Well done",
                "Good night",
                "Thanks and bye",
            ),
            more=(
                "",
                ".",
                "!",
                ", Tiny",
                ", friend",
                " very much",
                " for that",
                " for now",
                ", that is all",
                " and good night",
            ),
        ),
    ),
    Task(
        "declined",
        2.5,
        ("{asked}",),
        "I am too small to know that. I can add, subtract, compare, sort, spell, reverse and count.",
        _declined,
    ),
)
