"""Real clients, unmodified, each in an environment of its own, against a real swarm behind `swarm serve`.

    python scripts/clients/run.py FOLDER [NAME...]

FOLDER keeps the environments. Prints each client with its version, which its program names, and what went wrong. The
swarm serves the shipped model with a chat template that knows tools.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.support.local_swarm import LocalSwarm  # noqa: E402
from tests.support.processes import Processes  # noqa: E402
from tests.support.tooled import tooled_model  # noqa: E402

PROGRAMS = Path(__file__).with_name("programs")
ASKED, EXPECTED = "What is the capital of France?", "Paris"


@contextmanager
def served() -> Iterator[str]:
    """Three nodes of the shipped model behind an API; its address."""
    with tempfile.TemporaryDirectory() as folder, Processes() as processes:
        model = tooled_model(Path(folder))
        nodes = LocalSwarm(processes, model, Path(folder), extra=["--kv-tokens", "8192"])
        nodes.start("0:3", "3:6", "6:8")
        command = [sys.executable, "-m", "swarm", "serve", "--join", nodes.join, "--port", "0"]
        server = processes.start(command, env={"SWARM_HOME": folder}, name="serve")
        url = server.wait_for(address_in, "its address", 30)
        subprocess.run(
            ["curl", "-sf", "--retry", "20", "--retry-all-errors", f"{url}/ready"],
            check=True,
            capture_output=True,
        )
        yield url


def address_in(line: str) -> str | None:
    """The address in what a server says of itself."""
    return line.split()[2] if line.startswith("listening at ") else None


def environment(folder: Path, needs: str) -> Path:
    """The Python of an environment that has a client, of that version."""
    python = folder / needs / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", needs], check=True)
    return python


def main() -> int:
    """Try them; how many failed."""
    folder, names = Path(sys.argv[1]).resolve(), sys.argv[2:]
    programs = [path for path in sorted(PROGRAMS.iterdir()) if not names or path.stem in names]
    failed = 0
    with served() as url:
        for path in programs:
            name, command = prepared(folder, path)
            done = subprocess.run(
                [*command, path.resolve(), url, "tiny", ASKED, EXPECTED],
                capture_output=True,
                text=True,
                check=False,
                cwd=folder,
            )
            failed += done.returncode != 0
            print(f"{name}: {'works' if done.returncode == 0 else 'fails'}", flush=True)
            if done.returncode:
                print(done.stdout + done.stderr)
    return failed


def prepared(folder: Path, program: Path) -> tuple[str, list[str | Path]]:
    """A client with its version, and what runs its program."""
    if program.suffix == ".sh":
        told = subprocess.run(["curl", "--version"], check=True, capture_output=True, text=True).stdout
        return " ".join(told.split()[:2]), ["bash"]
    needs = program.read_text().splitlines()[0].removeprefix("# needs: ")
    python = environment(folder, needs)
    return needs.replace("==", " "), [python, "-P"]


if __name__ == "__main__":
    sys.exit(main())
