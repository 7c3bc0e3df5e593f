"""What is typed at a terminal: no key and no signal is lost, and the terminal is as it was afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from swarm.cli.history import ENTRIES, History
from swarm.cli.lines import complete
from tests.cli.test_net import Person
from tests.support.odd_files import ODD, make_odd

PROGRAM = """
import sys, threading
from swarm.cli.reading import open_lines
from swarm.cli.screen import Screen
from swarm.cli.streams import own_streams
from swarm.cli.terminal import open_terminal

def say(*words):
    print(*words, flush=True)

def work():
    say("working")
    threading.Event().wait()

def main():
    with open_lines(Screen(open_terminal()), ("/help", "/reset", "/route")) as lines:
        while True:
            try:
                text = lines.read()
                if text is None:
                    return say("left")
                with lines.acting():
                    if text == "work":
                        work()
                    elif text == "fail":
                        raise ValueError
                    else:
                        say("said", ascii(text) + ".")
            except KeyboardInterrupt:
                say("interrupted")

with own_streams():
    main()
"""
PASTE = "\x1b[200~one\rtwo\r\x1b[201~"


class Typist(Person):
    """Somebody who types to what says only what it has read."""

    program: ClassVar[tuple[str, ...]] = ("-c", PROGRAM)

    def settings(self) -> list[Any]:
        """Of the terminal."""
        return termios.tcgetattr(self._master)

    def hangs_up(self) -> None:
        """The window is closed; what reads or writes there from now on fails."""
        os.dup2(os.open(os.devnull, os.O_RDWR), self._master)


@contextmanager
def typing(home: Path, keys: str = "", status: int = 0, **environment: str) -> Iterator[Typist]:
    """A typist whose first keys come before anybody reads, and who at the end has left."""
    person = Typist(home=home, **environment)
    try:
        person.types(keys)
        before = person.settings()
        yield person
        person.ends()
        assert person.settings() == before
    except BaseException:
        person.process.kill()
        raise
    finally:
        left = person.leaves()
    assert left == status


@pytest.mark.parametrize("keys", ["\x04", "a\r\x04", "a\r\x04b", "\r\r\x04", "half\x15\x04"])
def test_ctrl_d_typed_ahead_leaves(keys: str, tmp_path: Path) -> None:
    """Before there is a prompt: a terminal that edits lines has only marked the place."""
    with typing(tmp_path, keys) as person:
        person.sees("left")


@pytest.mark.parametrize(
    "keys", ["\x04", "a\r\x04", "a\r\x03\x04", "work\r\x03\x04", "half\x03\x04", "\x03\x03\x04", "\r\r\x04b"]
)
@pytest.mark.parametrize("interrupted", [False, True])
def test_ctrl_d_leaves(keys: str, interrupted: bool, tmp_path: Path) -> None:
    """At the prompt and once something was stopped, at one go with other keys."""
    with typing(tmp_path) as person:
        person.sees("> ")
        if interrupted:
            person.types("work\r")
            person.sees("working")
            person.types("\x03")
        person.types(keys)
        person.sees("left")


def test_ctrl_c_stops_what_goes_on(tmp_path: Path) -> None:
    """And nothing else; at the prompt it drops the line."""
    with typing(tmp_path) as person:
        for _ in range(3):
            person.sees("> ")
            person.types("work\r")
            person.sees("working")
            person.types("\x03")
            person.sees("interrupted")
        person.sees("> ")
        person.types("half\x03whole\r")
        person.sees("interrupted")
        person.sees(r"said 'whole'\.")
        person.process.send_signal(signal.SIGINT)
        person.sees("interrupted")
        person.types("\x04")
        person.sees("left")


def test_what_is_typed_meanwhile_is_kept(tmp_path: Path) -> None:
    """Unseen, with what is pasted as one message; Ctrl-C drops what came before it."""
    with typing(tmp_path) as person:
        person.sees("> ")
        person.types("work\r")
        person.sees("working")
        person.types("dropped\r\x03one\r" + PASTE + "\rlast")
        seen = person.sees(r"said 'one'\.")
        assert "dropped" not in seen
        person.sees(r"said 'one\\ntwo\\n'\.")
        person.sees("last")
        person.types("\r\x04")
        person.sees(r"said 'last'\.")


def test_messages_of_several_lines(tmp_path: Path) -> None:
    """What is pasted is one message, shown as it is and sent by Enter; Alt-Enter begins a line by hand."""
    with typing(tmp_path) as person:
        person.sees("> ")
        person.types(PASTE + "three")
        seen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", person.sees("three"))
        assert [line.strip() for line in seen.splitlines() if line.strip()] == ["> one", "two", "three"]
        assert "said" not in seen
        person.types("\r")
        person.sees(r"said 'one\\ntwo\\nthree'\.")
        person.types("a\x1b\rb\r")
        person.sees(r"said 'a\\nb'\.")
        person.types("\x04")


def test_tab_completes_commands(tmp_path: Path) -> None:
    """One that is certain; those that are possible are shown above the line, which stays."""
    with typing(tmp_path) as person:
        person.sees("> ")
        person.types("/he\t\r")
        person.sees(r"said '/help '\.")
        person.types("/r\t")
        person.sees(r"/reset  /route(.|\n)*> .*/r")
        person.types("o\t\r\x04")
        person.sees(r"said '/route '\.")


@pytest.mark.parametrize(
    ("typed", "becomes", "found"),
    [
        ("", "", 0), ("/", "/r", 2), ("/re", "/reset ", 1), ("/reset", "/reset ", 1), ("/x", "/x", 0),
        ("/reset ", "/reset ", 0), ("re", "re", 0), ("/reset\n", "/reset\n", 0),
    ],
)  # fmt: skip
def test_a_command_is_completed_as_far_as_it_is_certain(typed: str, becomes: str, found: int) -> None:
    """And no further."""
    text, candidates = complete(typed, ("/route", "/reset"))
    assert (text, len(candidates)) == (becomes, found)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    """Become question marks."""
    with typing(tmp_path) as person:
        person.sees("> ")
        person.types(b"a\xff\xc3b\r\x04")
        person.sees(r"said 'a\?\?b'\.")


def test_history_lasts_from_one_chat_to_the_next(tmp_path: Path) -> None:
    """Up brings back what was typed, several lines too, in a file that is nobody else's."""
    with typing(tmp_path / "home") as person:
        person.sees("> ")
        person.types("first\rfirst\r" + PASTE + "\r\x04")
    path = tmp_path / "home" / "history"
    assert [json.loads(line) for line in path.read_text().splitlines()] == ["first", "one\ntwo\n"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with typing(tmp_path / "home") as person:
        person.sees("> ")
        person.types("\x1b[A\r")
        person.sees(r"said 'one\\ntwo\\n'\.")
        person.types("\x12fir\r\r\x04")
        person.sees(r"said 'first'\.")


@pytest.mark.parametrize("what", ["odd", "binary", "deep", "number", "surrogate", *ODD, "nowhere"])
def test_a_broken_history_costs_one_line(what: str, tmp_path: Path) -> None:
    """And is left as it is."""
    path = tmp_path / "history"
    odd = {
        "odd": b"first\n",
        "binary": b"\xff\xfe\n",
        "deep": b"[" * 100_000 + b"\n",
        "number": b"1" + b"0" * 10_000 + b"\n",
        "surrogate": b'"\\ud800"\n',
    }
    if what == "nowhere":
        tmp_path = Path("/dev/null/home")
    elif what in odd:
        path.write_bytes(odd[what])
    else:
        make_odd(path, what)
    with typing(tmp_path) as person:
        seen = person.sees("> ")
        person.types("hello\ragain\r\x04")
        seen += person.sees("left")
    assert seen.count("is not kept for the next chat") == 1
    assert "said 'again'." in seen
    if what in odd:
        assert path.read_bytes() == odd[what]


def test_a_history_that_was_cut_off_is_mended(tmp_path: Path) -> None:
    """What a full disk left of a line goes, the rest stays."""
    path = tmp_path / "history"
    path.write_bytes(b'"one"\n"tw')
    path.chmod(0o644)
    history = History(path, pytest.fail)
    assert history.entries == ["one"]
    history.add("three")
    assert path.read_bytes() == b'"one"\n"three"\n'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_history_is_bounded(tmp_path: Path) -> None:
    """Of the newest a thousand are read; a full file keeps its newer half; what is very long is not kept."""
    path = tmp_path / "history"
    history = History(path, pytest.fail)
    history.add("x" * 20_000)
    assert not path.exists()
    for number in range(300):
        history.add(f"{number} {'x' * 8000}")
    assert path.stat().st_size < 1 << 20
    again = History(path, pytest.fail)
    assert 50 < len(again.entries) < 150
    assert again.entries == history.entries[-len(again.entries) :]
    for number in range(ENTRIES):
        again.add(str(number))
    assert History(path, pytest.fail).entries == [str(number) for number in range(ENTRIES)]


def test_two_chats_keep_one_history(tmp_path: Path) -> None:
    """Neither overwrites what the other has added."""
    path = tmp_path / "history"
    one, other = History(path, pytest.fail), History(path, pytest.fail)
    one.add("one")
    other.add("two")
    one.add("three")
    assert History(path, pytest.fail).entries == ["one", "two", "three"]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT], ids=lambda number: number.name
)
@pytest.mark.parametrize("working", [False, True])
def test_whoever_is_told_to_go_leaves_the_terminal_in_order(
    number: signal.Signals, working: bool, tmp_path: Path
) -> None:
    """In the middle of a message and of work."""
    with typing(tmp_path, status=128 + number) as person:
        person.sees("> ")
        person.types("work\r" if working else "half a li")
        person.sees("working" if working else "half a li")
        person.process.send_signal(number)


def test_a_failure_leaves_the_terminal_in_order(tmp_path: Path) -> None:
    """Whatever is raised."""
    with typing(tmp_path, status=1) as person:
        person.sees("> ")
        person.types("fail\r")
        person.sees("ValueError")


@pytest.mark.parametrize("keys", ["half a li", "work\r"])
def test_a_terminal_that_is_gone_ends_it(keys: str, tmp_path: Path) -> None:
    """At once, in the middle of anything."""
    person = Typist(home=tmp_path)
    try:
        person.sees("> ")
        person.types(keys)
        person.sees("half a li|working")
        person.hangs_up()
    finally:
        assert person.leaves() == 128 + signal.SIGHUP


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_bare_terminal_gets_no_escape_sequences(term: str, tmp_path: Path) -> None:
    """It edits lines itself, and there is no history."""
    with typing(tmp_path, "one\r\x04", TERM=term) as person:
        seen = person.sees("left")
    assert "said 'one'." in seen
    assert "\x1b" not in seen
    assert not (tmp_path / "history").exists()


def test_no_colour_is_used(tmp_path: Path) -> None:
    """Whether or not somebody wants none."""
    with typing(tmp_path) as person:
        person.sees("> ")
        person.types("/\t" + PASTE + "\r\x04")
        assert re.search(r"\x1b\[[0-9;]*[34][0-9]m", person.sees("left")) is None
