"""Reading at a terminal: messages of several lines, what was typed before, commands completed, and no key lost.

A terminal that edits lines itself turns Ctrl-C into a signal and Ctrl-D into a mark in its buffer, and loses the mark
when it is told to stop editing. So it edits nothing as long as this is open. While a message is typed each key is a
key. In between Ctrl-C alone is a signal, which drops what was typed before it, as terminals have it; all else waits,
unseen, for the next message.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import select
import sys
import termios
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Final

from prompt_toolkit.application import Application
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input.typeahead import clear_typeahead, get_typeahead, store_typeahead
from prompt_toolkit.input.vt100 import Vt100Input
from prompt_toolkit.key_binding import KeyBindings, KeyPress, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import ColorDepth, Output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import PromptSession

from swarm.cli.history import History, history_path
from swarm.cli.interrupts import Interrupts
from swarm.cli.lines import PROMPT, complete
from swarm.cli.screen import Screen
from swarm.cli.streams import OutputLost

# Of what was typed ahead, in reads of a KiB; what is more stays with the terminal.
_AHEAD_READS: Final = 64
_IFLAG, _LFLAG, _CC = 0, 3, 6  # places in what tcgetattr gives


@contextmanager
def edited(screen: Screen, commands: Sequence[str]) -> Iterator[Editor]:
    """An editor at the process's terminal, which afterwards is as it was before, however this ends."""
    keyboard = Vt100Input(sys.stdin)
    # It would ask the terminal where the cursor is, and the reply may come when nobody reads it any more.
    size = Vt100_Output.from_pty(sys.stdout).get_size
    output = Vt100_Output(sys.stdout, size, enable_bell=False, enable_cpr=False)
    before = termios.tcgetattr(keyboard.fileno())
    with Interrupts() as interrupts:
        try:
            termios.tcsetattr(keyboard.fileno(), termios.TCSANOW, _waiting(before))
            yield Editor(screen, commands, keyboard, output, interrupts)
        finally:
            with contextlib.suppress(termios.error):  # it is gone
                termios.tcsetattr(keyboard.fileno(), termios.TCSANOW, before)
            with contextlib.suppress(OutputLost):
                output.disable_bracketed_paste()
                output.flush()


class Editor:
    """See `Lines`. Made by `edited`."""

    keys = (
        "Tab completes a command; Alt-Enter, or Esc and then Enter, begins a new line",
        "Up and Ctrl-R find what was typed before; it is kept from one chat to the next",
    )

    def __init__(
        self,
        screen: Screen,
        commands: Sequence[str],
        keyboard: Vt100Input,
        output: Output,
        interrupts: Interrupts,
    ) -> None:
        self._terminal = screen.terminal
        self._commands = commands
        self._keyboard = keyboard
        self._output = output
        self._interrupts = interrupts
        self._loop: asyncio.AbstractEventLoop | None = None  # while a message is typed
        self._to_show: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._history = History(history_path(), self._terminal.remark)
        self._session = self._open_session()
        interrupts.heard = self._heard
        self._take_ahead(edited_before=True)

    def read(self) -> str | None:
        """See `Lines`."""
        try:
            text = self._session.prompt(pre_run=self._begin, set_exception_handler=False, handle_sigint=False)
        except (EOFError, termios.error):  # Ctrl-D; a terminal that is gone
            return None
        finally:
            self._loop = None
            self._show_all()
            self._take_ahead()
        text = text.encode(errors="replace").decode()  # bytes that are no UTF-8 become question marks
        self._history.add(text)
        return text

    def acting(self) -> AbstractContextManager[None]:
        """See `Lines`."""
        return self._interrupts.wanted()

    def beside(self, show: Callable[[], None]) -> None:
        """See `Lines`."""
        self._to_show.put(show)
        loop = self._loop
        if loop is None:
            self._show_all()
            return
        with contextlib.suppress(RuntimeError):  # it has just ended, and who ended it shows what there is
            loop.call_soon_threadsafe(self._show_above)

    def _open_session(self) -> PromptSession[str]:
        return PromptSession(
            # With a style, even one that is none, its blank is written: the cursor would jump over it.
            [("fg:ansidefault", PROMPT)],
            input=self._keyboard,
            output=self._output,
            color_depth=ColorDepth.DEPTH_1_BIT,
            history=InMemoryHistory(self._history.entries),
            key_bindings=self._bindings(),
            prompt_continuation=" " * len(PROMPT),
            complete_while_typing=False,
            enable_suspend=True,
            include_default_pygments_style=False,
        )

    def _bindings(self) -> KeyBindings:
        bindings = KeyBindings()
        typing = has_focus(DEFAULT_BUFFER)

        @bindings.add("escape", "enter", filter=typing)
        def _break(event: KeyPressEvent) -> None:
            event.current_buffer.newline(copy_margin=False)

        @bindings.add("tab", filter=typing)
        def _complete(event: KeyPressEvent) -> None:
            typed = event.current_buffer.document.text_before_cursor
            text, found = complete(typed, self._commands)
            if text != typed:
                event.current_buffer.insert_text(text[len(typed) :])
            elif found:
                self._to_show.put(partial(self._terminal.remark, "  ".join(found)))
                self._show_above()

        return bindings

    @property
    def _app(self) -> Application[str]:
        return self._session.app

    def _begin(self) -> None:
        """The message's event loop runs, in the main thread; a signal now wakes it."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._fail)
        self._interrupt()

    def _fail(self, _loop: object, context: dict[str, Any]) -> None:
        """What went wrong in the event loop, such as writing to a terminal that is gone, ends the message."""
        error = context.get("exception")
        if error is not None and not self._app.is_done:
            self._app.exit(exception=error)

    def _heard(self) -> None:
        """At Ctrl-C as a signal: the terminal has dropped what was typed before, and so must we."""
        clear_typeahead(self._keyboard)
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has just ended; the signal stays noted
                self._loop.call_soon_threadsafe(self._interrupt)

    def _interrupt(self) -> None:
        if not self._app.is_done and self._interrupts.take():
            self._app.key_processor.send_sigint()

    def _take_ahead(self, *, edited_before: bool = False) -> None:
        """Read what was typed too early for the last message, or before the first.

        A Ctrl-C among it was meant for what begins now: it had come before the terminal made signals of it again.
        """
        keys = get_typeahead(self._keyboard)
        for _ in range(_AHEAD_READS):
            if self._keyboard.closed or not select.select([self._keyboard], [], [], 0)[0]:
                break
            keys += self._keyboard.read_keys()
        if edited_before:
            keys = [_unmarked(key) for key in keys]
        for index in reversed(range(len(keys))):
            if keys[index].key in (Keys.ControlC, Keys.SIGINT):
                self._interrupts.note()
                del keys[: index + 1]
                break
        store_typeahead(self._keyboard, keys)
        with contextlib.suppress(OutputLost):  # whoever writes the answer finds out
            self._output.enable_bracketed_paste()  # what is pasted meanwhile is one message too
            self._output.flush()

    def _show_above(self) -> None:
        """In the event loop: above the message, which is drawn again."""
        if not self._app.is_running or self._app.is_done:
            return
        self._app.renderer.erase()
        self._show_all()
        self._app.renderer.reset()
        self._app.invalidate()

    def _show_all(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._to_show.get_nowait()()


def _waiting(before: list[Any]) -> list[Any]:
    """The terminal's settings while nothing is read: keys wait as they are and unseen, Ctrl-C is a signal."""
    now = [*before]
    now[_IFLAG] &= ~(termios.ICRNL | termios.INLCR | termios.IGNCR)
    now[_LFLAG] = (
        now[_LFLAG] & ~(termios.ICANON | termios.ECHO | termios.IEXTEN | termios.NOFLSH) | termios.ISIG
    )
    now[_CC] = [*before[_CC]]
    now[_CC][termios.VMIN], now[_CC][termios.VTIME] = 1, 0
    return now


def _unmarked(key: KeyPress) -> KeyPress:
    """A Linux terminal that edits marks a Ctrl-D by a NUL, and that is what is left of it afterwards."""
    return KeyPress(Keys.ControlD, "\x04") if key.key == Keys.ControlAt else key
