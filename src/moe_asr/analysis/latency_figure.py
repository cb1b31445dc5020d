"""Error rate against latency as an SVG, drawn by hand: the standard library is enough for points, lines and text."""

from collections.abc import Iterable, Sequence
from math import asinh
from typing import Any
from xml.sax.saxutils import escape

from moe_asr.config.score import Unit
from moe_asr.errors import InputError

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 570, 400, 62, 70, 14, 50
COLOURS = {
    "ctc_greedy": "#0072B2",
    "ctc_prefix_beam": "#E69F00",
    "attention": "#009E73",
    "attention_rescoring": "#D55E00",
}
"""Of Okabe and Ito's palette, which readers of any colour vision can tell apart; the shapes tell the same."""
SHAPES = {
    "ctc_greedy": "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0Z",
    "ctc_prefix_beam": "M-4.5,-4.5H4.5V4.5H-4.5Z",
    "attention": "M0,-5.5L5.5,4.5H-5.5Z",
    "attention_rescoring": "M0,-6L6,0L0,6L-6,0Z",
}
SECONDS = (-1, -0.5, 0, 0.25, 0.5, 1, 2, 5, 10, 20, 50, 100)
PERCENT = (0, 0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 200)


class Axis:
    """Values to pixels: linear up to about `unit`, then logarithmic, so that 0 and negative values have a place."""

    def __init__(self, values: Iterable[float], unit: float, first: float, last: float, ticks: Sequence[float]) -> None:
        found = [asinh(value / unit) for value in values]
        margin = 0.08 * (max(found) - min(found)) or 1.0
        self.low, self.high = min(found) - margin, max(found) + margin
        self.unit, self.first, self.last = unit, first, last
        self.ticks = [tick for tick in ticks if self.low <= asinh(tick / unit) <= self.high]

    def __call__(self, value: float) -> float:
        return self.first + (asinh(value / self.unit) - self.low) / (self.high - self.low) * (self.last - self.first)


def latency_figure(results: dict[str, Any]) -> str:
    """The points of an evaluation's results.json, a panel for each set; hollow = a chunk longer than those of training.

    Latency is the median over words of when they settle. Small: a limited left context. Grey: the best trade-offs.
    Raises InputError for results without latencies.
    """
    panels: dict[str, list[dict[str, Any]]] = {}
    for result in results["test"].values():
        if result.get("latency", {}).get("words"):
            rate = Unit(result["unit"]).rate
            point = result["decode"] | {"x": result["latency"]["settled_p50"], "y": 100 * result[rate], "rate": rate}
            point["bar"] = [100 * bound for bound in result[f"{rate}_ci95"] or ()]
            panels.setdefault(result["split"], []).append(point)
    if not panels:
        raise InputError("there is nothing to draw: evaluate with latency=true a model that shows words.")
    points = [point for panel in panels.values() for point in panel]
    x = Axis([p["x"] for p in points], 0.25, LEFT, WIDTH - RIGHT, SECONDS)
    y = Axis([rate for p in points for rate in (p["y"], *p["bar"])], 2.0, HEIGHT - BOTTOM, TOP, PERCENT)
    largest = results["largest_trained_chunk"]
    drawn = "".join(
        f'<g transform="translate({WIDTH * i},0)">{_panel(name, panel, x, y, largest)}</g>'
        for i, (name, panel) in enumerate(panels.items())
    )
    keys = (*(mode for mode in COLOURS if any(p["mode"] == mode for p in points)),)
    legend = "".join(
        f'<path d="{SHAPES[mode]}" transform="translate({LEFT + 125 * i},{HEIGHT + 8})" fill="{COLOURS[mode]}"/>'
        + _text(LEFT + 10 + 125 * i, HEIGHT + 12, mode.replace("_", " "))
        for i, mode in enumerate(keys)
    )
    beyond = f"hollow: chunk above {largest}, beyond training; " if largest else ""
    notes = ("large: all left context, with 95 % interval; small: limited", f"{beyond}grey: no point is better in both")
    lines = "".join(_text(LEFT - 6, HEIGHT + 32 + 16 * i, note) for i, note in enumerate(notes))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * len(panels)}" height="{HEIGHT + 58}" '
        f'font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>{drawn}{legend}'
        f"{lines}</svg>\n"
    )


def _panel(name: str, points: list[dict[str, Any]], x: Axis, y: Axis, largest: int | None) -> str:
    parts = [
        f'<path d="M{LEFT},{TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="black"/>',
        _text((LEFT + WIDTH) / 2, HEIGHT - 14, "median latency of a word after its true end (s)", "middle"),
        _text(0, 0, f"{points[0]['rate'].upper()} (%)", "middle", f"translate(18,{(TOP + HEIGHT) / 2})rotate(-90)"),
        _text((LEFT + WIDTH) / 2, 18, name, "middle"),
        _text(LEFT, 36, "chunk (frames of 40 ms):"),
    ]
    for tick in x.ticks:
        parts.append(f'<path d="M{x(tick):.1f},{HEIGHT - BOTTOM}v4" stroke="black"/>')
        parts.append(_text(x(tick), HEIGHT - BOTTOM + 16, f"{tick:g}", "middle"))
    for tick in y.ticks:
        parts.append(f'<path d="M{LEFT},{y(tick):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, y(tick) + 4, f"{tick:g}", "end"))
    for chunk in sorted({p["chunk"] for p in points}, key=lambda size: size or float("inf")):
        places = [x(p["x"]) for p in points if p["chunk"] == chunk]
        parts.append(_text(sum(places) / len(places), 54, str(chunk or "full"), "middle"))
    best: list[dict[str, Any]] = []
    for p in sorted(points, key=lambda p: (p["x"], p["y"])):
        if not best or p["y"] < best[-1]["y"]:
            best.append(p)
    front = "".join(f"H{x(p['x']):.1f}V{y(p['y']):.1f}" for p in best[1:])
    start = f"M{x(best[0]['x']):.1f},{y(best[0]['y']):.1f}"
    parts.append(f'<path d="{start}{front}" fill="none" stroke="#999" stroke-width="3"/>')
    for p in points:
        colour, whole = COLOURS[p["mode"]], p["left"] is None or p["chunk"] is None
        if whole and p["bar"]:
            low, high = map(y, p["bar"])
            parts.append(f'<path d="M{x(p["x"]):.1f},{low:.1f}V{high:.1f}" stroke="{colour}" stroke-opacity="0.4"/>')
        hollow = largest is not None and p["chunk"] is not None and p["chunk"] > largest
        fill, scale = "white" if hollow else colour, 1 if whole else 0.55
        parts.append(
            f'<path d="{SHAPES[p["mode"]]}" transform="translate({x(p["x"]):.1f},{y(p["y"]):.1f})'
            f'scale({scale})" fill="{fill}" stroke="{colour}" stroke-width="1.5"/>'
        )
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str = "start", transform: str = "") -> str:
    moved = f' transform="{transform}"' if transform else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{moved}>{escape(text)}</text>'
