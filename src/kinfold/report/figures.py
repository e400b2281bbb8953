"""Figures as SVG text: curves of quality against bytes, bars of bytes and kept energy a layer."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from kinfold.errors import MissingExtraError

# a palette that stays apart for colour-blind readers and in print (Okabe and Ito)
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B8000"]
_MARKS = "osD^vPX*"


def require_matplotlib() -> Any:
    """The module.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as cause:
        raise MissingExtraError("matplotlib", "report") from cause
    return matplotlib


def _pyplot() -> Any:
    matplotlib = require_matplotlib()
    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "kinfold",  # equal data, equal bytes
            "svg.fonttype": "none",
            "font.family": "sans-serif",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
        }
    )
    from matplotlib import pyplot

    return pyplot


def _svg(pyplot: Any, figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    return text.getvalue()


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x: str,
    y: str,
    levels: Mapping[str, float] | None = None,
    floor: float | None = None,
    log: bool = False,
    plain: bool = False,
) -> str:
    """Lines over a logarithmic x axis of bytes, each named at its right end, as SVG.

    Args:
        series: (bytes, quality) points by name.
        x: label of the axis.
        y: label of the axis.
        levels: qualities to mark with dashed lines, by name, such as the uncompressed model's.
        floor: the lowest quality shown; None shows all.
        log: the y axis is logarithmic too; points at 0 are left out, a level at 0 is named at the foot.
        plain: the x axis is of plain numbers instead, and linear.
    """
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(7.2, 4.2))
    axes.set_xscale("linear" if plain else "log")
    axes.set_yscale("log" if log else "linear")
    ends = []
    for number, (name, points) in enumerate(series.items()):
        points = [point for point in points if not log or point[1] > 0]
        if points:
            where, value = zip(*sorted(points), strict=True)
            colour, mark = _COLOURS[number % 8], _MARKS[number % 8]
            axes.plot(where, value, marker=mark, color=colour, markersize=5, linewidth=1.6)
            ends.append((name, where[-1], value[-1], colour))
    for name, level in (levels or {}).items():
        if log and level <= 0:
            axes.annotate(f"{name}: 0", (0.005, 0.01), xycoords="axes fraction", va="bottom", fontsize=8, color="0.35")
            continue
        axes.axhline(level, color="0.4", linestyle="--", linewidth=1)
        axes.annotate(name, (0.005, level), xycoords=("axes fraction", "data"), va="bottom", fontsize=8, color="0.35")
    axes.margins(y=0.12)
    if floor is not None:
        axes.set_ylim(bottom=floor)
    if not plain:
        _byte_ticks(axes)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    _name_ends(axes, ends)
    return _svg(pyplot, figure)


def trajectories(
    series: Mapping[str, Sequence[float]], steps: Sequence[float], *, x: str, y: str, marked: Sequence[str] = ()
) -> str:
    """Lines over common steps, each named at its right end, as SVG.

    Args:
        series: one value a step, by name.
        steps: where they stand.
        x: label of the axis.
        y: label of the axis.
        marked: names of the lines in colour; the others are grey. All are in colour where none is marked.
    """
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(7.2, 3.4))
    ends = []
    coloured = [name for name in series if name in marked or not marked]
    for name, values in series.items():
        place = coloured.index(name) if name in coloured else None
        colour = "0.6" if place is None else _COLOURS[place % 8]
        style = "-" if place is None or place < 8 else "--"
        above = 1 if place is None else 3
        axes.plot(steps, values, color=colour, linestyle=style, linewidth=1 if place is None else 1.8, zorder=above)
        if len(values):
            ends.append((name, float(steps[-1]), float(values[-1]), colour))
    axes.margins(x=0.01, y=0.06)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    _name_ends(axes, ends)
    return _svg(pyplot, figure)


def _name_ends(axes: Any, ends: Sequence[tuple[str, float, float, str]]) -> None:
    """Write each (name, x, y, colour) beside the axes at the height of its point, or as near as there is room."""
    axes.autoscale_view()  # limits are settled late, and the places are wrong before
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = sorted(ends, key=lambda end: end[2])
    points = [to_axes.transform(end[1:3]) for end in ends]
    heights = [min(max(float(y), 0.0), 1.0) for _, y in points]
    places = spread(heights, 0.06)
    for (name, _, _, colour), (x, _), height, place in zip(ends, points, heights, places, strict=True):
        axes.annotate(
            name,
            xy=(x, height),
            xycoords="axes fraction",
            xytext=(1.04, place),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            color=colour,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.8,
                "linestyle": ":",
                "relpos": (0, 0.5),
                "shrinkA": 2,
                "shrinkB": 4,
            },
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The nearest places, in the squared sense, that keep their rising order and are `gap` apart.

    Isotonic regression of `places[i] - i gap` by pooling neighbours that are out of order.
    """
    pools: list[tuple[float, int]] = []  # mean, count
    for number, place in enumerate(places):
        pools.append((place - number * gap, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m), (b, n) = pools[-2:]
            pools[-2:] = [((a * m + b * n) / (m + n), m + n)]
    means = [mean for mean, count in pools for _ in range(count)]
    return [mean + number * gap for number, mean in enumerate(means)]


def _byte_ticks(axes: Any) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    from kinfold.report.progress import size

    low, high = axes.get_xlim()
    ticks = [m * 10**e for e in range(3, 12) for m in (1, 2, 5) if low <= m * 10**e <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))


def bars(names: Sequence[str], bytes_each: Sequence[float], errors: Sequence[float]) -> str:
    """Two aligned bar charts, one bar a layer: bytes, and the relative error of the delta.

    Args:
        names: of the layers, top to bottom.
        bytes_each: payload bytes of each.
        errors: in Frobenius norm, of each.
    """
    pyplot = _pyplot()
    height = 0.9 + 0.22 * len(names)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.0, height), sharey=True)
    places = range(len(names))
    left.barh(places, [b / 1000 for b in bytes_each], color=_COLOURS[0])
    left.set_yticks(list(places), labels=list(names), fontsize=8)
    left.invert_yaxis()
    left.set_xlabel("kB")
    right.barh(places, errors, color=_COLOURS[2])
    right.set_xlim(0, max([1.0, *errors]))
    right.set_xlabel("relative error of the delta")
    for axes in (left, right):
        axes.grid(axis="y", visible=False)
        axes.set_ylim(len(names) - 0.4, -0.6)
    figure.tight_layout()
    return _svg(pyplot, figure)
