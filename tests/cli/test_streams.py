"""Standard input, output and error that are closed, full, broken or odd: one line at most, and never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cli.test_usage import NOBODY
from tests.support.commands import run
from tests.support.odd_files import ODD, make_odd

FULL = "cannot write to standard output: No space left on device"
CLOSED = "cannot write to standard output: Bad file descriptor"
LINES = 3  # click's complaint about wrong usage has a pointer to the help before it


def redirected(
    redirection: str, *args: str | bytes, home: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`swarm ...` with its streams as a shell makes them: ">&-", "</dev/null", ">/dev/full" and so on."""
    inherited = {name: value for name, value in os.environ.items() if name != "SWARM_JOIN"}
    done = subprocess.run(
        ["bash", "-c", f'exec "$@" {redirection}', "bash", sys.executable, "-m", "swarm", *args],
        env={**inherited, "SWARM_HOME": str(home), "COLUMNS": "200", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def unread(*args: str, home: Path) -> subprocess.CompletedProcess[str]:
    """`swarm ...` whose standard output is a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            [sys.executable, "-m", "swarm", *args],
            env={**os.environ, "SWARM_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)


WRITES: list[Sequence[str]] = [["--help"], ["--version"], ["chat", "--help"]]
FAILS: list[tuple[Sequence[str], int]] = [
    (["status", "--join", NOBODY], 1),
    (["status", "--json", "--join", "nonsense"], 2),
    (["chat", "--join", NOBODY], 1),
    (["generate", "-", "--join", NOBODY], 2),
    (["node", "--model", "x", "--layers", "3:3"], 2),
    (["nonsense"], 2),
]


@pytest.mark.parametrize("args", WRITES, ids=" ".join)
@pytest.mark.parametrize(("redirection", "says"), [(">/dev/full", FULL), (">&-", CLOSED)])
def test_what_cannot_be_written_is_one_line(
    args: Sequence[str], redirection: str, says: str, tmp_path: Path
) -> None:
    """With status 1: what did not arrive has not been done."""
    done = redirected(redirection, *args, home=tmp_path)
    assert (done.returncode, done.stderr) == (1, f"error: {says}\n")


@pytest.mark.parametrize("args", WRITES, ids=" ".join)
def test_a_reader_that_leaves_is_no_error(args: Sequence[str], tmp_path: Path) -> None:
    """Status 141, as of any command in a pipe, and not a word."""
    done = unread(*args, home=tmp_path)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(("args", "status"), FAILS, ids=str)
@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", "<&-", "2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_failures_stay_what_they_are(
    args: Sequence[str], status: int, redirection: str, tmp_path: Path
) -> None:
    """Whatever is closed beside: the same status, and the same line if there is still somewhere to say it."""
    done = redirected(redirection, *args, home=tmp_path)
    assert done.returncode == status
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr
    assert ("2>" in redirection) == (done.stderr == "")
    if args != ["nonsense"]:
        assert done.stderr.count("\n") <= 1


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize(
    "args", [["status", "--join", b"\xff\x1b"], [b"\xff\x1b"], ["generate", b"\xff"]], ids=str
)
def test_arguments_that_are_no_text(args: Sequence[str | bytes], locale: str, tmp_path: Path) -> None:
    """Bytes that no encoding has are told as well as can be."""
    done = redirected("", *args, home=tmp_path, LC_ALL=locale)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"null", b'"x"', b"7", b"{}", b'{"join": 5}', b'{"join": {"a": 1}}', b'{"join": null}',
        b'{"join": [1, null, [], {}, "", "nonsense", "$(touch x);id #", "/dns/$(id)/udp/1/quic-v1"]}',
        b"\xff\xfe", b"[" * 50_000, b'{"join": ["' + b"x" * 1_000_000 + b'"]}', b'{"join": ["\\ud800"]}',
        b'{"join": 1' + b"0" * 10_000 + b"}",
    ],
    ids=lambda content: ascii(content[:20]),
)  # fmt: skip
def test_an_odd_memory_of_doors_is_none(content: bytes, tmp_path: Path) -> None:
    """Whatever the file of the doors holds."""
    (tmp_path / "joined.json").write_bytes(content)
    done = run("status", home=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no swarm to join")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("what", ["unreadable", *ODD])
def test_a_memory_of_doors_that_is_no_file_is_none(what: str, tmp_path: Path) -> None:
    """Nor is it waited for."""
    path = tmp_path / "joined.json"
    if what == "unreadable":
        path.write_text("{}")
        path.chmod(0)
    else:
        make_odd(path, what)
    done = run("status", home=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_doors_are_kept_as_addresses(tmp_path: Path) -> None:
    """A sound one among others is used, in our own words."""
    (tmp_path / "joined.json").write_text(json.dumps({"join": ["$(id)", NOBODY]}))
    assert "(1 address tried)" in run("status", home=tmp_path).stderr
