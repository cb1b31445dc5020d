"""A sweep as one page: the question, what each point of the grid costs and gets wrong, what each option is worth."""

import re
import statistics
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from moe_asr.analysis import figures
from moe_asr.analysis.page import Html, element, page, section
from moe_asr.analysis.report_effects import Effect, Tables, effects, pooled_interval, tables
from moe_asr.analysis.report_runs import Entry, Point, Study, measured, rows
from moe_asr.columns import p_value
from moe_asr.config.score import Unit
from moe_asr.errors import InputError
from moe_asr.measure.expert_use import DEAD, UNEVEN, dead, variation
from moe_asr.runs.directory import Status
from moe_asr.runs.transcripts import FRAME_SECONDS

BADGES = {Status.done: "good", Status.failed: "bad", Status.killed: "warn", Status.running: "", Status.pending: ""}
SERIES = 8
"""Curves and points have so many colours; more points of a grid are coloured by its first option."""
LOG_LINES, SHOWN_STEPS, LEGEND_CHARACTERS = 20, 24, 56

Metric = Callable[[Mapping[str, Any]], float | None]


def _key(name: str) -> Metric:
    return lambda line: line.get(name)


def _part(line: Mapping[str, Any], name: str, unit: float) -> float | None:
    return None if line.get(name) is None else line[name] / unit


COLUMNS: tuple[tuple[str, str, Metric, str], ...] = (
    ("rtf", "RTF", _key("rtf"), "{:.4f}"),
    ("params", "parameters (M)", lambda line: _part(line, "params_total", 1e6), "{:.2f}"),
    ("active", "active (M)", lambda line: _part(line, "params_active", 1e6), "{:.2f}"),
    ("flops", "GFLOP / s", lambda line: _part(line, "flops_per_second", 1e9), "{:.2f}"),
    ("load", "load CV", _key("load_cv"), "{:.2f}"),
    ("dead", "dead experts", _key("dead_experts"), "{:.3g}"),
)
"""Beside the error rate: key, heading, value of a line of `measured` and of results.json, how it is written."""


def report(study: Study, chosen: str | None = None) -> tuple[str, dict[str, Any]]:
    """The page, and what it says as plain values; chosen: the test set of effects and figures, else the last one.

    Raises InputError for a test set that no run has.
    """
    if chosen is not None and chosen not in study.sets:
        raise InputError(f"set={chosen} is no test set of these runs, which have {', '.join(study.sets) or 'none'}.")
    name = chosen or (study.sets[-1] if study.sets else None)
    counted = {each: tables(study, each) for each in study.sets}
    found = effects(study, counted[name]) if name else []
    lines = rows(study)
    plain = {
        "title": study.title,
        "question": study.question,
        "command": study.command,
        "commit": study.commit,
        "axes": {axis: list(values) for axis, values in study.axes.items()},
        "notes": list(study.notes),
        "set": name,
        "effects": [{**asdict(effect), "verdict": effect.verdict} for effect in found],
        "alarms": {entry.run.path.name: entry.alarms for entry in study.entries if entry.alarms},
        "runs": lines,
    }
    body = [_head(study), _unfinished(study)]
    if name:
        body += [_results(study, name, counted), _effects(found, name), _figures(study, name, counted)]
        body.append(_routing(study, name))
    body.append(_origin(study))
    return page(f"Report: {study.title}", Html("".join(body)), ("report.js",)), plain


def _head(study: Study) -> Html:
    states = Counter(entry.status for entry in study.entries)
    seconds = sum((entry.results or {}).get("train_seconds", 0.0) for entry in study.entries)
    seeds = sorted({entry.seed for entry in study.entries}, key=lambda s: (len(s), s))
    facts = {
        "runs done": f"{states[Status.done]} of {len(study.entries)}",
        "points of the grid": str(len(study.points)),
        "seeds": str(len(seeds)),
        "test sets": str(len(study.sets)),
        "training": f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min",
    }
    grid = [
        element("tr", element("th", axis, scope="row", class_="mono"), element("td", ", ".join(values), class_="mono"))
        for axis, values in study.axes.items()
    ]
    return section(
        "question",
        "The question",
        element("p", study.question, class_="lead") if study.question else None,
        element("dl", [element("div", element("dt", k), element("dd", v)) for k, v in facts.items()], class_="facts"),
        element("h3", "The grid") if grid else None,
        element("div", element("table", element("tbody", grid)), class_="scroll") if grid else None,
        [element("p", note, class_="soft") for note in study.notes],
    )


def _unfinished(study: Study) -> Html:
    """Jobs that have no results, with why, as far as their logs tell."""
    left = [entry for entry in study.entries if entry.status is not Status.done]
    if not left:
        return Html("")
    items = []
    for entry in left:
        tail: list[str] = []
        if entry.run.log.exists():
            tail = entry.run.log.read_text(encoding="utf8", errors="replace").splitlines()[-LOG_LINES:]
        log = (
            element("details", element("summary", "end of its log"), element("pre", "\n".join(tail))) if tail else None
        )
        what = element("span", f"{study.label(entry.point)} seed={entry.seed}", class_="mono")
        command = element("pre", entry.command) if entry.command else None
        items.append(element("div", element("p", _badge(entry.status), " ", what), log, command))
    return section("unfinished", f"{len(left)} of {len(study.entries)} runs have no results", items)


def _badge(state: Status) -> Html:
    return element("span", state.value, class_=f"badge {BADGES[state]}".strip())


def _results(study: Study, name: str, counted: Mapping[str, Tables]) -> Html:
    rate = _unit(study, name).rate.upper()
    headings = [(f"axis{i}", axis, False) for i, axis in enumerate(study.axes)]
    headings += [("seeds", "seeds", True), ("rate", f"{rate} (%)", True)]
    headings += [(key, heading, True) for key, heading, *_ in COLUMNS]
    head = element(
        "tr",
        [
            element(
                "th",
                element("button", heading, type="button", data_sort=key),
                scope="col",
                class_="number" if number else None,
            )
            for key, heading, number in headings
        ],
    )
    bodies = []
    for set_ in study.sets:
        means = {p: _mean(_rates(entries, set_)) for p, entries in study.points.items()}
        least = min((mean for mean in means.values() if mean is not None), default=None)
        for point, entries in study.points.items():
            best = means[point] is not None and means[point] == least and len(means) > 1
            bodies.append(_point_rows(point, entries, set_, counted[set_], best, set_ != name))
    picker = element(
        "label",
        "Test set ",
        element("select", [element("option", s, value=s, selected=s == name) for s in study.sets], id="set"),
    )
    everything = element("button", "Show all runs", type="button", id="all", aria_expanded="false")
    table = element("table", element("thead", head), bodies, class_="wide sticky", id="table")
    note = (
        f"{rate}: mean over seeds ± standard deviation, and the 95 % interval of these very runs for new speakers. "
        "GFLOP / s: multiply-adds x 2 per second of audio, encoder and what the decode mode adds. load CV: standard "
        "deviation over mean of the expert loads at the least even site, 0 if even. dead: below "
        f"{100 * DEAD:g} % of the even share, over all sites. The best rate is shaded."
    )
    if any(entry.flops(result["decode"]) is None for entry in study.entries for result in entry.sets.values()):
        note += " GFLOP / s needs the checkpoint of a run, which is not there, or of another version."
    return section(
        "results",
        "Results",
        element("div", picker, everything, class_="tools"),
        element("div", table, class_="scroll", tabindex=0, role="region", aria_label="table of results"),
        element("p", note, class_="note"),
        [element("p", line, class_="note") for line in _receipts(study)],
    )


def _rates(entries: Sequence[Entry], name: str) -> list[float]:
    return [measured(entry, name)["rate"] for entry in entries if name in entry.sets]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _point_rows(
    point: Point,
    entries: Sequence[Entry],
    name: str,
    counted: Tables,
    best: bool,
    hidden: bool,
) -> Html:
    """A body of the table: the row of a point, and hidden below it those of its runs."""
    done = [entry for entry in entries if name in entry.sets]
    lines = [{**(entry.results or {}), **measured(entry, name)} for entry in done]
    rates = [line["rate"] for line in lines]
    more = element("button", "+", type="button", class_="more", aria_expanded="false", aria_label="show its runs")
    left = Counter(entry.status for entry in entries if entry.status is not Status.done)
    seeds = [f"{len(done)} ", more, [[" ", element("small", f"{n} {state}")] for state, n in left.items()]]
    cells = [element("td", value, data_v=value) for value in point]
    cells += [element("td", seeds, data_v=len(done), class_="number"), _rate_cell(rates, _bounds(done, lines, counted))]
    for _, _, metric, form in COLUMNS:
        mean = _mean([metric(line) for line in lines])
        cells.append(element("td", "–" if mean is None else form.format(mean), data_v=mean, class_="number"))
    runs = []
    for entry in entries:
        line = {**(entry.results or {}), **measured(entry, name)} if name in entry.sets else None
        about = [f"{entry.run.path.name} ", _badge(entry.status) if line is None else None]
        about += [" ", element("span", "alarm", class_="badge bad")] if entry.alarms else []
        own = [element("td", about, colspan=len(point))] if point else []
        own.append(element("td", entry.seed, class_="number"))
        interval = (line["rate_low"], line["rate_high"]) if line and line["rate_low"] is not None else None
        own.append(_rate_cell([line["rate"]] if line else [], interval))
        for _, _, metric, form in COLUMNS:
            value = metric(line) if line else None
            own.append(element("td", "–" if value is None else form.format(value), class_="number"))
        runs.append(element("tr", own, class_="run", hidden=True))
    row = element("tr", cells, class_="best" if best else None)
    return element("tbody", row, runs, data_set=name, hidden=hidden)


def _bounds(done: Sequence[Entry], lines: Sequence[Mapping[str, Any]], counted: Tables) -> tuple[float, float] | None:
    if len(done) == 1:
        return (lines[0]["rate_low"], lines[0]["rate_high"]) if lines[0]["rate_low"] is not None else None
    return pooled_interval(done, counted)


def _rate_cell(rates: Sequence[float], bounds: tuple[float, float] | None) -> Html:
    if not rates:
        return element("td", "–", class_="number")
    spread = f" ± {100 * statistics.stdev(rates):.2f}" if len(rates) > 1 else ""
    interval = f"[{100 * bounds[0]:.2f}, {100 * bounds[1]:.2f}]" if bounds else "no interval"
    text = [
        element("strong", f"{100 * statistics.fmean(rates):.2f}"),
        spread,
        element("br"),
        element("small", interval),
    ]
    return element("td", text, data_v=statistics.fmean(rates), class_="number")


def _receipts(study: Study) -> list[str]:
    """How the speeds were measured, each way once."""
    speeds = [result["speed"] for e in study.entries for result in e.sets.values() if result.get("speed")]
    ways = dict.fromkeys((s["machine"], s["device"], s["threads"], s["batch"], s["warm_up"]) for s in speeds)
    return [
        f"RTF on {machine} ({device}), threads: {threads}, batch: {batch}, warm-up: {warm_up}; of features, encoder, "
        "search and text of the very transcripts that are scored."
        for machine, device, threads, batch, warm_up in ways
    ]


def _effects(found: Sequence[Effect], name: str) -> Html:
    if not found:
        return Html("")
    tones = {"better": "good", "worse": "bad"}
    body = []
    for effect in found:
        made, rates = effect.comparison, effect.rates
        bounds = made.relative_ci95 if made else None
        relative = rates[1] / rates[0] - 1 if rates and rates[0] else None
        interval = f"[{100 * bounds[0]:+.1f}, {100 * bounds[1]:+.1f}]" if bounds else ""
        cells = [
            element("th", element("span", effect.axis, class_="mono"), scope="row"),
            element("td", f"{effect.value} against {effect.against}"),
            element("td", " → ".join(f"{100 * rate:.2f}" for rate in rates or ()), class_="number"),
            element("td", "" if relative is None else f"{100 * relative:+.1f}", class_="number"),
            element("td", interval, class_="number"),
            element("td", p_value(effect.p_holm, ""), class_="number"),
            element("td", element("span", effect.verdict, class_=tones.get(effect.verdict, "soft"))),
            element("td", f"{effect.cells} x {effect.seeds}", class_="number"),
        ]
        body.append(element("tr", cells))
    names = ["option", "value", "error rate (%)", "relative (%)", "95 % interval", "Holm p", "verdict", "cells x seeds"]
    right = ("error rate (%)", "relative (%)", "95 % interval", "Holm p", "cells x seeds")
    head = element("tr", [element("th", n, scope="col", class_="number" if n in right else None) for n in names])
    methods = dict.fromkeys(re.sub(r"t\([\d.]+\)", "t", e.comparison.method) for e in found if e.comparison)
    note = (
        f"On {name}: errors summed over the cells, settings of the other options that have both values with the same "
        "seeds. p and verdict are corrected for all of these comparisons (Holm), intervals are not."
    )
    if not all(effect.rates for effect in found):
        note += " Nothing to compare: no two points differ in that option alone."
    return section(
        "effects",
        "What each option is worth",
        element(
            "div",
            element("table", element("thead", head), element("tbody", body), class_="wide sticky"),
            class_="scroll",
            tabindex=0,
            role="region",
            aria_label="table of effects",
        ),
        element("p", note, class_="note"),
        [element("p", method, class_="note") for method in methods],
    )


def _series(study: Study) -> tuple[dict[Point, str], Html]:
    """What each point is called in the figures, and a key to these names where they are mere letters.

    More points than there are colours share the name of the value of their first option.
    """
    if len(study.points) > SERIES and study.axes:
        return {point: _plain(f"{next(iter(study.axes))}={point[0]}") for point in study.points}, Html("")
    short = [axis.rpartition(".")[2] for axis in study.axes]
    names = {p: ", ".join(f"{a}={value}" for a, value in zip(short, p, strict=True)) for p in study.points}
    if sum(map(len, names.values())) <= LEGEND_CHARACTERS:
        return {point: _plain(name or "runs") for point, name in names.items()}, Html("")
    letters = dict(zip(study.points, string.ascii_uppercase, strict=False))
    key = [[element("strong", letters[p]), f" {name}", element("br")] for p, name in names.items()]
    return letters, element("p", key, class_="note")


def _plain(text: str) -> str:
    """For a figure, where dollars would enclose a formula."""
    return text.replace("$", r"\$")


def _figures(study: Study, name: str, counted: Mapping[str, Tables]) -> Html:
    (series, key), drawn = _series(study), list[Html]()
    unit = _unit(study, name).rate.upper()

    def show(figure: figures.Figure, caption: str) -> None:
        names = r'(\sid="|href="#|url\(#)'  # which another figure may have, too
        own = re.sub(names, rf"\g<1>figure{len(drawn)}-", figures.svg(figure))
        drawing = Html(own.replace("<svg ", f'<svg role="img" aria-label="{escape(caption)}" ', 1))
        drawn.append(element("figure", drawing, element("figcaption", caption)))

    def cost_of(x: Callable[[Mapping[str, Any]], float | None], names: Sequence[str]) -> list[figures.Point]:
        points = []
        for each in names:
            for p, entries in study.points.items():
                done = [entry for entry in entries if each in entry.sets]
                lines = [measured(entry, each) for entry in done]
                if (place := _mean([x(line) for line in lines])) is not None:
                    bounds = _bounds(done, lines, counted[each])
                    low, high = (100 * bounds[0], 100 * bounds[1]) if bounds else (None, None)
                    rate = 100 * statistics.fmean(line["rate"] for line in lines)
                    points.append(figures.Point(place, rate, low, high, series[p]))
        return points

    if points := cost_of(_key("rtf"), [name]):
        show(figures.pareto({"": points}, "real-time factor", f"{unit} (%)"), f"{unit} on {name} against RTF")
    chunked = [each for each in study.sets if _split(study, each) == _split(study, name)]
    if len(points := cost_of(lambda line: _part(line, "chunk", 1 / FRAME_SECONDS), chunked)) > len(study.points):
        caption = f"{unit} on {_split(study, name)} against what a frame waits for"
        show(figures.pareto({"": points}, "chunk (s)", f"{unit} (%)"), caption)
    for metric, scale, label in (
        (f"val/{unit.lower()}", 100, f"{unit} on dev (%)"),
        ("train/loss", 1, "training loss"),
    ):
        curves: dict[str, list[figures.Curve]] = {}
        for entry in study.entries:
            if len(entry.curves.get(metric, [()])[0]) > 1:  # one value makes no curve
                steps, values = _smooth(*entry.curves[metric])
                curves.setdefault(series[entry.point], []).append((steps, [scale * value for value in values]))
        if curves:
            show(figures.learning_curves(curves, label, log=scale == 1), f"{label}, a curve for each run")
    if len(study.sets) > 1:
        rates_of: dict[str, dict[str, list[float]]] = {}
        for p, entries in study.points.items():
            for each in study.sets:
                if values := _rates(entries, each):
                    rates_of.setdefault(series[p], {}).setdefault(_plain(each), []).extend(values)
        bars = {
            who: {each: (100 * statistics.fmean(values), None, None) for each, values in by_set.items()}
            for who, by_set in rates_of.items()
        }
        show(figures.bars(bars, "error rate (%)"), "mean error rate on each test set")
    return section("figures", "Figures", key, element("div", drawn, class_="figures"))


def _unit(study: Study, name: str) -> Unit:
    return next(Unit(entry.sets[name]["unit"]) for entry in study.entries if name in entry.sets)


def _split(study: Study, name: str) -> str:
    return next(str(entry.sets[name].get("split", name)) for entry in study.entries if name in entry.sets)


def _smooth(steps: Sequence[float], values: Sequence[float]) -> figures.Curve:
    """Means of consecutive values, of which so many remain as a small figure can show."""
    size = -(-len(steps) // SHOWN_STEPS)
    mean_steps, means = (
        [statistics.fmean(row[i : i + size]) for i in range(0, len(row), size)] for row in (steps, values)
    )
    return mean_steps, means


def _routing(study: Study, name: str) -> Html:
    alarms = [
        element("p", element("strong", f"{study.label(e.point)} seed={e.seed}: "), alarm, class_="alarm")
        for e in study.entries
        for alarm in e.alarms
    ]
    maps = []
    for point, entries in study.points.items():
        with_experts = [e for e in entries if name in e.sets and e.sets[name].get("experts")]
        if with_experts:
            uneven = sum(
                any(dead(load) or variation(load) > UNEVEN for load in e.sets[name]["experts"].values())
                for e in with_experts
            )
            if uneven:
                what = f"a dead expert, or a load CV above {UNEVEN:g}, at some site on {name}."
                said = f"{uneven} of {len(with_experts)} runs have {what}"
                alarms.append(element("p", element("strong", f"{study.label(point)}: "), said, class_="alarm"))
            first, *others = (_heat_map(e.sets[name]["experts"], f"seed {e.seed}") for e in with_experts)
            rest = element("details", element("summary", f"{len(others)} more"), others) if others else None
            maps.append(element("div", element("h3", study.label(point)), first, rest))
    if not maps and not alarms:
        return Html("")
    note = (
        f"Load of each expert at each site on {name}, in % of the assignments: the darker, the more; red where it is "
        "dead. CV: standard deviation over mean."
    )
    return section(
        "routing",
        "Routing",
        alarms or element("p", f"No alarm in training, no dead expert and no load CV above {UNEVEN:g}.", class_="soft"),
        element("p", note, class_="note"),
        element("div", maps, class_="grid"),
    )


def _heat_map(loads: Mapping[str, Sequence[float]], caption: str) -> Html:
    most = max(map(len, loads.values()))
    head = element("tr", element("td", ""), [element("th", i, scope="col") for i in (*range(most), "CV")])
    body = []
    for site, load in loads.items():
        gone = dead(load)
        cells = [
            element(
                "td",
                f"{100 * share:.0f}",
                class_="dead" if expert in gone else None,
                style=f"--v:{min(share * len(load) / 4, 0.9):.2f}",
            )
            for expert, share in enumerate(load)
        ]
        missing = [element("td", "") for _ in range(most - len(load))]
        last = element("td", f"{variation(load):.2f}")
        body.append(element("tr", element("th", site, scope="row"), cells, missing, last))
    table = element("table", element("caption", caption), head, body, class_="map")
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label=f"loads, {caption}")


def _origin(study: Study) -> Html:
    """The command, the commit, the machine: all that it takes to repeat it."""
    kept = ("commit", "python", "versions")
    seen = Counter(
        tuple((k, _listed(e.results[k])) for k in kept if k in e.results)
        for e in study.entries
        if e.results is not None
    )
    facts = []
    for made, number in seen.items():
        text = "\n".join(f"{key}: {value}" for key, value in made)
        facts.append(
            element(
                "div", element("h3", f"{number} run{'s were' if number > 1 else ' was'} made by"), element("pre", text)
            )
        )
    listed = [
        element("tr", element("th", e.run.path.name, scope="row", class_="mono"), element("td", _badge(e.status)),
                element("td", study.label(e.point), class_="mono"), element("td", e.seed, class_="number"),
                element("td", e.command or f"config.yaml of {e.run.path.name}", class_="mono"),
                element("td", e.note))
        for e in study.entries
    ]  # fmt: skip
    runs = element("div", element("table", element("tbody", listed)), class_="scroll", tabindex=0, role="region",
                   aria_label="all runs")  # fmt: skip
    return section(
        "origin",
        "How it was made",
        element("pre", study.command) if study.command else None,
        element("p", f"Planned by commit {study.commit}.", class_="soft") if study.command and study.commit else None,
        facts,
        element("details", element("summary", f"All {len(study.entries)} runs and the command of each"), runs),
    )


def _listed(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
