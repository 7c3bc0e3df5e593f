"""What somebody says to a chat, one message or command after another: from a pipe or at a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import takewhile
from typing import Final, Protocol

from swarm.cli.streams import read_input

PROMPT: Final = "> "


class Lines(Protocol):
    """Where a chat's messages and commands come from."""

    @property
    def keys(self) -> Sequence[str]:
        """What there is to know about its keys, a line each."""

    def read(self) -> str | None:
        """The next message or command; None at the end. Raises: KeyboardInterrupt."""

    def acting(self) -> AbstractContextManager[None]:
        """Around what a line brings about, which Ctrl-C ends. Raises: KeyboardInterrupt."""

    def beside(self, show: Callable[[], None]) -> None:
        """Have something shown that does not tear what is being typed. Called in any thread."""


class Piped:
    """Lines of a pipe or a file."""

    keys: Sequence[str] = ()

    def read(self) -> str | None:
        """See `Lines`."""
        return read_input(line=True) or None

    def acting(self) -> AbstractContextManager[None]:
        """See `Lines`."""
        return nullcontext()

    def beside(self, show: Callable[[], None]) -> None:
        """See `Lines`."""
        show()


class Bare:
    """Lines that the terminal itself edits: one that takes no escape sequences, or whose answers go elsewhere."""

    keys: Sequence[str] = ()

    def read(self) -> str | None:
        """See `Lines`."""
        with self.acting():
            try:
                return input(PROMPT)
            except EOFError:
                print()
                return None

    @contextmanager
    def acting(self) -> Iterator[None]:
        """See `Lines`."""
        try:
            yield
        except KeyboardInterrupt:
            print()  # the terminal has echoed it
            raise

    def beside(self, show: Callable[[], None]) -> None:
        """See `Lines`."""
        show()


def complete(typed: str, commands: Sequence[str]) -> tuple[str, list[str]]:
    """A command that was begun, as far as it is certain, and those that it may become."""
    found = sorted(command for command in commands if typed and command.startswith(typed))
    if len(found) == 1:
        return f"{found[0]} ", found
    sure = takewhile(lambda pair: pair[0] == pair[1], zip(found[0], found[-1], strict=False)) if found else ()
    return "".join(letter for letter, _ in sure) or typed, found
