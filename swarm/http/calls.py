"""From what a model writes to the calls of tools in it, as the text comes; pure."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

_BETWEEN: Final = re.compile(r"[\s;,]*")


@dataclass(frozen=True, slots=True)
class Call:
    """A tool by its name, and its arguments: a JSON object, as text."""

    name: str
    arguments: str


Found = str | Call


class CallReader(ABC):
    """Tells text from calls. What looks like a call and is none is text: nothing that a model says is lost."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._held = ""

    @abstractmethod
    def push(self, text: str) -> list[Found]:
        """What is certain now, in order."""

    def flush(self) -> list[Found]:
        """What is left at the end."""
        held, self._held = self._held, ""
        return self._read_all(held)

    def _read_all(self, text: str) -> list[Found]:
        """All of it as calls, or else as text."""
        calls = _calls_in(text, self._names)
        if calls is None:
            return [text] if text else []
        return [*calls]


class Hermes(CallReader):
    """<tool_call>{…}</tool_call>, with text before and after."""

    _BEGIN: Final = "<tool_call>"
    _END: Final = "</tool_call>"

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__(names)
        self._between = False  # after a call: blanks that come are nothing

    def push(self, text: str) -> list[Found]:
        """See `CallReader`."""
        self._held += text
        return [*self._take()]

    def flush(self) -> list[Found]:
        """See `CallReader`; a last call may lack its end."""
        held, self._held = self._held, ""
        before, begun, inside = held.partition(self._BEGIN)
        calls = _calls_in(inside, self._names) if begun else None
        if calls is None:
            return [held] if held else []
        return [*([before.rstrip()] if before.strip() else []), *calls]

    def _take(self) -> Iterator[Found]:
        while True:
            if self._between:
                self._held = self._held.lstrip()
                self._between = not self._held
            before, begun, inside = self._held.partition(self._BEGIN)
            if not begun:
                sure = before[: len(before) - _overlap(before, self._BEGIN)].rstrip()
                self._held = before[len(sure) :]
                if sure:
                    yield sure
                return
            if before.strip():
                yield before.rstrip()
            self._held = begun + inside
            body, ended, rest = inside.partition(self._END)
            if not ended:
                return
            calls = _calls_in(body, self._names)
            yield from [begun + body + ended] if calls is None else calls
            self._held, self._between = rest, True


class Mistral(CallReader):
    """[TOOL_CALLS][{…}, …], with text before."""

    _BEGIN: Final = "[TOOL_CALLS]"

    def push(self, text: str) -> list[Found]:
        """See `CallReader`."""
        self._held += text
        before, begun, _ = self._held.partition(self._BEGIN)
        sure = before if begun else before[: len(before) - _overlap(before, self._BEGIN)]
        self._held = self._held[len(sure) :]
        return [sure] if sure else []

    def flush(self) -> list[Found]:
        """See `CallReader`."""
        held, self._held = self._held, ""
        calls = (
            _calls_in(held.removeprefix(self._BEGIN), self._names) if held.startswith(self._BEGIN) else None
        )
        if calls is None:
            return [held] if held else []
        return [*calls]


class Llama(CallReader):
    """{…}, alone or several with semicolons between; any other text is text."""

    _BEGIN: Final = "<|python_tag|>"

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__(names)
        self._text = False

    def push(self, text: str) -> list[Found]:
        """See `CallReader`."""
        self._held += text
        begun = self._held.lstrip()
        self._text = self._text or not (begun.startswith(("{", self._BEGIN)) or self._BEGIN.startswith(begun))
        if not self._text:
            return []
        found, self._held = self._held, ""
        return [found]

    def flush(self) -> list[Found]:
        """See `CallReader`."""
        held, self._held = self._held, ""
        calls = None if self._text else _calls_in(held.strip().removeprefix(self._BEGIN), self._names)
        if calls is None:
            return [held] if held else []
        return [*calls]


READERS: Final[dict[str, type[CallReader]]] = {"hermes": Hermes, "mistral": Mistral, "llama": Llama}


def _calls_in(text: str, names: frozenset[str]) -> list[Call] | None:
    """The calls that a text is made of; None, if it is anything else."""
    decoder, at, found = json.JSONDecoder(), 0, list[Call]()
    text = text.strip()
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return None
        for each in value if isinstance(value, list) else [value]:
            call = _call(each, names)
            if call is None:
                return None
            found.append(call)
        between = _BETWEEN.match(text, at)
        at = between.end() if between else at
    return found or None


def _call(value: Any, names: frozenset[str]) -> Call | None:
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or name not in names:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if not isinstance(arguments, dict):
        return None
    return Call(name, json.dumps(arguments, ensure_ascii=False))


def _overlap(text: str, mark: str) -> int:
    """The most characters at the end of `text` that `mark` begins with."""
    lengths = range(min(len(text), len(mark) - 1), 0, -1)
    return next((n for n in lengths if text.endswith(mark[:n])), 0)
