"""`swarm ...` in a Python that finds no more than an installation has: python -m tests.support.bare EXTRAS ...

The extras have commas between them, and are "" for a client alone. What the tests need beside them is
installed here too; it is not found.
"""

from __future__ import annotations

import importlib.metadata
import sys
import tomllib
from collections.abc import Iterable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
OURS = {"protocol", "node", "swarm", "tests"}


def declared(extras: Iterable[str]) -> list[str]:
    """What the project asks for, itself and in these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [*project["dependencies"], *(name for e in extras for name in project["optional-dependencies"][e])]


def brought(requirements: Iterable[str]) -> set[str]:
    """The distributions that come with these, directly or not."""
    found: set[tuple[str, str]] = set()  # with the extra they are asked for with, or ""
    ahead = [Requirement(text) for text in requirements]
    while ahead:
        asked = ahead.pop()
        name = canonicalize_name(asked.name)
        for extra in {"", *asked.extras} - {extra for known, extra in found if known == name}:
            found.add((name, extra))
            inner = map(Requirement, importlib.metadata.requires(name) or ())
            ahead += [r for r in inner if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


def hidden(extras: Iterable[str]) -> set[str]:
    """The modules that are installed here and would not be there."""
    there = brought(declared(extras))
    modules = importlib.metadata.packages_distributions()
    return {
        module
        for module, names in modules.items()
        if module not in OURS and there.isdisjoint(map(canonicalize_name, names))
    }


def hide(modules: set[str]) -> None:
    """From now on nobody finds these."""

    class Finder(PathFinder):
        @classmethod
        def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
            if fullname.partition(".")[0] in modules:
                return None
            return super().find_spec(fullname, path, target)

    sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]


if __name__ == "__main__":
    gone = hidden(sys.argv[1].split(",") if sys.argv[1] else ())
    for name in [name for name in sys.modules if name.partition(".")[0] in gone]:
        del sys.modules[name]
    hide(gone)
    sys.argv = ["swarm", *sys.argv[2:]]
    from swarm.cli import main

    sys.exit(main())
