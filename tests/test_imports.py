"""The rules of import: each package knows only what it is meant to know. Held by walking the syntax trees."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent

FORMATS = frozenset({"msgpack", "cryptography", "numpy", "base58"})
TRANSPORT = frozenset({"libp2p", "aioquic", "trio", "multiaddr", "multihash", "cid", "google"})
DAEMON = frozenset({"trio", "numpy", "msgpack", "cryptography", "base58", "platformdirs", "psutil"})
ENGINE = frozenset({"torch", "transformers", "safetensors", "huggingface_hub", "tokenizers"})
CLIENT = frozenset({"trio", "typer", "rich", "numpy", "tokenizers", "jinja2", "platformdirs", "msgpack"})


@dataclass(frozen=True)
class Rule:
    """What the files under `where` (a folder or one file) may import beside the stdlib."""

    where: PurePosixPath
    allowed: frozenset[str]


# The longest `where` that contains a file is the one that holds for it.
RULES = [
    Rule(PurePosixPath("protocol"), FORMATS | {"protocol"}),
    Rule(PurePosixPath("protocol/transport"), FORMATS | TRANSPORT | {"protocol"}),
    Rule(PurePosixPath("node"), DAEMON | {"protocol", "node"}),
    Rule(PurePosixPath("node/engine"), DAEMON | ENGINE | {"protocol", "node"}),
    Rule(PurePosixPath("swarm"), CLIENT | {"protocol", "swarm"}),
    # The one bridge: it starts the daemon and the ends that run on the client's own machine.
    Rule(PurePosixPath("swarm/cli/local.py"), CLIENT | {"protocol", "swarm", "node"}),
]


def rule_for(path: PurePosixPath) -> Rule:
    """The most specific rule that covers `path`."""
    return max((r for r in RULES if path.is_relative_to(r.where)), key=lambda r: len(r.where.parts))


def imported(tree: ast.AST, package: PurePosixPath) -> Iterator[tuple[int, str]]:
    """(line, top-level name) of every import, also inside functions and `if TYPE_CHECKING`."""
    for statement in ast.walk(tree):
        match statement:
            case ast.Import(names=names):
                for alias in names:
                    yield statement.lineno, alias.name.partition(".")[0]
            case ast.ImportFrom(module=module, level=0):
                yield statement.lineno, (module or "").partition(".")[0]
            case ast.ImportFrom():
                yield statement.lineno, package.parts[0]
            case ast.Call(
                func=ast.Name("__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield statement.lineno, name.partition(".")[0]


def offences(path: PurePosixPath, source: str) -> list[str]:
    """`file:line: ...` for each import in `source` that the rule for `path` does not allow."""
    rule = rule_for(path)
    return [
        f"{path}:{line}: imports {name}, which {rule.where}{'' if rule.where.suffix else '/'} may not"
        for line, name in imported(ast.parse(source), path.parent)
        if name not in rule.allowed and name not in sys.stdlib_module_names
    ]


def sources(package: str) -> list[PurePosixPath]:
    """Every Python file of a package, relative to the root."""
    return [PurePosixPath(p.relative_to(ROOT).as_posix()) for p in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("package", ["protocol", "node", "swarm"])
def test_packages_import_only_what_they_may(package: str) -> None:
    """Every import in the package is the stdlib's or one that the package's rule names."""
    found = [text for path in sources(package) for text in offences(path, (ROOT / path).read_text("utf-8"))]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("protocol/codec.py", "import trio"),
        ("protocol/codec.py", "def f():\n    from node.engine import loader"),
        ("node/serve.py", "import swarm.route"),
        ("node/kv.py", "from torch import nn"),
        ("swarm/route.py", "import node"),
        ("swarm/cli/chat.py", "from node import daemon"),
        ("swarm/session.py", "import importlib\nimportlib.import_module('node.daemon')"),
    ],
)
def test_a_forbidden_import_is_found(path: str, source: str) -> None:
    """The checker itself: a file that breaks a rule is named with its line."""
    (text,) = offences(PurePosixPath(path), source)
    assert text.startswith(f"{path}:{source.count(chr(10)) + 1}: ")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("protocol/codec.py", "import msgpack, struct"),
        ("protocol/transport/quic/endpoint.py", "import trio\nfrom aioquic.quic import connection"),
        ("node/engine/loader.py", "import torch\nfrom . import model\nfrom ..kv import Pages"),
        ("swarm/cli/local.py", "from node import daemon"),
    ],
)
def test_an_allowed_import_passes(path: str, source: str) -> None:
    """The checker itself: relative imports and the named exceptions are no offence."""
    assert offences(PurePosixPath(path), source) == []


def test_the_client_loads_without_torch() -> None:
    """Importing the client, command line included, loads neither torch nor transformers."""
    names = ["protocol", "swarm", *(["swarm.cli"] if (ROOT / "swarm/cli").exists() else [])]
    program = (
        f"import sys, {', '.join(names)}; print(*sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
