"""`swarm route`: the way a token would take now."""

from __future__ import annotations

import json

from rich.table import Table

from protocol.model import describe_stages
from protocol.plain import plain
from swarm.blocking import Client
from swarm.cli.connection import open_client
from swarm.cli.options import Join, Json, Model, Precision, Verbose, Wait, Weights, Where
from swarm.cli.screen import Screen
from swarm.cli.terminal import Terminal, open_terminal
from swarm.cli.words import Names, hop_fields, name_of
from swarm.routing.route import Route


def route(
    join: Join = None,
    model: Model = None,
    weights: Weights = None,
    precision: Precision = "any",
    wait: Wait = 0.0,
    as_json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Show the route that the next answer would take, and what it is expected to cost.

    ```
    swarm route --join ADDRESS
    ```
    """
    screen = Screen(open_terminal())
    terminal = screen.terminal
    where = Where(tuple(join or ()), model, wait, weights, precision)
    with open_client(where, terminal, screen.event) as client:
        planned = client.plan_route()
        if as_json:
            print(json.dumps(_fields(planned, client)))
        else:
            terminal.show(route_table(planned, client, terminal))


def route_table(planned: Route, client: Client, terminal: Terminal, names: Names | None = None) -> Table:
    """The hops with their parts and expected times."""
    blocks = client.model.blocks
    title = terminal.glyphs(f"{plain(client.model.name)} · {planned.expected_ms:.1f} ms a token expected")
    table = Table(
        box=None, padding=(0, 1), show_edge=False, header_style="dim", title=title, title_justify="left"
    )
    for header in ("hop", "peer", "serves", "numerics", "ms", "RTT"):
        table.add_column(header, no_wrap=True)
    for number, hop in enumerate(planned.hops, 1):
        rtt_ms = client.rtt_ms.get(hop.peer)
        rtt = "?" if rtt_ms is None else f"{rtt_ms:.1f} ms"
        short = names is not None or terminal.out.width < 100
        peer = terminal.glyphs(name_of(hop.peer, names)) if short else hop.peer
        serves, numerics = describe_stages(hop.span, blocks), str(hop.numerics or "?")
        table.add_row(str(number), peer, serves, numerics, f"{hop.expected_ms:.1f}", rtt)
    return table


def _fields(planned: Route, client: Client) -> dict[str, object]:
    hops = [hop_fields(hop, client.model.blocks) for hop in planned.hops]
    return {
        "model": plain(client.model.name),
        "weights": client.weights,
        "expected_ms": round(planned.expected_ms, 3),
        "hops": hops,
    }
