"""swarm.toml and the environment: what they say, what is refused, and what has the last word."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from protocol.errors import ConfigError
from swarm.cli import sources
from swarm.cli.answering import AnswerOptions, settings_of
from swarm.cli.app import COMMANDS, app_of
from swarm.cli.options import taking
from swarm.cli.origins import Rank
from swarm.cli.schema import TABLES, settings_in, shared_settings
from swarm.cli.schema import settings_of as settings_of_command
from swarm.cli.settings_file import HARMLESS, Document, parse_document
from swarm.cli.sources import configured, find_settings
from tests.support.commands import run

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "configuration.md").read_text()
[EXAMPLE] = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, an empty working folder beside it, and nothing in the environment."""
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("SWARM_HOME", str(tmp_path / "home"))
    for name in ("SWARM_JOIN", "SWARM_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def document(text: str, *, trusted: bool = True) -> Document:
    """A file of this text."""
    return Document("swarm.toml", text, Path("/etc/swarm"), trusted)


def test_the_example_is_true(home: Path) -> None:
    """All of it is taken, and makes what the document says of it."""
    (home / "swarm.toml").write_text(EXAMPLE)
    found = find_settings("chat", settings_of_command("chat"))
    assert found.values["model"] == "Qwen3-8B"
    assert found.values["strategy"] == "beam_search:beams=4,length_penalty=0.8"
    assert found.values["logit_bias"] == ["13=-2.5"]
    assert found.values["max_new_tokens"] == 1000
    assert find_settings("generate", settings_of_command("generate")).values["max_new_tokens"] == 400
    assert find_settings("serve", settings_of_command("serve")).values["key_file"] == str(home / "keys")
    node = find_settings("node", settings_of_command("node")).values
    assert (node["layers"], node["quant"], node["model"]) == ("0:16", "int8", "Qwen/Qwen3-8B")
    assert node["join"] == found.values["join"]


def test_the_document_names_what_holds_without_a_name() -> None:
    """What a file in the working folder may say is listed, and is what says how answers are made."""
    assert all(f"`{name}`" in DOCUMENT for name in HARMLESS)
    assert settings_of(AnswerOptions()).keys() >= HARMLESS
    assert {"chat", "node"} <= set(TABLES) <= set(COMMANDS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("temprature = 1", r"^swarm\.toml:1: .*'temprature': did you mean temperature\?$"),
        ("\n# x\nstop = '''\ntop_q = 1\n'''\n\ntop_q = 1", r":7: .*'top_q'"),
        ("[nodes]\nlayers = '0:8'", r":1: .*table \[node\]"),
        ("port = 80", r"belongs in .*\[serve\]"),
        ("[node]\nlayer = '0:8'", r":2: .*in \[node\]: did you mean layers"),
        ("temperature = '1'", r":1: temperature is a number, not '1'"),
        ("top_k = true", "a whole number, not True"),
        ("top_k = 1.5", "a whole number"),
        ("stream = 1", "true or false"),
        ("stop = [1.5]", "a list of texts"),
        ("stop = [['x']]", "a list of texts"),
        ("max_new_tokens = 0", r":1: max_new_tokens 0: it is at least 1"),
        ("[serve]\nport = 70000", "at most 65535"),
        ("model = 'a'\nexpert = 'b'", r":2: model is said twice"),
        ("temperature = 1" + "0" * 400, "a number, not 1000"),
        ("seed = 1" + "0" * 5000, "is not TOML"),
        ("strategy = 1979-13-01", "is not TOML"),
        ("strategy = 1979-12-01", "a text, not"),
        ("x = ", "is not TOML: Invalid value"),
        ("a = " + "[" * 5000, "is not TOML"),
        ("'a\\u001b[31m' = 1", "there is no setting"),
    ],
)
def test_faults_are_one_line_that_leads_there(text: str, says: str) -> None:
    """With the name that may have been meant."""
    with pytest.raises(ConfigError, match=says) as caught:
        parse_document(document(text))
    assert str(caught.value).isprintable()


def test_paths_begin_at_the_file_and_names_are_left() -> None:
    """Also of models, where they look like paths."""
    said = parse_document(
        document(
            "expert = './big'\namateur = 'small'\n[node]\nhome = 'key'\ncache_dir = '~nobody-of-that-name/x'"
        )
    )
    assert said.shared == {"model": "/etc/swarm/big", "amateur": "small"}
    assert said.tables == {
        "node": {"home": "/etc/swarm/key", "cache_dir": "/etc/swarm/~nobody-of-that-name/x"}
    }


@pytest.mark.parametrize("name", sorted({*shared_settings()} - HARMLESS))
def test_a_file_that_nobody_named_says_only_how_answers_are_made(name: str) -> None:
    """Not who gets the prompt, nor what is read, written or opened."""
    setting = shared_settings()[name]
    value = {bool: "true", int: "1", float: "1.0"}.get(setting.kind, '"x"')
    parse_document(document(f"{name} = {value}"))
    with pytest.raises(ConfigError, match="only found in the working folder"):
        parse_document(document(f"{name} = {value}", trusted=False))
    for text in ("[node]\nshare = true", "[serve]\nhost = '0.0.0.0'"):
        with pytest.raises(ConfigError, match=r"--config swarm\.toml"):
            parse_document(document(text, trusted=False))


def test_each_place_has_the_last_word_over_those_below(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's file, the folder's, variables, what is typed; a command's table over the top of the same file."""
    (home / "swarm.toml").write_text(
        "temperature = 0.1\ntop_k = 1\nseed = 1\nmin_p = 0.1\n[chat]\ntop_k = 11\nseed = 11\n[generate]\nseed = 99"
    )
    Path("swarm.toml").write_text("seed = 2\nmin_p = 0.2")
    monkeypatch.setenv("SWARM_MIN_P", "0.3")
    monkeypatch.setenv("SWARM_TOP_P", "0.3")
    monkeypatch.setenv("SWARM_CHAT_TOP_P", "0.4")
    seen: list[Any] = []

    def chat(options: AnswerOptions) -> None:
        seen.append(options)

    app = typer.Typer()
    app.command()(configured("chat", taking(AnswerOptions, chat)))
    typer.main.get_command(app)(["--typical-p", "0.5"], standalone_mode=False)
    [options] = seen
    assert (options.temperature, options.top_k, options.seed, options.min_p) == (0.1, 11, 2, 0.3)
    assert (options.top_p, options.typical_p) == (0.4, 0.5)
    ranks = {name: origin.rank for name, origin in options.origins.items() if origin.rank}
    assert ranks == {
        "temperature": Rank.FILE,
        "top_k": Rank.FILE,
        "seed": Rank.FOLDER,
        "min_p": Rank.ENVIRONMENT,
        "top_p": Rank.ENVIRONMENT,
        "typical_p": Rank.FLAG,
    }


def test_variables_are_read_by_the_kind_of_their_setting(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists at blanks and commas, but a text that ends an answer; what is none of its kind is named."""
    settings = {**settings_of_command("chat"), **settings_of_command("node")}
    for name, text, value in [
        ("SWARM_JOIN", "/a, /b", ["/a", "/b"]),
        ("SWARM_STOP", "the end", ["the end"]),
        ("SWARM_STREAM", "off", False),
        ("SWARM_EXPERT", "big", "big"),
    ]:
        monkeypatch.setenv(name, text)
        assert value in find_settings("chat", settings).values.values()
    node = find_settings("node", settings_of_command("node")).values
    assert node == {"join": ["/a", "/b"], "home": str(home)}
    for name, text in [("SWARM_TOP_K", "x"), ("SWARM_STREAM", "perhaps"), ("SWARM_MAX_NEW_TOKENS", "0")]:
        monkeypatch.setenv(name, text)
        with pytest.raises(ConfigError, match=f"^{name}: "):
            find_settings("chat", settings)
        monkeypatch.delenv(name)


def test_a_file_that_is_named_is_the_only_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And has to be there; `none` is no file. What is no text, or too much of it, is refused."""
    Path("swarm.toml").write_text("seed = 1")
    Path("other.toml").write_text("join = '/x'")
    settings = settings_of_command("chat")
    assert find_settings("chat", settings, "other.toml").values == {"join": ["/x"]}
    assert find_settings("chat", settings, "none").values == {}
    monkeypatch.setenv("SWARM_CONFIG", "swarm.toml")
    assert find_settings("chat", settings).values == {"seed": 1}
    Path("large.toml").write_bytes(b"#" * (sources._FILE_BYTES + 1))
    Path("bytes.toml").write_bytes(b"\xff")
    for name, says in [("gone", "cannot be read"), ("large.toml", "bytes"), ("bytes.toml", "cannot be read")]:
        with pytest.raises(ConfigError, match=says):
            find_settings("chat", settings, name)


def test_a_new_file_is_one_that_is_taken(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As it stands, and with every default said; one that is there stays."""
    group = typer.main.get_command(app_of("config", "plan"))
    group(["config", "init"], standalone_mode=False)
    written = (home / "swarm.toml").read_text()
    assert capsys.readouterr().out.strip() == str(home / "swarm.toml")
    assert parse_document(document(written)).shared == {}
    said = parse_document(document(re.sub(r"^#(?=\w+ = (?!0\.0$|0$))", "", written, flags=re.MULTILINE)))
    assert said.shared["max_new_tokens"] == 512
    assert said.tables["node"]["upload"] == "20M"
    with pytest.raises(ConfigError, match="there already"):
        group(["config", "init"], standalone_mode=False)


def test_it_is_told_where_each_value_came_from(tmp_path: Path) -> None:
    """As a table and as JSON, also of what a mode says; whoever asks for what there is not is told."""
    (tmp_path / "swarm.toml").write_text('mode = "focused"\ntop_p = 0.8\n')
    done = run("config", "show", "generate", "--json", home=tmp_path, SWARM_SEED="7")
    told = json.loads(done.stdout)
    path = str(tmp_path / "swarm.toml")
    assert told["files"] == [path]
    settings = {name: (each["value"], each["from"]) for name, each in told["settings"].items()}
    assert settings["seed"] == (7, "SWARM_SEED")
    assert settings["top_p"] == (0.8, path)
    assert settings["temperature"] == (0.3, f"mode focused, {path}")
    assert settings["max_new_tokens"] == (256, "default")
    assert "mode focused" in run("config", home=tmp_path).stdout
    for words in (["config", "show", "nothing"], ["config", "eat"]):
        done = run(*words, home=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_a_command_goes_by_the_file(tmp_path: Path) -> None:
    """Before it does anything else; a fault in it is one line and status 2."""
    (tmp_path / "swarm.toml").write_text('temperature = 0.5\n[generate]\nstrategy = "greedy"\n')
    done = run("generate", "hi", home=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "leave out temperature" in done.stderr
    (tmp_path / "swarm.toml").write_text("top_p = 7\n")
    done = run("generate", "hi", home=tmp_path)
    assert f"{tmp_path / 'swarm.toml'}: top_p 7.0: it is above 0" in done.stderr
    (tmp_path / "swarm.toml").write_text("[serve]\nprot = 1\n")
    done = run("status", home=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "swarm.toml:2: there is no setting 'prot' in [serve]: did you mean port?" in done.stderr


def test_a_node_learns_of_its_settings_without_a_client() -> None:
    """What stands for it in a file, it reads with its own modules."""
    program = (
        "import sys; from pathlib import Path; from swarm.cli.settings_file import Document, parse_document; "
        "parse_document(Document('x', 'join = \\'/a\\'\\n[node]\\nlayers = \\'0:1\\'', Path('/'), True)); "
        "print(*sorted({'swarm.client', 'swarm.cli.chat'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_what_is_called_a_file_is_a_path() -> None:
    """So that in a configuration it begins where that is."""

    def command(
        schema: Annotated[str | None, typer.Option(metavar="FILE")] = None,
        words: Annotated[list[str] | None, typer.Option()] = None,
        often: Annotated[int, typer.Option(min=1, max=9)] = 2,
    ) -> None:
        """Nothing."""

    found = {name: (each.kind, each.least, each.most) for name, each in settings_in(command).items()}
    assert found == {"schema": (Path, None, None), "words": (list, None, None), "often": (int, 1, 9)}


def test_every_option_can_be_said_in_a_file() -> None:
    """But those that are about one call; a kind of option that no file could say would fail here."""
    for name in TABLES:
        assert settings_of_command(name)
        assert not settings_of_command(name).keys() & {"as_json", "verbose", "prompt"}
