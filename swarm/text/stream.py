"""Text out of tokens as they come: nothing half, nothing twice, and nothing that may yet become a stop string."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from protocol.errors import ConfigError

REPLACEMENT: Final = "\ufffd"
# Tokens decoded at once. A character has at most four bytes, so a clean border comes long before this; only a
# model that talks in broken bytes gets here.
WINDOW: Final = 64


# The texts of several windows of tokens, each decoded for itself.
Decode = Callable[[Sequence[Sequence[int]]], Awaitable[Sequence[str]]]


class TextStream:
    """Turns tokens into text one at a time; what it gives is in sum what decoding all of them at once gives.

    `decode` is the tokenizer's, asked once per token; `silent` are ids without text (special tokens). Only a window
    of the last tokens is decoded: it starts where text ended cleanly before, so that a decoder which strips a leading
    space strips it from text that is out already. `marks` are ids whose text is given though they are silent.
    """

    def __init__(
        self, decode: Decode, silent: Collection[int] = (), marks: Mapping[int, str] = MappingProxyType({})
    ) -> None:
        self._decode = decode
        self._silent = silent
        self._marks = marks
        self._window: list[int] = []
        self._clean = 0  # tokens of the window after which the text was complete
        self._sent = 0  # characters of the window's text that were given out

    async def push(self, token: int) -> str:
        """The text that is certain now; empty while a character is incomplete."""
        if token in self._marks:
            return await self.flush() + self._marks[token]
        if token in self._silent:
            return ""
        self._window.append(token)
        rest = self._window[self._clean :] if self._clean else []
        half = self._window[WINDOW // 2 :] if len(self._window) > WINDOW else []
        text, rest_text, half_text = await self._decode([self._window, rest, half])
        # Both kinds of byte tokens show an incomplete character as U+FFFD at the end: byte-level BPE as one,
        # byte fallback as one for each byte of the run.
        complete = text.rstrip(REPLACEMENT)
        piece = complete[self._sent :]
        self._sent = max(self._sent, len(complete))
        if len(complete) == len(text):
            self._slide(rest_text)
        elif len(self._window) > WINDOW:
            piece += self._force(text, half, half_text)
        return piece

    async def flush(self) -> str:
        """What is left at the end, an incomplete character as U+FFFD; the stream is empty then."""
        [text] = await self._decode([self._window]) if self._window else [""]
        piece = text[self._sent :]
        self._window, self._clean, self._sent = [], 0, 0
        return piece

    def _slide(self, rest_text: str) -> None:
        """All is out: keep the tokens since the clean border before this one, and those before if that is no text."""
        if rest_text or len(self._window) > WINDOW:
            self._window, self._sent = self._window[self._clean :], len(rest_text)
        self._clean = len(self._window)

    def _force(self, text: str, half: list[int], half_text: str) -> str:
        """No clean border in a whole window: halve it where that changes no text to come, else give all out."""
        unsent = text[self._sent :]
        self._window, self._clean = half, 0
        if len(half_text) > len(unsent) and half_text.endswith(unsent):
            self._sent = len(half_text) - len(unsent)
            return ""
        self._sent = len(half_text)
        return unsent


class StopStrings:
    """Lets text through up to the first stop string; holds back what may become one.

    However the text is cut into pieces, the same comes out: the stop string that is complete first ends it, of
    several the longest. Raises: ConfigError, for an empty stop string.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        if any(not stop for stop in stops):
            raise ConfigError("a stop string is not empty")
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self.found is not None

    def push(self, text: str) -> str:
        """The text that no stop string can take back; nothing after one was found."""
        if self.found is not None:
            return ""
        held = self._held + text
        hits = [(held.find(stop), stop) for stop in self._stops]
        ends = [(start + len(stop), start, stop) for start, stop in hits if start >= 0]
        if ends:
            _, start, self.found = min(ends)
            self._held = ""
            return held[:start]
        cut = len(held) - max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[cut:]
        return held[:cut]

    def flush(self) -> str:
        """What was held back and did not become a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The most characters at the end of `text` that `stop` begins with."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)
