"""What a user sees who asks for help, or for what cannot be. Nothing here starts a node or enters a swarm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from protocol.errors import ConfigError
from swarm.cli import local
from swarm.cli.app import COMMANDS, app_of, main
from swarm.cli.node_options import parse_layers, parse_size
from tests.support.commands import run, run_afresh

NOBODY = "/ip4/127.0.0.1/udp/9/quic-v1/p2p/12D3KooWL6mTvFXi9JSMNbz6Q1PG2sgCYaqje8mdbLGWmYpXG3Vk"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(command: str) -> None:
    """Every command shows at least one command line."""
    result = CliRunner().invoke(app_of(*COMMANDS), [command, "--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    assert any(f"swarm {command} {begins}" in result.output for begins in ("-", '"', "bash"))


def test_the_first_help_has_the_recipe_for_two_machines() -> None:
    """Without arguments too."""
    for args in ([], ["--help"], ["-h"]):
        result = CliRunner().invoke(app_of(*COMMANDS), args, env={"COLUMNS": "120"})
        for line in (
            "swarm demo",
            "swarm node --layers 16:32 --join ADDRESS",
            "swarm chat --join ADDRESS",
        ):
            assert line in result.output


def test_the_client_does_not_load_torch(tmp_path: Path) -> None:
    """Importing the command line takes no part of the node and no libp2p."""
    code = (
        "import sys, swarm.cli.app, swarm.blocking\n"
        "swarm.cli.app.app_of(*swarm.cli.app.COMMANDS)\n"
        "print([m for m in ('torch', 'transformers', 'node', 'libp2p') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("typed", "completes"),
    [("swarm s", "serve\nstatus\n"), ("swarm chat --temp", "--temperature\n"), ("swarm nonsense --te", "")],
)
def test_a_shell_completes(typed: str, completes: str, tmp_path: Path) -> None:
    """Commands and their options; only the module of the command that is being typed is imported."""
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" ")), "_SWARM_COMPLETE": "complete_bash"}
    done = run_afresh(home=tmp_path, **words)
    assert (done.returncode, done.stdout, done.stderr) == (0, completes or "\n", "")
    if "chat" not in typed:
        looked = run_afresh(home=tmp_path, PYTHONPROFILEIMPORTTIME="1", **words)
        assert "swarm.cli.app" in looked.stderr
        assert "swarm.client" not in looked.stderr


def test_the_completion_of_each_shell(tmp_path: Path) -> None:
    """Bash at least takes its own."""
    for shell in ("bash", "zsh", "fish"):
        done = run("completion", shell, home=tmp_path)
        assert "_SWARM_COMPLETE=complete_" + shell in done.stdout
        if shell == "bash":
            subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)


def test_version(tmp_path: Path) -> None:
    """One line."""
    done = run_afresh("--version", home=tmp_path)
    assert (done.returncode, done.stdout.split()[0]) == (0, "inference-swarm")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["chat"], "--join"),
        (["status", "--join", "nonsense"], "nonsense"),
        (["status", "--join", NOBODY, "--precision", "int9"], "any, exact, or some of f32"),
        (["generate", "hi", "--join", NOBODY, "--precision", "q3/9"], "any, exact, or some of f32"),
        (["generate", "hi", "--temperature", "-1"], "temperature"),
        (["generate", "hi", "--top-p", "7"], "top_p"),
        (["generate", "", "--join", NOBODY], "empty"),
        (["generate", "-", "--join", NOBODY], "empty"),
        (["generate", "--join", NOBODY], "--prompts"),
        (["generate", "hi", "--prompts", "x", "--join", NOBODY], "not both"),
        (["generate", "--prompts", "/nowhere", "--join", NOBODY], "/nowhere"),
        (["generate", "a", "b", "--at-once", "0", "--join", NOBODY], "at_once 0"),
        (["serve", "--host", "0.0.0.0", "--join", NOBODY], "SWARM_API_KEY"),
        (["serve", "--key-file", "/nowhere", "--join", NOBODY], "key file"),
        (["serve", "--allow-origin", "chat.example", "--join", NOBODY], "--allow-origin"),
        (["serve", "--host", "192.0.2.1", "--no-key", "--join", NOBODY], "192.0.2.1"),
        (["node", "--model", "x", "--layers", "8"], "0:8"),
        (["node", "--model", "x", "--layers", "3:3"], "0:8"),
        (["node", "--model", "x", "--max-memory", "lots"], "6G"),
        (["node", "--model", "x", "--dtype", "f8"], "f8"),
        (["node", "--model", "x", "--quant", "int3"], "int8, int4"),
        (["node", "--model", "x", "--engine", "abacus"], "native, torch"),
        (["node", "--model", "x", "--join", "nonsense"], "nonsense"),
        (["node"], "or join a swarm that serves one"),
        (["node", "--join", NOBODY, "--weights", "abc"], "32 to 64 digits"),
        (["node", "--join", NOBODY, "--upload", "fast"], "upload 'fast'"),
        (["node", "--join", NOBODY, "--upload", "0"], "upload 0"),
        (["node", "--join", NOBODY, "--cache-size", "much"], "cache size 'much'"),
        (["models", "rm"], "`swarm models` lists them"),
        (["models", "rm", "nothing"], "no model 'nothing' is kept here"),
        (["models", "eat", "x"], "rm NAME"),
        (["demo", "--kill", "--nodes", "1"], "2 nodes"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_one_line_and_status_2(args: list[str], says: str, tmp_path: Path) -> None:
    """On standard error, with what to do instead; no traceback."""
    done = run(*args, home=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


@pytest.mark.parametrize(
    "args", [["--nonsense"], ["nonsense"], ["generate"], ["demo", "--nodes", "0"]], ids=" ".join
)
def test_wrong_usage_is_status_2(args: list[str], tmp_path: Path) -> None:
    """With a pointer to the help."""
    done = run(*args, home=tmp_path)
    assert done.returncode == 2
    assert "--help" in done.stderr


def test_weights_that_are_no_digest_are_refused_at_once(tmp_path: Path) -> None:
    """Before anybody is asked: one line, status 2."""
    done = run("generate", "hi", "--weights", "1234", "--join", NOBODY, home=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "32 to 64 digits" in done.stderr


def test_a_failure_is_one_line_and_status_1(tmp_path: Path) -> None:
    """Nobody at the address; a traceback only with -vv."""
    done = run("generate", "hi", "--join", NOBODY, home=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no node answers")
    assert done.stderr.count("\n") == 1
    assert "Traceback" in run("generate", "hi", "--join", NOBODY, "-vv", home=tmp_path).stderr


def test_addresses_are_taken_from_the_environment_and_from_memory(tmp_path: Path) -> None:
    """SWARM_JOIN names the swarm; what is only remembered and gone is told as such."""
    done = run("status", home=tmp_path, SWARM_JOIN=NOBODY)
    assert (done.returncode, "port 9" in done.stderr) == (1, True)
    (tmp_path / "joined.json").write_text(f'{{"join": ["{NOBODY}"]}}')
    done = run("status", home=tmp_path)
    assert done.returncode == 1
    assert "entered last (1 address tried)" in done.stderr


def test_without_what_a_node_needs_a_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with the command to run."""
    monkeypatch.setattr(local, "_NEEDED", ("psutil_that_is_not_there",))
    for call in (lambda: local.serve({"model": "x"}, print), lambda: local.load_ends("x")):
        with pytest.raises(ConfigError, match=r'pip install "inference-swarm\[node\]"'):
            call()


@pytest.mark.parametrize(
    "interrupt",
    [KeyboardInterrupt(), BaseExceptionGroup("", [BaseExceptionGroup("", [KeyboardInterrupt()]), OSError()])],
    ids=["bare", "wrapped"],
)
def test_ctrl_c_is_status_130(
    interrupt: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From anywhere in a command, also out of nurseries; and not a word about it."""

    def interrupted(*_: object) -> None:
        raise interrupt

    monkeypatch.setattr(local, "serve", interrupted)
    monkeypatch.setattr(sys, "argv", ["swarm", "node", "--model", "x"])
    assert main() == 130
    assert capsys.readouterr().err == ""


def test_a_bug_is_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It says whose fault it is and how to see more."""

    def broken(*_: object) -> None:
        raise ExceptionGroup("wrapped", [ZeroDivisionError("oops")])

    monkeypatch.setattr(local, "serve", broken)
    monkeypatch.setattr(sys, "argv", ["swarm", "node", "--model", "x"])
    assert main() == 1
    assert "a bug of ours: ZeroDivisionError: oops" in " ".join(capsys.readouterr().err.split())


def test_layers_and_sizes() -> None:
    """The forms that are taken."""
    assert (parse_layers(None), parse_layers("0:8")) == (None, (0, 8))
    assert [parse_size(text) for text in (None, "512", "6G", "1.5 GiB", "20mb")] == [
        None, 512, 6 << 30, 3 << 29, 20 << 20,
    ]  # fmt: skip
    for text in ("", "x", "-1G", "1e9"):
        with pytest.raises(ConfigError):
            parse_size(text)
