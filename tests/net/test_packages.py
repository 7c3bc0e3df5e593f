"""What the packages start, started here: the commands of compose.yaml and of the service, without a container."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from swarm.cli.app import COMMANDS, app_of
from swarm.cli.demo_nodes import shipped_model
from swarm.cli.local_nodes import free_port
from tests.support.forge import Forge
from tests.support.local_swarm import wait_for_news
from tests.support.processes import Processes
from tests.support.waiting import block_until

ROOT = Path(__file__).parents[2]
NODES = ("first", "begin", "end")


def services() -> dict[str, Any]:
    """Of compose.yaml."""
    yaml = importlib.import_module("yaml")  # which has no types
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]
    return found


def here(line: str, home: Path, ports: dict[str, int], name: str) -> str:
    """A line of a container as one of this machine, where all share the ports."""
    line = line.replace("/dns4/first/udp/4001/", f"/ip4/127.0.0.1/udp/{ports['first']}/")
    line = line.replace("/ip4/0.0.0.0/udp/4001/", f"/ip4/127.0.0.1/udp/{ports.get(name)}/")
    line = line.replace("--metrics 9464", "--metrics 0").replace("$$MODEL", str(shipped_model()))
    if (home / "door").exists():
        line = line.replace("$$(cat /data/door)", (home / "door").read_text())
    return line.replace("--host 0.0.0.0 --no-key", "--port 0").replace("/data", str(home))


@pytest.mark.net
def test_compose_starts_a_swarm_with_the_page(forge: Forge, tmp_path: Path) -> None:
    """Three nodes, of which two have their weights from the first, and the API over them."""
    found, ports = services(), {name: free_port() for name in NODES}
    exec(here(found["keys"]["command"][0], tmp_path, ports, "keys"), {})
    with Processes(launch=forge.start) as processes:

        def start(name: str, *more: str) -> Any:
            words = shlex.split(here(found[name]["command"][0], tmp_path, ports, name))
            assert words[:2] == ["exec", "swarm"]
            command = ["python", "-m", "swarm", *words[2:], *more]
            return processes.start(command, env={"SWARM_HOME": str(tmp_path)}, name=name)

        for name in NODES:
            assert name == "first" or found[name]["depends_on"] == {"first": {"condition": "service_healthy"}}
            wait_for_news(start(name, "--json"), "ready")
        server = start("api")
        url = server.wait_for_line(r"^listening at (http\S+)", 30)[1]
        block_until(lambda: httpx.get(f"{url}/health").json()["complete"], 30)
        body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
        assert "Paris" in httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30).text


def test_every_option_of_the_packages_is_one() -> None:
    """Those of the image, of compose.yaml, of the service, and of the document that tells of them."""
    files = ("Dockerfile", "compose.yaml", "docs/systemd/swarm-node.service", "docs/install.md")
    text = "\n".join((ROOT / name).read_text("utf-8") for name in files)
    text = re.sub(r'", "', " ", text).replace('["', "swarm ").replace("\\\n", " ")
    used = set(re.findall(r"\bswarm (\w+)((?: [^\n|#`]*)?)", text))
    looked = 0
    for command, rest in used:
        if command not in COMMANDS:
            continue
        helped = CliRunner().invoke(app_of(command), [command, "--help"], env={"COLUMNS": "200"}).output
        for option in re.findall(r"(?<=\s)--[a-z-]+", rest):
            assert option in helped, (command, option)
            looked += 1
    assert looked > 10
