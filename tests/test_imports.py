"""The rules of import: each package knows only what it is meant to know. Held by walking the syntax trees."""

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent

FORMATS = frozenset({"msgpack", "cryptography", "numpy", "base58"})
TRANSPORT = frozenset({"libp2p", "aioquic", "trio", "multiaddr", "multihash", "cid", "google"})
DAEMON = frozenset({"trio", "numpy", "msgpack", "cryptography", "base58", "platformdirs", "psutil"})
ENGINE = frozenset({"torch", "transformers", "safetensors", "huggingface_hub", "tokenizers"})
CLIENT = frozenset({"trio", "typer", "rich", "numpy", "tokenizers", "jinja2", "platformdirs", "msgpack"})
CLI = CLIENT | {"prompt_toolkit"}
HTTP = frozenset({"trio", "fastapi", "starlette", "pydantic", "uvicorn", "h11", "prometheus_client"})


@dataclass(frozen=True)
class Rule:
    """What the files under `where` (a folder or one file) may import beside the stdlib."""

    where: PurePosixPath
    allowed: frozenset[str]


@dataclass(frozen=True)
class Room:
    """What the modules of a folder may import of ours beside one another: modules or folders, by dotted name."""

    where: str
    beside: tuple[str, ...]


# The longest `where` that contains a file is the one that holds for it.
RULES = [
    Rule(PurePosixPath("protocol"), FORMATS | {"protocol"}),
    Rule(PurePosixPath("protocol/talk"), frozenset({"trio", "protocol"})),
    Rule(PurePosixPath("protocol/transport"), FORMATS | TRANSPORT | {"protocol"}),
    Rule(PurePosixPath("node"), DAEMON | {"protocol", "node"}),
    Rule(PurePosixPath("node/metrics.py"), DAEMON | {"prometheus_client", "protocol", "node"}),
    # No torch, no transformers: what a small machine can serve with.
    Rule(PurePosixPath("node/native"), frozenset({"numpy", "psutil", "protocol", "node"})),
    Rule(PurePosixPath("node/formats"), frozenset({"numpy", "protocol", "node"})),
    Rule(PurePosixPath("node/engine"), DAEMON | ENGINE | {"protocol", "node"}),
    Rule(PurePosixPath("swarm"), CLIENT | {"protocol", "swarm"}),
    # In a process of its own, where there may be no such library.
    Rule(PurePosixPath("swarm/text/mask_worker.py"), frozenset({"llguidance", "protocol", "swarm"})),
    # For those who have transformers anyway.
    Rule(PurePosixPath("swarm/hf"), CLIENT | {"torch", "transformers", "protocol", "swarm"}),
    Rule(PurePosixPath("swarm/http"), HTTP | {"protocol", "swarm"}),
    Rule(PurePosixPath("swarm/cli"), CLI | {"protocol", "swarm"}),
    # The one bridge: it starts the daemon and the ends that run on the client's own machine.
    Rule(PurePosixPath("swarm/cli/local.py"), CLI | {"protocol", "swarm", "node"}),
]


# The room of a module is the longest `where` that its name begins with. In "protocol." the dot at the end stands for
# the modules of that folder alone, without those of its inner folders.
ROOMS = [
    Room(
        "protocol",
        tuple(
            f"protocol.transport.{name}" for name in ("addresses", "base", "dialling", "origin", "peer_id")
        ),
    ),
    Room("protocol.transport", ("protocol.errors", "protocol.keys")),
    Room("protocol.talk", ("protocol.", "protocol.transport")),
    Room("node", ("node", "protocol")),
    Room("node.compute", ("protocol.",)),
    Room(
        "node.engine",
        (
            "node.compute.casting",
            "node.compute.inputs",
            "node.compute.interfaces",
            "node.compute.kv",
            "node.formats",
            "node.native.kernel",
            "node.native.load",
            "node.native.packed",
            "node.native.precision",
            "node.memory",
            "protocol.",
        ),
    ),
    Room(
        "node.native",
        (
            "node.compute.casting",
            "node.compute.inputs",
            "node.compute.interfaces",
            "node.engine.files",
            "node.engine.shards",
            "node.engine.sources",
            "node.formats",
            "node.memory",
            "protocol.",
        ),
    ),
    Room("node.formats", ("node.engine.files", "node.engine.shards", "node.native.fields", "protocol.")),
    # It hands out what the engines' own readers of files hand out.
    Room(
        "node.store",
        (
            "node.engine.files",
            "node.engine.shards",
            "node.engine.sources",
            "node.native.gguf.architectures",
            "node.native.gguf.quants",
            "node.native.tensors",
            "protocol.",
        ),
    ),
    Room("node.fetch", ("node.events", "node.store", "protocol.", "protocol.talk", "protocol.transport")),
    Room("node.hop", ("node.compute", "protocol.", "protocol.talk", "protocol.transport")),
    Room("node.presence", ("protocol.", "protocol.talk", "protocol.transport")),
    Room("swarm", ("protocol", "swarm.decoding", "swarm.routing", "swarm.session", "swarm.text")),
    Room("swarm.decoding", ("protocol.",)),
    Room("swarm.text", ("protocol.", "protocol.talk", "protocol.transport")),
    Room("swarm.routing", ("swarm.events", "protocol.", "protocol.talk", "protocol.transport")),
    Room(
        "swarm.session", ("swarm.events", "swarm.routing", "protocol.", "protocol.talk", "protocol.transport")
    ),
    Room(
        "swarm.http",
        ("protocol.", "swarm.", "swarm.decoding", "swarm.routing", "swarm.session", "swarm.text"),
    ),
    Room("swarm.hf", ("protocol.", "swarm.", "swarm.decoding")),
    Room("swarm.cli", ("node", "protocol", "swarm")),
    Room("swarm.__main__", ("swarm.cli",)),
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


def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name, packages included."""
    found = {}
    for package in ("protocol", "node", "swarm"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_modules(source: str, known: Collection[str]) -> set[str]:
    """The modules of `known` that `source` names in its imports; `from package import module` names the module."""
    found = set()
    for statement in ast.walk(ast.parse(source)):
        match statement:
            case ast.Import(names=names):
                found |= {alias.name for alias in names}
            case ast.ImportFrom(module=str(module), level=0, names=names):
                inner = {f"{module}.{alias.name}" for alias in names} & set(known)
                found |= inner
                if len(inner) < len(names):
                    found.add(module)
    return found & set(known)


def room_of(module: str) -> Room:
    """The room that `module` is in."""
    return max((r for r in ROOMS if f"{module}.".startswith(f"{r.where}.")), key=lambda r: len(r.where))


def may_import(module: str, other: str) -> bool:
    """Whether the room of `module` lets it import `other`."""
    room = room_of(module)
    if room_of(other) is room:
        return True
    for name in room.beside:
        if name.endswith("."):
            if other.startswith(name) and "." not in other.removeprefix(name):
                return True
        elif f"{other}.".startswith(f"{name}."):
            return True
    return False


def circles(graph: Mapping[str, Collection[str]]) -> list[set[str]]:
    """The sets of modules that import one another, directly or not."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        ahead = list(graph[start])
        while ahead:
            module = ahead.pop()
            if module not in seen:
                seen.add(module)
                ahead += graph[module]
        reached[start] = seen
    found: list[set[str]] = []
    for module in graph:
        circle = {other for other in reached[module] if module in reached[other]}
        if circle and circle not in found:
            found.append(circle)
    return found


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
        ("node/serve.py", "import swarm.routing.route"),
        ("node/compute/kv.py", "from torch import nn"),
        ("node/native/engine.py", "import torch"),
        ("swarm/routing/route.py", "import node"),
        ("swarm/portal.py", "import prompt_toolkit"),
        ("swarm/portal.py", "import fastapi"),
        ("swarm/streamers.py", "import transformers"),
        ("swarm/http/serve.py", "import rich.text"),
        ("swarm/cli/chat.py", "from node import daemon"),
        ("swarm/session/session.py", "import importlib\nimportlib.import_module('node.daemon')"),
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
        ("swarm/cli/editor.py", "from prompt_toolkit.keys import Keys"),
    ],
)
def test_an_allowed_import_passes(path: str, source: str) -> None:
    """The checker itself: relative imports and the named exceptions are no offence."""
    assert offences(PurePosixPath(path), source) == []


def test_the_rooms_keep_to_themselves() -> None:
    """Every module imports only what its room may; and no module imports itself by way of others."""
    known = modules()
    graph = {name: imported_modules(path.read_text("utf-8"), known) for name, path in known.items()}
    offences = [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in sorted(others)
        if not may_import(module, other)
    ]
    assert not offences, "\n" + "\n".join(offences)
    assert not circles(graph)


@pytest.mark.parametrize(
    ("module", "other", "may"),
    [
        ("protocol.transport.quic.stream", "protocol.transport.base", True),
        ("protocol.transport.base", "protocol.messages", False),
        ("protocol.codec", "protocol.talk.channel", False),
        ("node.hop.session", "node.presence.gossip", False),
        ("node.engine.span", "node.compute.loop", False),
        ("swarm.session.mender", "swarm.routing.view", True),
        ("swarm.routing.view", "swarm.session.session", False),
        ("swarm.text.text", "swarm.events", False),
        ("swarm.client", "swarm.cli.words", False),
        ("swarm.http.serve", "swarm.cli.words", False),
        ("swarm.client", "swarm.http.pool", False),
    ],
)
def test_a_room_is_told_from_its_neighbours(module: str, other: str, may: bool) -> None:
    """The checker itself: what a room may import and what it may not."""
    assert may_import(module, other) is may


def test_a_circle_is_found() -> None:
    """The checker itself: modules that import one another are named together, what they use is not."""
    source = "from a import b, name\nimport c"
    assert imported_modules(source, {"a", "a.b", "c", "d"}) == {"a", "a.b", "c"}
    assert circles({"a": ["b"], "b": ["c"], "c": ["a", "d"], "d": []}) == [{"a", "b", "c"}]


def test_the_client_loads_without_torch() -> None:
    """Importing all of the client and of the command line loads neither torch nor transformers."""
    program = (
        "import sys, swarm, swarm.cli.app; [getattr(swarm, name) for name in swarm.__all__]; "
        "swarm.cli.app.app_of(*swarm.cli.app.COMMANDS); "
        "print(*sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
