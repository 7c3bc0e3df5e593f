"""`swarm doctor`: what is wrong with this machine's part of a swarm, and the next step."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from typing import Final

import trio
import typer
from rich.text import Text

from protocol.errors import ConfigError, SwarmError
from protocol.plain import one_line
from swarm.cli import examine, findings
from swarm.cli.connection import working
from swarm.cli.findings import Finding
from swarm.cli.joined import Doors
from swarm.cli.options import Join, Json, Verbose
from swarm.cli.survey import Survey, enter
from swarm.cli.terminal import Terminal, open_terminal
from swarm.cli.words import count
from swarm.coverage import by_model

_MARKS: Final = {"ok": ("✓", "green"), "note": ("·", "yellow"), "wrong": ("✗", "bold red")}


def doctor(join: Join = None, as_json: Json = False, verbose: Verbose = 0) -> None:
    """Look at this machine and, by a node of it, at the swarm; say what is wrong and what to do about it.

    Status 0 if nothing is wrong, 1 otherwise. Without a swarm to ask, only this machine is looked at.

    ```
    swarm doctor --join ADDRESS
    swarm doctor --json | jq '.findings[] | select(.state == "wrong")'
    ```
    """
    terminal = open_terminal()
    doors = examine.doors(join)
    with working(terminal, "looking at this machine"):
        found = [*examine.machine()]
    with working(terminal, "asking the swarm"):
        found += trio.run(_of_swarm, doors) if doors is not None else [_NO_SWARM]
    if as_json:
        print(json.dumps(findings.summary(found)))
    else:
        for finding in found:
            _show(finding, terminal)
    if not findings.summary(found)["sound"]:
        raise typer.Exit(1)


_NO_SWARM: Final = Finding(
    "swarm", "note", "no swarm was asked: none is named or remembered", "swarm doctor --join ADDRESS"
)


async def _of_swarm(doors: Doors) -> list[Finding]:
    try:
        async with enter(doors.addrs) as surveyor:
            survey = await surveyor.survey()
            return [*_of_survey(survey, surveyor.complaint(), doors.addrs)]
    except ConfigError as error:
        return [Finding("swarm", "wrong", str(error), "correct the address: every node prints its own")]
    except SwarmError as error:
        text = f"no node answers at {', '.join(doors.addrs)}: {error}"
        step = "is the node up, is its UDP port open to you, does your network let UDP out? Try another's address"
        return [Finding("swarm", "wrong", text, step)]


def _of_survey(survey: Survey, complaint: str, addrs: Sequence[str]) -> Iterable[Finding]:
    answered = [said for said in survey.announcements if said.peer in survey.rtt_ms]
    nearest = min(survey.rtt_ms.values(), default=0.0)
    nodes = count(len(answered), "node")
    yield findings.ok("swarm", f"{nodes} answered, the nearest after {nearest:.1f} ms")
    yield findings.of_clock(complaint, len(answered))
    models = by_model(survey.announcements, survey.rtt_ms, survey.weights)
    yield from findings.of_nodes(models, survey.disputes, shlex.quote(addrs[0]))
    peer, running = examine.own_peer()
    own = next((said for said in survey.announcements if said.peer == peer), None)
    others = [said for said in answered if said.peer != peer]
    if (finding := findings.of_own_node(running, own, others)) is not None:
        yield finding


def _show(finding: Finding, terminal: Terminal) -> None:
    mark, style = _MARKS[finding.state]
    line = Text.assemble((terminal.glyphs(mark), style), f" {finding.about}: ")
    line.append(terminal.glyphs(one_line(finding.text)))
    terminal.show(line)
    if finding.step:
        terminal.show(Text.assemble(terminal.glyphs("    → "), (one_line(finding.step), "bold")))
