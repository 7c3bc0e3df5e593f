"""The command line against a real swarm: processes, sockets, a terminal, signals."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

from swarm import blocking
from swarm.cli.demo_nodes import shipped_model
from tests.support.commands import run, run_afresh
from tests.support.forge import Forge
from tests.support.gguf import as_q8_0, convert
from tests.support.hub import REPOSITORY, serving
from tests.support.local_swarm import LocalSwarm
from tests.support.processes import Processes
from tests.support.waiting import block_until

pytestmark = [pytest.mark.net, pytest.mark.timeout(240)]

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def swarm_of_two(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    """Two nodes, together the whole model, neither of them alone."""
    with Processes(launch=forge.start) as processes:
        nodes = LocalSwarm(
            processes, shipped_model(), tmp_path_factory.mktemp("two"), extra=["--kv-tokens", "8192"]
        )
        nodes.start("0:5", "3:8")
        yield nodes


@pytest.fixture
def join(swarm_of_two: LocalSwarm) -> list[str]:
    return ["--join", swarm_of_two.nodes[1].addr]


def test_generate_prints_the_text_alone(join: list[str], tmp_path: Path) -> None:
    """For a pipe; and the swarm is remembered for the next command."""
    done = run("generate", QUESTION, *join, home=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Paris" in done.stdout
    assert run("generate", QUESTION, home=tmp_path).stdout == done.stdout


def test_serve_answers_by_http_until_it_is_told_to_leave(
    swarm_of_two: LocalSwarm, tmp_path: Path, processes: Processes
) -> None:
    """It says where it listens, answers, and ends by Ctrl-C without a word."""
    command = [sys.executable, "-m", "swarm", "serve", "--join", swarm_of_two.join, "--port", "0"]
    server = processes.start(command, env={"SWARM_HOME": str(tmp_path)}, name="serve")
    url = server.wait_for_line(r"^listening at (http\S+) \(no key needed\)$", 30)[1]
    with httpx.Client(base_url=url, timeout=30) as client:
        block_until(lambda: client.get("/health").json()["joined"], 30)
        body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
        said = client.post("/v1/chat/completions", json=body).json()
    assert "Paris" in said["choices"][0]["message"]["content"]
    server.signal(signal.SIGINT)
    assert server.wait(10) == 0


def test_generate_as_json(join: list[str], tmp_path: Path) -> None:
    """The text is that without --json; a raw prompt is continued, not answered; a stop string ends it."""
    plain = run("generate", QUESTION, *join, home=tmp_path).stdout
    fields = json.loads(run("generate", QUESTION, *join, "--json", home=tmp_path).stdout)
    assert fields["text"] + "\n" == plain
    assert (fields["finish_reason"], len(fields["route"]), fields["reroutes"]) == ("eos", 2, [])
    raw = json.loads(run("generate", QUESTION, *join, "--json", "--raw", home=tmp_path).stdout)
    assert raw["prompt_tokens"] < fields["prompt_tokens"]
    cut = json.loads(run("generate", QUESTION, *join, "--json", "--stop", "Par", home=tmp_path).stdout)
    assert (cut["finish_reason"], cut["text"]) == ("stop", fields["text"].split("Par")[0])


def test_generate_answers_several_prompts(join: list[str], tmp_path: Path) -> None:
    """A line each, in order; as JSON with what each was asked as; one that fails is told and takes none with it."""
    questions = [QUESTION, "What is 12 + 30?", "Count from 3 to 6."]
    alone = [run("generate", question, *join, home=tmp_path).stdout for question in questions]
    done = run("generate", *questions, *join, home=tmp_path)
    assert (done.returncode, done.stdout) == (0, "".join(alone))
    lines = [json.dumps({"prompt": question, "id": [n]}) for n, question in enumerate(questions)]
    lines.insert(1, json.dumps({"prompt": "word " * 9000}))
    (tmp_path / "asked.jsonl").write_text("\n".join(lines))
    done = run("generate", "--prompts", str(tmp_path / "asked.jsonl"), "--json", *join, home=tmp_path)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each.get("id") for each in told] == [[0], None, [1], [2]]
    assert [each["text"] + "\n" for each in told if each["error"] is None] == alone
    assert "tokens" in told[1]["error"]
    assert done.returncode == 1
    assert "1 of 4 prompts failed, first number 2" in done.stderr


def test_a_full_client_gives_the_same(join: list[str], tmp_path: Path) -> None:
    """With both ends of the model on the client's side, the answer is the thin client's."""
    thin = json.loads(run("generate", QUESTION, *join, "--json", home=tmp_path).stdout)
    model = ["--model", str(shipped_model())]
    full = json.loads(run("generate", QUESTION, *join, *model, "--json", home=tmp_path).stdout)
    assert full["tokens"] == thin["tokens"]
    assert full["route"][0]["stages"][0] == 1
    assert full["route"][-1]["stages"][1] == 9


def test_the_seed_gives_the_same_text_on_any_route(join: list[str], tmp_path: Path) -> None:
    """Sampling is drawn on the client's side alone."""
    drawn = ["--temperature", "1.5", "--top-p", "0.95", "--seed", "7", "-n", "40"]
    texts = {run("generate", "Hello!", *join, *drawn, home=tmp_path).stdout for _ in range(2)}
    assert len(texts) == 1


def test_status_and_route(join: list[str], tmp_path: Path) -> None:
    """Both nodes are seen, nothing is missing, and the route covers all stages."""
    [model] = json.loads(run("status", *join, "--json", home=tmp_path).stdout)["models"]
    assert (model["complete"], model["layers"], len(model["nodes"])) == (True, 8, 2)
    assert all(node["rtt_ms"] is not None for node in model["nodes"])
    assert "serving" in run("status", *join, home=tmp_path).stdout
    hops = json.loads(run("route", *join, "--json", home=tmp_path).stdout)["hops"]
    assert (hops[0]["stages"][0], hops[-1]["stages"][1]) == (0, 10)
    assert "layers" in run("route", *join, home=tmp_path).stdout


def test_the_doctor_asks_the_swarm(join: list[str], tmp_path: Path) -> None:
    """Who answers, what time it is there, and whether anything is missing."""
    done = run("doctor", *join, "--json", home=tmp_path)
    found = json.loads(done.stdout)
    assert found["sound"] is (done.returncode == 0)
    said = {each["about"]: each["text"] for each in found["findings"]}
    assert said["swarm"].startswith("2 nodes answered")
    assert said["reach"].startswith("1 of 1 node asked reached UDP port ")
    assert (said["clock"], said["model"]) == ("agrees with 2 nodes", "tiny on 2 nodes: every layer is served")


def test_weights_are_named_pinned_and_remembered(join: list[str], tmp_path: Path) -> None:
    """The swarm's digest is shown, 32 of its digits are a pin, and what was used is not changed without a word."""
    home = tmp_path / "home"
    [model] = json.loads(run("status", *join, "--json", home=home).stdout)["models"]
    digest = model["weights"]
    assert json.loads(run("route", *join, "--json", home=home).stdout)["weights"] == digest
    assert f"weights {digest[:32]}\n" in run("status", *join, home=home).stdout
    ask = ("generate", QUESTION, *join)
    plain = run(*ask, home=home)
    assert "Paris" in plain.stdout
    for pin in (digest, digest[:32]):
        assert run(*ask, "--weights", pin, home=tmp_path / "other").stdout == plain.stdout
    full = run(*ask, "--model", str(shipped_model()), "--weights", digest, home=tmp_path / "other")
    assert full.stdout == plain.stdout
    wrong = run(*ask, "--weights", "0" * 32, "--wait", "0", home=tmp_path / "other")
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (1, "", 1)
    assert f"no set of weights here is {'0' * 32}" in wrong.stderr
    [kept] = (home / "cache" / "weights").iterdir()
    kept.write_text(re.sub('"3": "[0-9a-f]*"', '"3": "0011223344556677"', kept.read_text()))
    changed = run(*ask, "--wait", "0", home=home)
    assert (changed.returncode, changed.stdout) == (1, "")
    assert "this client has used before" in changed.stderr
    assert run(*ask, "--weights", "new", home=home).stdout == plain.stdout
    assert run(*ask, home=home).stdout == plain.stdout
    kept.write_bytes(b"\xff")
    odd = run(*ask, home=home)
    assert odd.stdout == plain.stdout
    assert str(kept) in odd.stderr
    assert odd.stderr.count("\n") == 1


def test_an_unknown_model_is_named(join: list[str], tmp_path: Path) -> None:
    """With those that there are."""
    done = run("chat", *join, "--model", "nonsense", home=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "nonsense" in done.stderr
    assert "tiny" in done.stderr


def test_chat_takes_piped_lines(join: list[str], tmp_path: Path) -> None:
    """Each line is a turn, commands too; in a terminal without UTF-8 nothing fails."""
    done = subprocess.run(
        [sys.executable, "-m", "swarm", "chat", *join],
        input="What is the capital of Italy?\n/reset\n/nonsense\n\n/route\n/status\nWhat is é日😀?\n".encode(),
        env={**os.environ, "SWARM_HOME": str(tmp_path), "PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"Rome" in done.stdout
    assert b"embedding + layers" in done.stdout
    assert b"/nonsense" in done.stderr
    assert b"tok/s" in done.stderr


def test_chat_changes_how_it_answers(join: list[str], tmp_path: Path) -> None:
    """/set is for the turns after it; what cannot be is told, and changes nothing."""
    lines = ["/set strategy beam_search:beams=3", "/set top_p 7", "What is the capital of Italy?"]
    lines += ["/set strategy default", "/set max_new_tokens 2", "What is the capital of Italy?", "/set"]
    done = subprocess.run(
        [sys.executable, "-m", "swarm", "chat", *join],
        input="\n".join(lines).encode(),
        env={**os.environ, "SWARM_HOME": str(tmp_path)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"Rome" in done.stdout
    assert b"top_p 7" in done.stderr
    assert b"cut at 2 tokens" in done.stderr
    assert b"max_new_tokens 2" in done.stderr


def test_contrastive_decoding_by_two_clients(join: list[str], tmp_path: Path) -> None:
    """The amateur is a model of the same swarm: here itself, at which nothing is likelier."""
    model = json.loads(run("generate", QUESTION, *join, "--json", home=tmp_path).stdout)["model"]
    arguments = ["--strategy", "contrastive:head_parameter=1", "--amateur", model]
    done = run("generate", QUESTION, *join, *arguments, home=tmp_path)
    assert "Paris" in done.stdout
    lacking = run("generate", QUESTION, *join, *arguments[:2], home=tmp_path)
    assert (lacking.returncode, "amateur" in lacking.stderr) == (2, True)


def test_a_model_that_drafts(join: list[str], tmp_path: Path) -> None:
    """A checkpoint here; where nothing is drafted, or its ids are other text, that is one line."""
    sibling = str(shipped_model().with_name("tiny-draft"))
    done = run("generate", QUESTION, *join, "--draft", sibling, home=tmp_path)
    assert "Paris" in done.stdout
    useless = run("generate", QUESTION, *join, "--draft", sibling, "--strategy", "greedy", home=tmp_path)
    assert (useless.returncode, "greedy drafts nothing" in useless.stderr) == (2, True)


def test_the_blocking_client(swarm_of_two: LocalSwarm) -> None:
    """The same client without async: generate, a conversation, leaving an answer early, the map."""
    with blocking.connect(*(node.addr for node in swarm_of_two.nodes)) as client:
        assert "Paris" in "".join(piece.text for piece in client.generate(QUESTION, chat=True))
        with client.conversation() as talk:
            count = talk.say("Count from 3 to 40.")
            for _ in count:
                break
            assert count.answer.finish_reason == "cancelled"
            assert "Rome" in "".join(piece.text for piece in talk.say("What is the capital of Italy?"))
            assert len(talk.messages) == 4
        client.refresh()
        assert {record.peer for record in client.book} == {node.peer for node in swarm_of_two.nodes}
        assert client.plan_route().hops


class Person:
    """Somebody at a terminal: a pseudo-terminal that is the controlling one of a process."""

    program: ClassVar[tuple[str, ...]] = ("-m", "swarm")

    def __init__(self, *args: str, home: Path, **environment: str) -> None:
        code = (
            "import os, sys; os.open(os.ttyname(0), os.O_RDWR);"  # a session's first terminal controls it
            "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        )
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *self.program, *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "SWARM_HOME": str(home), "TERM": "xterm", "COLUMNS": "120", **environment},
        )
        os.close(slave)
        self._seen = ""

    def types(self, keys: str | bytes) -> None:
        os.write(self._master, keys.encode() if isinstance(keys, str) else keys)

    def sees(self, pattern: str, within_s: float = 60.0) -> str:
        """Read until the pattern is on the screen; what stood before it is forgotten."""
        deadline = time.monotonic() + within_s
        while not (match := re.search(pattern, self._seen)):
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} never came; on the screen: {self._seen!r}"
            try:
                data = os.read(self._master, 4096)
            except OSError:  # the other side has closed
                data = b""
            assert data, f"{pattern!r} never came before the end: {self._seen!r}"
            self._seen += data.decode(errors="replace")
        seen, self._seen = self._seen[: match.end()], self._seen[match.end() :]
        return seen

    def ends(self) -> str:
        """What is still written until the process closes the terminal."""
        with contextlib.suppress(OSError):
            while data := os.read(self._master, 4096):
                self._seen += data.decode(errors="replace")
        return self._seen

    def leaves(self, within_s: float = 20.0) -> int:
        try:
            return self.process.wait(within_s)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self._master)


def test_ctrl_c_stops_the_answer_not_the_chat(join: list[str], tmp_path: Path) -> None:
    """In mid-answer, at the prompt, and then Ctrl-D leaves with status 0; no colour where none is wanted."""
    person = Person("chat", *join, home=tmp_path, NO_COLOR="1")
    try:
        person.sees(r"tiny · 8 layers on 2 nodes")
        person.sees(r"> ")
        person.types("Count from 3 to 90.\r")
        person.sees(r"\b6, 7")
        person.types("\x03")
        assert "89, 90" not in person.sees(r"stopped")
        person.sees(r"> ")
        person.types("What is 12 + 30?\r")
        assert re.search(r"\x1b\[[0-9;]*3[0-9]m", person.sees(r"= 42[^>]*> ")) is None
        person.types("half a li\x03")
        person.sees(r"Ctrl-D or /quit leaves")
        person.sees(r"> ")
        person.types("/help\r")
        person.sees(r"/reset")
        person.sees(r"> ")
        person.types("\x04")
    finally:
        status = person.leaves()
    assert status == 0


def test_ctrl_c_ends_generate_with_130(join: list[str], tmp_path: Path) -> None:
    """What there was of the answer stands."""
    person = Person("generate", "Count from 3 to 40.", *join, home=tmp_path)
    try:
        person.sees(r"\b6, 7")
        person.types("\x03")
    finally:
        status = person.leaves()
    assert status == 130


def test_the_demo_survives_kill_9(tmp_path: Path) -> None:
    """A node dies in mid-answer, the reroute is shown, the answer is right; no process and no folder stays."""
    done = run_afresh("demo", "--kill", home=tmp_path, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    numbers = ", ".join(map(str, range(3, 41)))
    assert numbers in done.stdout
    for sight in ("kill -9", "lost node", "1 reroute", "with a node lost on the way"):
        assert sight in done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("swarm-demo")] == []


def test_a_demo_of_any_checkpoint_survives_kill_9(tmp_path: Path) -> None:
    """A GGUF file of a hub: with the node killed in mid-answer the text is that which came undisturbed."""
    shipped = shipped_model()
    (tmp_path / "repository").mkdir()
    convert(
        shipped,
        tmp_path / "repository" / "some.gguf",
        as_q8_0,
        tokenizer__chat_template=(shipped / "chat_template.jinja").read_text(),
        tokenizer__ggml__bos_token_id=1,
        tokenizer__ggml__eos_token_id=4,
    )
    question = "Count from 3 to 40."
    words = ("--kill", "--nodes", "3", "--quant", "int8", "--prompt", question)
    with serving(tmp_path / "repository") as hub:
        here = {**hub.environment, "HF_HOME": str(tmp_path / "hub"), "TMPDIR": str(tmp_path)}
        done = run_afresh("demo", REPOSITORY, *words, home=tmp_path, **here)
    assert done.returncode == 0, done.stderr
    _, once, again = done.stdout.split(f"> {question}\n")
    assert once.strip()
    assert once == again
    for sight in ("layers of some in int8", "kill -9", "lost node", "a node was lost in this one"):
        assert sight in done.stderr


def test_a_demo_that_is_itself_killed_leaves_no_node(tmp_path: Path) -> None:
    """kill -9 of the demo: its nodes notice and leave."""
    demo = subprocess.Popen(
        [sys.executable, "-m", "swarm", "demo", "--nodes", "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path), "SWARM_HOME": str(tmp_path)},
    )
    try:
        block_until(lambda: len(_children(demo.pid)) == 2, 60)
        nodes = _children(demo.pid)
        demo.send_signal(signal.SIGKILL)
        demo.wait()
        block_until(lambda: not any(_alive(pid) for pid in nodes), 60)
    finally:
        demo.kill()
        demo.wait()


def test_ctrl_c_ends_a_watch(join: list[str], tmp_path: Path) -> None:
    """With status 130 and no word more."""
    person = Person("status", "--watch", *join, home=tmp_path)
    try:
        person.sees(r"nodes (.|\n)*nodes ")
        person.types("\x03")
        seen = person.ends()
    finally:
        status = person.leaves()
    assert status == 130
    assert "Traceback" not in seen


def test_ctrl_c_while_the_demo_starts(tmp_path: Path) -> None:
    """Status 130; no node and no folder stays."""
    person = Person("demo", home=tmp_path, TMPDIR=str(tmp_path))
    try:
        person.sees("node 4")
        nodes = _children(person.process.pid)
        person.types("\x03")
    finally:
        status = person.leaves()
    assert (status, len(nodes)) == (130, 4)
    assert not any(_alive(pid) for pid in nodes)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("swarm-demo")] == []


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()] if found.exists() else []


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
