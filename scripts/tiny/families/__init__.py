"""All families of questions, in a fixed order: the seeds of the random draws depend on it."""

from scripts.tiny.families.counting import COUNTING
from scripts.tiny.families.facts import FACTS
from scripts.tiny.families.numbers import NUMBERS
from scripts.tiny.families.talk import TALK
from scripts.tiny.families.words import WORDS
from scripts.tiny.task import Task

TASKS: tuple[Task, ...] = (*NUMBERS, *WORDS, *COUNTING, *FACTS, *TALK)
