"""Pictures of what the benchmarks measured, by matplotlib where it is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Points = Sequence[tuple[float, float]]


def require_matplotlib() -> Any:
    """`matplotlib.pyplot`, drawing into files; ends the benchmark with one line where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("--plot needs matplotlib, which is not installed: pip install matplotlib") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def draw_lines(file: Path, title: str, axes: tuple[str, str], lines: Mapping[str, Points]) -> None:
    """One line with dots for each name; axes: what is across and what is up."""
    pyplot = require_matplotlib()
    figure, plot = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, points in lines.items():
        plot.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
    plot.set(title=title, xlabel=axes[0], ylabel=axes[1])
    _finish(pyplot, figure, plot, file)


def draw_bars(file: Path, title: str, up: str, groups: Mapping[str, Mapping[str, float]]) -> None:
    """A group of bars for each name, in it one for each inner name, in the same colour everywhere."""
    pyplot = require_matplotlib()
    figure, plot = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    kinds = list(dict.fromkeys(kind for group in groups.values() for kind in group))
    width = 0.8 / len(kinds)
    for index, kind in enumerate(kinds):
        places = [place + index * width for place, group in enumerate(groups.values()) if kind in group]
        bars = plot.bar(
            places, [group[kind] for group in groups.values() if kind in group], width, label=kind
        )
        plot.bar_label(bars, fmt="%.1f", fontsize=8)
    middle = width * (len(kinds) - 1) / 2
    plot.set_xticks([place + middle for place in range(len(groups))], list(groups))
    plot.set(title=title, ylabel=up)
    _finish(pyplot, figure, plot, file)


def _finish(pyplot: Any, figure: Any, plot: Any, file: Path) -> None:
    plot.set_ylim(bottom=0)
    plot.grid(visible=True, axis="y", alpha=0.3)
    plot.legend()
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
