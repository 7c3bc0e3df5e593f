"""Who serves which layers, as bars; and what to run where nobody does."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from protocol.model import Span, describe_stages
from protocol.records import Announcement
from protocol.weights import PIN_DIGITS
from swarm.cli.terminal import Terminal
from swarm.cli.words import Names, count, name_of
from swarm.coverage import Coverage
from swarm.routing.precision import describe_kinds


def render(
    coverage: Coverage, terminal: Terminal, join: str, names: Names | None = None
) -> list[Table | Text]:
    """A heading, a bar for each node and for all, and a line for each hole."""
    one, width = coverage.one, terminal.out.width
    names_of = [terminal.glyphs(name_of(node.peer, names)) for node in coverage.nodes]
    serves = [describe_stages(node.span, one.blocks) for node in coverage.nodes]
    headers, taken = _columns(coverage, width, max(map(len, names_of)), max(map(len, serves)))
    scale = _Scale(one.stages, max(_LEAST_BAR, width - taken))
    table = Table(box=None, padding=(0, 1), show_edge=False, header_style="dim")
    table.add_column("node", no_wrap=True)
    table.add_column(Text(scale.axis(), style="dim"), no_wrap=True)
    for header in headers:
        table.add_column(header, no_wrap=True)
    for name, node, what in zip(names_of, coverage.nodes, serves, strict=True):
        used = coverage.precisions.take(node.numerics)
        style = {"serving": "green", "joining": "yellow"}.get(coverage.state(node), "dim") if used else "dim"
        bar = scale.bar(node.span)
        if not coverage.serves(node):
            bar = bar.replace("█", "▒")
        cells: list[str | Text] = [name, Text(terminal.glyphs(bar), style=style)]
        cells += [what, *_details(coverage, node)][: len(headers)]
        table.add_row(*cells)
    table.add_row(Text("nodes", style="dim"), scale.counts(coverage))
    heading = f"{coverage.name} · {count(one.blocks, 'layer')} · {count(len(coverage.nodes), 'node')}"
    lines: list[Table | Text] = [
        Text.assemble((terminal.glyphs(heading), "bold"), (f"  {one.digest.hex()[:8]}", "dim")),
        table,
    ]
    kinds = {node.numerics for node in coverage.nodes}
    if len(kinds) > 1 and _HEADERS[0] not in headers:
        lines.append(Text(f"computed in {describe_kinds(coverage.nodes)}", style="dim"))
    if coverage.weights is not None:
        lines.append(Text(f"weights {coverage.weights[:PIN_DIGITS]}", style="dim"))
    for hole in coverage.missing:
        what = terminal.glyphs(f"{coverage.hole(hole)} — to fill it: ")
        lines.append(Text.assemble((what, "red"), coverage.fill(hole, join)))
    return lines


# Widths of a terminal from which there is room for more columns.
_SERVES_FROM, _DETAILS_FROM = 60, 100
_LEAST_BAR = 10  # cells, without which those columns are left out
# Layers between two numbers on the axis.
_EVERY = (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 100)
_HEADERS = ("numerics", "ms/layer", "free KV", "RTT", "state")
_OTHER_DETAILS = 41  # cells of all but the first


def _columns(coverage: Coverage, width: int, name: int, serves: int) -> tuple[tuple[str, ...], int]:
    """The columns behind the bar for which there is room, and the cells that are not the bar's.

    `name`, `serves`: cells of the widest. Each column has a blank on both sides.
    """
    bare, with_serves = name + 4, name + serves + 6
    numerics = max(len(word) for word in [_HEADERS[0], *(str(node.numerics) for node in coverage.nodes)])
    with_details = with_serves + numerics + 2 + _OTHER_DETAILS
    if width >= max(_DETAILS_FROM, with_details + _LEAST_BAR):
        return ("serves", *_HEADERS), with_details
    return (("serves",), with_serves) if width >= _SERVES_FROM else ((), bare)


def _details(coverage: Coverage, node: Announcement) -> tuple[str, ...]:
    kv = f"{_thousands(node.kv_tokens)}/{_thousands(node.kv_tokens_total)}"
    rtt_ms = coverage.rtt_ms.get(node.peer)
    rtt = "?" if rtt_ms is None else f"{rtt_ms:.1f} ms"
    return str(node.numerics), f"{node.decode_ms:.2f}", kv, rtt, coverage.state(node)


def _thousands(number: int) -> str:
    return str(number) if number < 10_000 else f"{number / 1000:.0f}k"


class _Scale:
    """Stages on a line of characters: some characters a stage, or some stages a character."""

    def __init__(self, stages: int, width: int) -> None:
        self._stages = stages
        self._wide = max(1, min(4, width // stages))
        self._narrow = -(-stages // width) if stages > width else 1
        self.cells = -(-stages // self._narrow) * self._wide

    def _stages_of(self, cell: int) -> range:
        first = cell // self._wide * self._narrow
        return range(first, min(first + self._narrow, self._stages))

    def bar(self, span: Span) -> str:
        """Full where all stages of a character are in the span, light where some are."""
        shares = [
            sum(s in span for s in self._stages_of(c)) / len(self._stages_of(c)) for c in range(self.cells)
        ]
        return "".join("█" if share == 1 else "░" if share else "·" for share in shares)

    def counts(self, coverage: Coverage) -> Text:
        """How many nodes serve each stage (the fewest of a character's stages); holes in red."""
        spans, text = coverage.spans, Text()
        for cell in range(0, self.cells, self._wide):
            fewest = min(sum(s in span for span in spans) for s in self._stages_of(cell))
            style = ("bold red", "yellow")[fewest] if fewest < 2 else "green"
            text.append(("!" if fewest == 0 else str(min(fewest, 9))).ljust(self._wide), style=style)
        return text

    def axis(self) -> str:
        """E for the embedding, layer numbers where there is room, H for the head."""
        head = (self._stages - 1) // self._narrow * self._wide
        line = ["E", *" " * (self.cells - 1)]
        line[head] = "H"
        blocks = self._stages - 2
        every = next((n for n in _EVERY if blocks / n <= self.cells / 5), blocks)
        for layer in range(0, blocks, every):
            at, label = (layer + 1) // self._narrow * self._wide, str(layer)
            if at > 0 and set(line[at - 1 : at + len(label) + 1]) <= {" ", "E"}:
                line[at : at + len(label)] = label
        return "".join(line).rstrip()
