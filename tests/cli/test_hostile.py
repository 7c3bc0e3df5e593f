"""A swarm whose every word is an attack: nothing of it steers a terminal, forges a line, or becomes a command."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.keyfile import load_or_create
from protocol.transport.addresses import parse_address
from swarm.cli.demo_nodes import shipped_model
from swarm.cli.local_nodes import free_port
from swarm.portal import Portal
from tests.cli.test_net import Person
from tests.cli.test_streams import redirected
from tests.support.commands import run
from tests.support.forge import Forge
from tests.support.hostile import hostile_node
from tests.support.processes import Process
from tests.support.waiting import block_until

pytestmark = [pytest.mark.net, pytest.mark.timeout(240)]

# What rich, our printer and prompt_toolkit write.
OURS = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?(1|7|12|25|2004)[lh]|\x1b\[[12]?[KAJ]|\x1b\[\d+[CD]|\r")


@pytest.fixture(scope="module")
def hostile() -> Iterator[tuple[str, str]]:
    """A node of a whole model, it says: its address and the model's digest."""
    with Portal() as portal, portal.holding(hostile_node()) as found:
        yield found


def assert_harmless(text: str) -> None:
    """Lines of printable text, none of them forged, none a complaint about ourselves."""
    for line in text.split("\n"):
        assert line.isprintable(), ascii(line)
        assert not re.search("[\u3164\u2800\u00a0]|\u0301{5}", line), ascii(line)
        assert not line.lstrip().startswith("others join"), line
        assert len(line) < 6000
    assert "Traceback" not in text
    assert "bug of ours" not in text


def at(hostile: tuple[str, str], args: list[str]) -> list[str]:
    """Where the swarm is, and which of its models, for the commands that ask; nobody waits for a better one."""
    addr, digest = hostile
    which = [] if "status" in args or "--model" in args else ["--model", digest[:12]]
    return ["--join", addr, *which, *([] if "status" in args else ["--wait", "0"])]


COMMANDS = [
    ["status"],
    ["route"],
    ["chat"],
    ["generate", "hi"],
    ["generate", "hi", "--json"],
    ["chat", "--model", "nonsense"],
    ["generate", "hi", "-vv"],
]


@pytest.mark.parametrize("columns", ["25", "80", "200"])
@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_what_pipes_get(args: list[str], columns: str, hostile: tuple[str, str], tmp_path: Path) -> None:
    """Answers and errors, in terminals of all widths; what is kept of the swarm is addresses."""
    done = run(*args, *at(hostile, args), home=tmp_path, COLUMNS=columns)
    if "-vv" in args:  # its tracebacks are ours, indented under what they belong to
        assert "\x1b" not in done.stderr
        done.stderr = "\n".join(line for line in done.stderr.splitlines() if "Traceback" not in line)
    assert_harmless(done.stdout)
    assert_harmless(done.stderr)
    if "nonsense" in args:
        return  # it has not entered
    kept = json.loads((tmp_path / "joined.json").read_text())["join"]
    assert kept == [str(parse_address(addr)) for addr in kept]
    assert "xxxx" not in str(kept)  # where nobody was met


@pytest.mark.parametrize("args", [["status"], ["route"]], ids=" ".join)
def test_json_is_bounded_and_plain(args: list[str], hostile: tuple[str, str], tmp_path: Path) -> None:
    """Names too; and every command in it is one command."""
    done = run(*args, "--json", *at(hostile, args), home=tmp_path)
    assert done.returncode == 0, done.stderr
    fields = json.loads(done.stdout)
    models = fields.get("models", [fields])
    for model in models:
        assert_harmless(model["model"])
        assert len(model["model"]) <= 128
        for node in model.get("nodes", []):
            assert node["addrs"] == [str(parse_address(addr)) for addr in node["addrs"]]
        for hole in model.get("missing", []):
            words = shlex.split(hole["command"])
            assert words[:3] == ["swarm", "node", "--model"]
            assert words[3] == model["model"]
            assert words[4::2] == ["--layers", "--join"]


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", "2>&-", "<&-", "<&- >&- 2>&-", "| head -1"])
@pytest.mark.parametrize("args", [["status"], ["route", "--json"], ["chat"]], ids=" ".join)
def test_with_broken_streams(
    redirection: str, args: list[str], hostile: tuple[str, str], tmp_path: Path
) -> None:
    """Each of them ends, in one line at most."""
    done = redirected(redirection, *args, *at(hostile, args), home=tmp_path)
    assert done.stderr.count("\n") <= 1
    assert_harmless(done.stdout)
    assert_harmless(done.stderr)
    if args != ["chat"] and redirection in (">&-", ">/dev/full"):
        assert done.returncode == 1
        assert "cannot write to standard output" in done.stderr


@pytest.mark.parametrize("args", [["status"], ["route"], ["chat"], ["generate", "hi"]], ids=" ".join)
@pytest.mark.parametrize("columns", ["30", "120"])
def test_what_a_terminal_gets(
    args: list[str], columns: str, hostile: tuple[str, str], tmp_path: Path
) -> None:
    """The same, with colours and spinners of our own."""
    person, text = Person(*args, *at(hostile, args), home=tmp_path, COLUMNS=columns), ""
    try:
        if args == ["chat"]:
            for line in ("/status\r", "/route\r", "hello\r", "\x04"):
                text += person.sees(r"\x1b\[0m> ")  # escaped, it is ours
                person.types(line)
        text += person.ends()
    finally:
        person.leaves()
    text = OURS.sub("", text)
    for char in text:
        assert char == "\n" or unicodedata.category(char) not in ("Cc", "Cf", "Zl", "Zp"), ascii(text)
    assert "Traceback" not in text
    assert "bug of ours" not in text


def test_a_node_that_joins(hostile: tuple[str, str], forge: Forge, tmp_path: Path) -> None:
    """Its lines name the others' models, a few of them, and each line is one line; its log too."""
    argv = [sys.executable, "-m", "swarm", "node", "-v", "--model", str(shipped_model()), "--layers", "0:1"]
    argv += ["--join", hostile[0], "--home", str(tmp_path), "--listen", "/ip4/127.0.0.1/udp/0/quic-v1"]
    env = {"SWARM_HOME": str(tmp_path), "COLUMNS": "200"}
    with Process(argv, env=env, launch=forge.start) as node:
        node.wait_for_line("^ready ", 90)
        assert_harmless("\n".join(node.lines).replace("others join with:  swarm node --model ", ""))
        [note] = [line for line in node.lines if line.startswith("note: this swarm serves")]
        assert note.count("pwned") < 20
        assert "…" in note
        assert sum(line.startswith("others join with") for line in node.lines) == 1
        node.signal(signal.SIGTERM)
        assert node.wait(10) == 0


def test_a_node_whose_lines_nobody_reads_serves_on(tmp_path: Path) -> None:
    """`swarm node | head -1` keeps a node running; a second one with its key is told to take another home."""
    argv = [sys.executable, "-m", "swarm", "node", "--model", str(shipped_model()), "--layers", "0:1"]
    argv += ["--home", str(tmp_path), "--listen", "/ip4/127.0.0.1/udp/0/quic-v1"]
    env = {"SWARM_HOME": str(tmp_path)}
    with Process(
        ["bash", "-c", 'exec 3>&1; "$@" 2>&3 | head -1; exec sleep 600', "bash", *argv], env=env
    ) as one:
        one.wait_for_line("^opening ", 90)
        door = tmp_path / "joined.json"  # written when it is ready
        with Process(["bash", "-c", 'until [ -e "$1" ]; do sleep 0.05; done', "bash", str(door)]) as ready:
            assert ready.wait(90) == 0
        done = run("status", "--json", home=tmp_path)
        [model] = json.loads(done.stdout)["models"]
        assert model["nodes"][0]["state"] == "serving"
        second = subprocess.run(
            [*argv[:-4], *argv[-4:]], capture_output=True, text=True, timeout=60, check=False
        )
        assert second.returncode == 2
        assert re.fullmatch(
            rf"error: the key {tmp_path}/node.key is in use by another node( \(pid \d+\))?; "
            r"give each node its own --home\n",
            second.stderr,
        )
        assert one.lines == one.lines[:1]


def test_a_node_whose_output_is_stuck_serves_on(forge: Forge, tmp_path: Path) -> None:
    """A pipe that is full and that nobody empties: lines wait or are lost, the event loop does neither."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    peer, port = load_or_create(tmp_path / "node.key").peer, free_port()
    place = f"/ip4/127.0.0.1/udp/{port}/quic-v1"
    words = ["node", "--model", str(shipped_model()), "--layers", "0:1", "--home", str(tmp_path)]
    with open(os.devnull, "r+b") as null:
        streams = (null.fileno(), writer, null.fileno())
        node = forge.spawn([*words, "--listen", place], streams, os.environ)
    try:
        block_until(lambda: _serves(f"{place}/p2p/{peer}", tmp_path), 90)
    finally:
        os.kill(node.pid, signal.SIGKILL)
        node.wait()
        os.close(reader)
        os.close(writer)


def _serves(addr: str, home: Path) -> bool:
    done = run("status", "--json", "--join", addr, home=home)
    models = json.loads(done.stdout)["models"] if done.returncode == 0 else []
    return any(node["state"] == "serving" for model in models for node in model["nodes"])
