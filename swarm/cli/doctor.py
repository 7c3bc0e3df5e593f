"""`swarm doctor`: what is wrong with this machine's part of a swarm, and the next step."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from typing import Annotated, Final

import trio
import typer
from rich.text import Text

from protocol import identity
from protocol.errors import ConfigError, SwarmError
from protocol.hints import RecordRule
from protocol.messages import DIAL_PROTOCOL, DialRequest
from protocol.plain import one_line
from protocol.transport.addresses import parse_address
from protocol.transport.base import Stream
from swarm.cli import examine, findings
from swarm.cli.connection import working
from swarm.cli.findings import Finding
from swarm.cli.joined import Doors
from swarm.cli.options import EVERYWHERE, NETWORK, Join, Json, Verbose
from swarm.cli.survey import Survey, Surveyor, enter
from swarm.cli.terminal import Terminal, open_terminal
from swarm.cli.words import count
from swarm.coverage import by_model

_MARKS: Final = {"ok": ("✓", "green"), "note": ("·", "yellow"), "wrong": ("✗", "bold red")}


def doctor(
    join: Join = None,
    listen: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Where nodes of the swarm are asked to reach this machine: the port that a node here is to have.",
            rich_help_panel=NETWORK,
        ),
    ] = EVERYWHERE,
    as_json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Look at this machine and, by a node of it, at the swarm; say what is wrong and what to do about it.

    Status 0 if nothing is wrong, 1 otherwise. Without a swarm to ask, only this machine is looked at.

    ```
    swarm doctor --join ADDRESS
    swarm doctor --join ADDRESS --listen /ip4/0.0.0.0/udp/4001/quic-v1
    swarm doctor --json | jq '.findings[] | select(.state == "wrong")'
    ```
    """
    terminal = open_terminal()
    doors = examine.doors(join)
    with working(terminal, "looking at this machine"):
        found = [*examine.machine()]
    with working(terminal, "asking the swarm"):
        found += trio.run(_of_swarm, doors, listen) if doors is not None else [_NO_SWARM]
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


async def _of_swarm(doors: Doors, listen: str) -> list[Finding]:
    try:
        async with enter(doors.addrs) as surveyor:
            survey = await surveyor.survey()
            found = [*_of_survey(survey, surveyor.complaint(), doors.addrs)]
            return [*found, await _of_reach(surveyor, listen, len(survey.rtt_ms))]
    except ConfigError as error:
        return [Finding("swarm", "wrong", str(error), "correct the address: every node prints its own")]
    except SwarmError as error:
        text = f"no node answers at {', '.join(doors.addrs)}: {error}"
        step = "is the node up, is its UDP port open to you, does your network let UDP out? Try another's address"
        return [Finding("swarm", "wrong", text, step)]


async def _of_reach(surveyor: Surveyor, listen: str, peers: int) -> Finding:
    """Listen as a node would, under another name, and have nodes dial that."""
    from protocol.transport.libp2p import open_transport

    me = identity.generate()
    try:
        async with open_transport(me.key, listen=[listen], dht="client", validate=RecordRule()) as transport:

            async def hang_up(stream: Stream) -> None:
                await stream.aclose()

            transport.serve(DIAL_PROTOCOL, hang_up)
            places = [parse_address(addr) for addr in transport.addrs]
            replies = await surveyor.dial_back(DialRequest(me.peer, places[0].port))
            return findings.of_dials(places[0].port, replies, {place.host for place in places}, peers)
    except ConfigError as error:
        return Finding("reach", "wrong", str(error), "end what has the port, or name another with --listen")


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
