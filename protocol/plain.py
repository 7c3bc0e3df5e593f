"""Text that others wrote, made fit to be shown: a line that is what it looks like, and cannot steer what shows it.

Unicode has characters that move the cursor, turn the reading direction, or leave nothing on the screen; a terminal, a
log and a person reading either are at their mercy. What is left here are letters, digits, signs and single blanks.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Final

from protocol import limits

STAND_IN: Final = "?"
# Python calls these printable, but they show as a blank, or as nothing (Unicode: Default_Ignorable_Code_Point).
_BLANKS: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0")
_NOTHINGS: Final = frozenset(
    ["\u034f", "\u17b4", "\u17b5"]
    + [chr(code) for first, last in ((0x180B, 0x180F), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
       for code in range(first, last + 1)]
)  # fmt: skip
# Joiners make one emoji of several and shape the letters of many scripts: answers need them, names do not.
_JOINERS: Final = "\u200c\u200d"


def plain(text: str, most: int = limits.SAID_CELLS) -> str:
    """What a stranger said or is called, in one line of at most `most` cells; never empty.

    Blanks of all kinds, and runs of them, become one: a line padded to the screen's edge would look like two.
    """
    return _within(" ".join(_shown(text[: 8 * most]).split()), most)


def one_line(text: str, most: int = limits.LINE_CELLS) -> str:
    """A line of our own that may quote strangers: as `plain`, but its blanks stay as they are."""
    return _within(_shown(text[: 8 * most]), most)


def printable(text: str) -> str:
    """An answer, for a terminal: its lines and tabs stay, and whatever would steer the terminal goes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char for char in text if char in "\n\t" or char in _JOINERS or _shows(char))


def _shows(char: str) -> bool:
    # Blanks of all widths belong to an answer; characters newer than this Python's tables may be its emoji.
    return char.isprintable() or unicodedata.category(char) in ("Zs", "Cn", "Co")


def _shown(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    return "".join(_without_piles(text))


def _without_piles(text: str) -> Iterator[str]:
    """Printable characters, blanks for what separates, and of the marks on one letter the first few."""
    marks = limits.MARKS  # a mark that stands first would sit on what is shown before it
    for char in text:
        if char.isspace() or char in _BLANKS:
            marks = limits.MARKS
            yield " "
        elif not char.isprintable() or char in _NOTHINGS:
            continue
        elif unicodedata.category(char) in ("Mn", "Me"):
            marks += 1
            if marks <= limits.MARKS:
                yield char
        else:
            marks = 0
            yield char


def _within(text: str, most: int) -> str:
    """At most `most` cells and characters; what is cut off is marked."""
    if not text.strip():
        return STAND_IN
    left = most
    for index, char in enumerate(text):
        left -= 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if left < 0:
            return text[: max(0, index - 1)] + "…"
    return text
