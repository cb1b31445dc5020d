"""Figures for papers, pages and notebooks, drawn from plain data in one style.

Colours are those of Okabe and Ito, and maps (cividis, PuOr) that readers of any colour vision can tell apart. Every
function returns a matplotlib Figure; `save` writes it, `svg` gives it as text for a page.
"""

import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from math import asinh
from pathlib import Path
from textwrap import fill
from typing import Any, ParamSpec

import numpy

from moe_asr.config.score import Unit
from moe_asr.errors import InputError

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
except ImportError as error:
    raise InputError("Figures need matplotlib, which is missing: pip install 'moe-asr[analysis]'.") from error

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#999999")
"""Okabe and Ito, with grey for black, which a dark page would hide."""
MARKERS = "osD^vPX*"
DARK, GREY = "#111111", "#808080"
LABEL = 40
"""Characters of a line of a name, which is a point of a grid at times."""
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "legend.fontsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GREY,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "savefig.dpi": 160,
    "svg.fonttype": "none",  # text stays text: small, searchable, and read out
    "svg.hashsalt": "moe_asr",  # the same figure is the same file
}

P = ParamSpec("P")
Array = numpy.ndarray
Curve = tuple[Sequence[float], Sequence[float]]
"""Steps (or hours, ...) and values."""


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """A function that draws in the style of all figures here."""

    @wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return in_style


def save(figure: Figure, path: str | Path) -> None:
    """Writes FILE.svg, FILE.png or FILE.pdf, on white; the same figure gives the same bytes. Raises InputError for
    another suffix, and where nothing can be written."""
    path = Path(path)
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise InputError(f"{path} is no name for a figure: end it in .svg, .png or .pdf.")
    try:
        with matplotlib.rc_context(STYLE):
            dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}[path.suffix]
            figure.savefig(path, facecolor="white", metadata=dates)
    except OSError as error:
        raise InputError(f"The figure cannot be written ({error}); choose another place.") from error


def svg(figure: Figure) -> str:
    """An ``<svg>`` element for a page: transparent, and what is black takes the page's colour of text."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    element = buffer.getvalue()
    element = element[element.index("<svg") :].strip().replace("#000000", "currentColor")
    element = re.sub(r"\s*<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    return element.replace("<svg ", '<svg fill="currentColor" ', 1)


def expert_colours(num_experts: int) -> Colormap:
    """A colour for each expert."""
    if num_experts <= len(PALETTE):
        return ListedColormap(PALETTE[:num_experts])
    return matplotlib.colormaps["viridis"].resampled(num_experts)


def _grid(rows: int, columns: int, width: float, height: float, **shared: Any) -> tuple[Figure, Array]:
    """Axes (rows, columns) of so many inches each."""
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def _matrix(
    axes: Axes,
    values: Array,
    rows: Sequence[str],
    columns: Sequence[str],
    low: float,
    high: float,
    colours: str,
    written: Callable[[int, int], str] | None = None,
) -> Any:
    """Cells of rows (from above) x columns, each with what `written` says."""
    mesh = axes.pcolormesh(values, cmap=colours, vmin=low, vmax=high, edgecolors="face", linewidth=0.3)
    axes.set_xticks(numpy.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(numpy.arange(len(rows)) + 0.5, rows)
    axes.tick_params(length=0)
    axes.set_ylim(len(rows), 0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if written:
        for (row, column), value in numpy.ndenumerate(values):
            red, green, blue, _ = mesh.cmap(mesh.norm(value))
            bright = 0.3 * red + 0.59 * green + 0.11 * blue > 0.5
            text, place = written(row, column), (column + 0.5, row + 0.5)
            axes.annotate(text, place, ha="center", va="center", fontsize=7.5, color=DARK if bright else "#ffffff")
    return mesh


@styled
def load_map(loads: Mapping[str, Sequence[float]], title: str = "") -> Figure:
    """Site x expert: the share of the assignments in per cent, coloured by how many even shares that is.

    loads: by site, the load of each expert (0 to 1).
    """
    sites, experts = list(loads), max(map(len, loads.values()))
    values = numpy.full((len(sites), experts), numpy.nan)
    for row, load in zip(values, loads.values(), strict=True):
        row[: len(load)] = load
    figure, ((axes,),) = _grid(1, 1, 2.6 + 0.42 * min(experts, 24), 1.1 + 0.24 * len(sites))
    numbers = (lambda i, j: f"{100 * values[i, j]:.0f}") if experts <= 16 else None
    mesh = _matrix(axes, values * experts, sites, _few(range(experts)), 0, 4, "cividis", numbers)
    axes.set(xlabel="expert (cells: load in %)" if numbers else "expert", title=title)
    figure.colorbar(mesh, ax=axes, label="load (even shares)", extend="max", aspect=15)
    return figure


@styled
def correlation(sites: Sequence[str], matrix: Array, label: str = "Cramér's V", title: str = "") -> Figure:
    """Site x site (S,S), such as `SiteAssociation.observed`; values from 0 to 1."""
    count = len(sites)
    figure, ((axes,),) = _grid(1, 1, 2.6 + 0.4 * count, 1.4 + 0.36 * count)
    numbers = (lambda i, j: f"{matrix[i, j]:.2f}".lstrip("0")) if count <= 16 else None
    mesh = _matrix(axes, numpy.asarray(matrix), sites, sites, 0, 1, "cividis", numbers)
    axes.tick_params(axis="x", rotation=90)
    axes.set(title=title, aspect="equal")
    figure.colorbar(mesh, ax=axes, label=label, aspect=18)
    return figure


@styled
def expert_map(
    choices: Array,
    sites: Sequence[str],
    num_experts: int,
    features: Array | None = None,
    words: Sequence[tuple[str, float, float]] = (),
    frame_seconds: float = 0.04,
    title: str = "",
) -> Figure:
    """Frame x depth: which expert each site chose when, below the spectrogram and the words.

    choices (S,N): experts by site (from below to above in the network, drawn from below) and frame, -1 where there is
    none; features (T,M): log-mel feature frames; words: each with its begin and end (s).
    """
    end = choices.shape[1] * frame_seconds
    above = [0.28, 1.3] if features is not None else [0.28]
    heights = [*above, max(0.22 * len(sites), 0.9)]
    figure = Figure(figsize=(min(max(6.0, 1.6 * end + 2), 12.0), sum(heights) + 1.0), layout="constrained")
    parts = figure.subplots(len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights})
    said, below = parts[0], parts[-1]
    for word, begin, stop in words:
        said.annotate(word, ((begin + stop) / 2, 0.5), ha="center", va="center", annotation_clip=True)
        said.axvline(begin, color=GREY, linewidth=0.6)
        said.axvline(stop, color=GREY, linewidth=0.6)
    said.axis("off")
    said.set(ylim=(0, 1), title=title)
    if features is not None:
        parts[1].imshow(features.T, origin="lower", aspect="auto", cmap="gray_r", extent=(0, end, 0, features.shape[1]))
        parts[1].set(ylabel="mel bin")
    shown = numpy.ma.masked_less(choices, 0)
    image = below.imshow(
        shown,
        origin="lower",
        aspect="auto",
        interpolation="none",
        extent=(0, end, 0, len(sites)),
        cmap=expert_colours(num_experts),
        vmin=-0.5,
        vmax=num_experts - 0.5,
    )
    below.set_yticks(numpy.arange(len(sites)) + 0.5, sites)
    below.tick_params(axis="y", length=0)
    below.set(xlabel="time (s)", xlim=(0, end))
    ticks = numpy.arange(0, num_experts, -(-num_experts // 8))
    figure.colorbar(image, ax=below, label="expert", ticks=ticks, pad=0.01)
    return figure


@styled
def specialisation(
    values: Array,
    experts: Sequence[str],
    classes: Sequence[str],
    significant: Array | None = None,
    label: str = "log2 of observed over expected",
    title: str = "",
) -> Figure:
    """Expert x class (E,C): what is above 0 is preferred, what is below is avoided; a dot marks what is `significant`.

    Values that are not finite (never together) are drawn as the lowest.
    """
    values = numpy.asarray(values, dtype=float)
    finite = values[numpy.isfinite(values)]
    most = float(numpy.quantile(abs(finite), 0.98)) if finite.size else 1.0
    values = numpy.where(numpy.isfinite(values), values, -most)
    figure, ((axes,),) = _grid(1, 1, max(2.6 + 0.2 * len(classes), 4.0), 1.5 + 0.26 * len(experts))
    mesh = _matrix(axes, values, experts, classes, -most or -1, most or 1, "PuOr_r")
    if significant is not None:
        rows, columns = numpy.nonzero(significant)
        axes.scatter(columns + 0.5, rows + 0.5, s=10, color=DARK, edgecolors="white", linewidths=0.6)
    if max(map(len, classes)) > 2:
        axes.tick_params(axis="x", rotation=90)
    axes.set(ylabel="expert", title=title)
    figure.colorbar(mesh, ax=axes, label=label, extend="both", aspect=15)
    return figure


@dataclass(frozen=True)
class Point:
    """A value with its interval (low, high). hollow and small mark what is special; a legend has `series`."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    series: str = ""
    name: str = ""
    """Written beside it."""
    hollow: bool = False
    small: bool = False


@styled
def pareto(
    panels: Mapping[str, Sequence[Point]],
    x_label: str,
    y_label: str,
    x_unit: float | None = None,
    y_unit: float | None = None,
    note: str = "",
) -> Figure:
    """Error (lower is better) against cost (less is better), a panel for each title; grey: no point is better in both.

    x_unit, y_unit: the axis is linear up to about there and logarithmic above, so that 0 has a place; None = linear.
    """
    every = [point for points in panels.values() for point in points]
    bounds = [bound for p in every for bound in (p.low, p.high) if bound is not None]
    found = {"x": [p.x for p in every], "y": [p.y for p in every] + bounds}
    series = list(dict.fromkeys(point.series for point in every))
    figure, ((*parts,),) = _grid(1, len(panels), 5.2, 4.2, sharex=True, sharey=True)
    for axes, (title, points) in zip(parts, panels.items(), strict=True):
        for axis, unit in (("x", x_unit), ("y", y_unit)):
            if unit is not None:
                getattr(axes, f"set_{axis}scale")("asinh", linear_width=unit)
                _plain_ticks(getattr(axes, f"{axis}axis"), unit, found[axis])
        best: list[Point] = []
        for point in sorted(points, key=lambda p: (p.x, p.y)):
            if not best or point.y < best[-1].y:
                best.append(point)
        axes.step([p.x for p in best], [p.y for p in best], where="post", color=GREY, alpha=0.5, linewidth=3)
        for number, name in enumerate(series):
            colour = PALETTE[number % len(PALETTE)]
            marker = MARKERS[number % len(MARKERS)]
            axes.plot([], [], marker, color=colour, label=fill(name, LABEL))
            for p in (p for p in points if p.series == name):
                if p.low is not None and p.high is not None:
                    axes.plot([p.x, p.x], [p.low, p.high], color=colour, alpha=0.4, linewidth=1.2)
                face, size = "none" if p.hollow else colour, 4 if p.small else 7
                axes.plot(p.x, p.y, marker, color=colour, markerfacecolor=face, markersize=size)
                if p.name:
                    axes.annotate(p.name, (p.x, p.y), (6, -10), textcoords="offset points", fontsize=8)
        axes.set(title=title, xlabel=x_label)
        axes.grid()
    parts[0].set_ylabel(y_label)
    if any(series):
        figure.legend(*parts[0].get_legend_handles_labels(), loc="outside upper center", ncols=_columns(series))
    if note:
        figure.supxlabel(note, fontsize=8, x=0.01, ha="left")
    return figure


def _plain_ticks(axis: Any, unit: float, values: Sequence[float]) -> None:
    """0 and 1, 5, 2 times powers of ten, as far as they have room between the least and the largest value."""
    low, high = (asinh(value / unit) for value in (min(values), max(values)))
    span, chosen = (high - low) or 1.0, list[float]()
    for value in [
        0.0,
        *(sign * f * 10.0**power for f in (1, 5, 2) for power in range(-3, 7) for sign in (1, -1)),
    ]:
        place = asinh(value / unit)
        room = all(abs(place - asinh(other / unit)) > 0.07 * span for other in chosen)
        if room and low - 0.05 * span <= place <= high + 0.05 * span:
            chosen.append(value)
    axis.set_major_locator(FixedLocator(sorted(chosen)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def latency(results: Mapping[str, Any]) -> Figure:
    """The points of an evaluation's results.json: error rate against the median latency of a word, a panel per set.

    Hollow: a chunk longer than those of training. Small: a limited left context. Raises InputError for results
    without latencies.
    """
    panels: dict[str, list[Point]] = {}
    rate, largest = "", results["largest_trained_chunk"]
    for result in results["test"].values():
        if result.get("latency", {}).get("words"):
            rate, decode = Unit(result["unit"]).rate, result["decode"]
            limited = decode["left"] is not None and decode["chunk"] is not None
            bounds = [] if limited else [100 * bound for bound in result[f"{rate}_ci95"] or ()]
            low, high = bounds or (None, None)
            panel = panels.setdefault(result["split"], [])
            size = str(decode["chunk"] or "full")  # written once
            panel.append(
                Point(
                    result["latency"]["settled_p50"],
                    100 * result[rate],
                    low,
                    high,
                    decode["mode"].replace("_", " "),
                    "" if limited or any(point.name == size for point in panel) else size,
                    hollow=bool(largest and decode["chunk"] and decode["chunk"] > largest),
                    small=limited,
                )
            )
    if not panels:
        raise InputError("there is nothing to draw: evaluate with latency=true a model that shows words.")
    beyond = f"\nhollow: beyond the chunks of training (at most {largest})" if largest else ""
    note = f"numbers: chunk in frames of 40 ms; bars: 95 % intervals; small: limited left context{beyond}"
    x_label = "median latency of a word after its true end (s)"
    return pareto(panels, x_label, f"{rate.upper()} (%)", 0.25, 2.0, note)


@styled
def learning_curves(
    curves: Mapping[str, Sequence[Curve]],
    y_label: str,
    x_label: str = "step",
    title: str = "",
    log: bool = False,
) -> Figure:
    """Values over training: an entry for each arm, with a curve for each of its runs (seeds), all in one colour."""
    figure, ((axes,),) = _grid(1, 1, 5.4, 3.4)
    for number, (name, runs) in enumerate(curves.items()):
        for i, (steps, values) in enumerate(runs):
            colour = PALETTE[number % len(PALETTE)]
            alpha = 1.0 if len(runs) == 1 else 0.65
            axes.plot(
                steps, values, color=colour, alpha=alpha, linewidth=1.3, label=fill(name, LABEL) if i == 0 else None
            )
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    if log:
        axes.set_yscale("log")
    axes.grid()
    if any(curves):
        figure.legend(loc="outside upper center", ncols=_columns(curves))
    return figure


@styled
def utilisation(sites: Mapping[str, tuple[Sequence[float], Array]], x_label: str = "step") -> Figure:
    """The load of each expert over training, stacked, a panel for each site: steps (T,) and loads (T,E)."""
    columns = min(len(sites), 4)
    figure, parts = _grid(-(-len(sites) // columns), columns, 2.6, 2.0, sharex=True, sharey=True)
    for axes, (site, (steps, loads)) in zip(parts.flat, sites.items(), strict=False):
        experts = numpy.shape(loads)[1]
        colours = expert_colours(experts)(numpy.arange(experts))
        axes.stackplot(steps, 100 * numpy.transpose(loads), colors=colours, labels=_few(range(experts)))
        axes.set(title=site, ylim=(0, 100), xlim=(min(steps), max(steps)))
    for axes in parts.flat[len(sites) :]:
        axes.axis("off")
    for axes in parts[-1]:
        axes.set_xlabel(x_label)
    for axes in parts[:, 0]:
        axes.set_ylabel("load (%)")
    if experts <= len(PALETTE):
        figure.legend(*parts[0, 0].get_legend_handles_labels(), loc="outside right upper", title="expert")
    return figure


Bar = tuple[float, float | None, float | None]
"""A value and its interval, or None twice."""


@styled
def bars(values: Mapping[str, Mapping[str, Bar]], x_label: str, title: str = "") -> Figure:
    """Horizontal bars with intervals: by series (model, arm, ...) and there by group (domain, chunk, ...).

    For error rates of domains, and for real-time factors.
    """
    groups = list(dict.fromkeys(group for series in values.values() for group in series))
    thick = 0.8 / len(values)
    figure, ((axes,),) = _grid(1, 1, 5.6, 1.1 + 0.25 * len(groups) * max(len(values), 1.5))
    for number, (name, series) in enumerate(values.items()):
        places = [groups.index(group) + (number - (len(values) - 1) / 2) * thick for group in series]
        colour = PALETTE[number % len(PALETTE)]
        axes.barh(places, [value for value, _, _ in series.values()], 0.92 * thick, color=colour, label=name)
        for place, (_, low, high) in zip(places, series.values(), strict=True):
            if low is not None and high is not None:
                axes.plot([low, high], [place, place], color=GREY, linewidth=1.6)
    axes.set_yticks(range(len(groups)), [fill(group, LABEL) for group in groups])
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel=x_label, title=title, ylim=(len(groups) - 0.5, -0.5))
    axes.grid(axis="x")
    if any(values):
        figure.legend(loc="outside upper center", ncols=_columns(values))
    return figure


def _columns(names: Collection[str]) -> int:
    """Of a legend above a figure."""
    return max(1, min(len(names), 6, 2 * LABEL // max(len(fill(name, LABEL).partition("\n")[0]) for name in names)))


def _few(numbers: Sequence[int]) -> list[str]:
    """Tick labels, thinned out where there are many."""
    every = -(-len(numbers) // 24)
    return [str(n) if n % every == 0 else "" for n in numbers]
