"""`moe-asr compare A B...`: what a change was worth, with its interval, per test set."""

from typing import Any

from moe_asr.columns import aligned, p_value
from moe_asr.config.compare import CompareConfig, TableFormat

CONFIG = CompareConfig


def run(config: CompareConfig) -> None:
    """Prints the table, as JSON where asked, and writes it to out=."""
    import json
    from pathlib import Path

    from moe_asr.errors import InputError
    from moe_asr.measure.comparison import Spread
    from moe_asr.measure.comparison_coverage import coverage_table
    from moe_asr.measure.comparison_files import compare
    from moe_asr.measure.comparison_power import DEFAULT, power_lines

    if config.simulate:
        for line in coverage_table(config.simulate):
            print(line, flush=True)
        return
    if not (config.systems or config.a):
        if config.power is None:
            raise InputError("Give what is to be compared: moe-asr compare RUN RUN..., the first being the baseline.")
        print("nothing to estimate from: a spread of 5 % between seeds and between speakers is assumed")
        print("\n".join(power_lines(DEFAULT, config.power, per_speaker=60)))
        return
    result = compare(config)
    if config.out:
        Path(config.out).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if config.format is TableFormat.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    print("\n".join(table(result)))
    single = [row for row in result["rows"] if "domains" not in row]
    for row in single if config.power is not None else ():
        about = f"{row['set'] or 'all'}, {row['b']}: "
        if row["spread"]:
            lines = power_lines(Spread(**row["spread"]), config.power or 0, row["utterances"] / row["speakers"])
            print("\n".join([about + lines[0], *lines[1:]]))
        else:
            print(f"{about}the spread over seeds is not known; give several seeds of each, and 5 speakers or more")


def table(result: dict[str, Any]) -> list[str]:
    """For the terminal."""
    from moe_asr.config.score import Unit

    rate = Unit(result["unit"]).rate.upper()
    what = {"methods": "these two methods", "checkpoints": "these two checkpoints"}[result["question"]]
    lines = [f"question: {what}; {rate}, normaliser {result['normalizer']}"]
    for label, (name, paths) in zip(_labels(), result["groups"].items(), strict=False):
        lines.append(f"  {label}  {name}" + (f"  ({len(paths)} runs)" if len(paths) > 1 else ""))
    lines += [f"note: {warning}" for warning in result["warnings"]]
    label_of = dict(zip(result["groups"], _labels(), strict=False))
    heads = [
        "set",
        "pair",
        f"{rate} of A",
        f"{rate} of other",
        "difference",
        "95 % interval",
        "relative",
        "95 % interval",
    ]
    heads += ["p", "Holm p", *(["MAPSSWE p", "Holm p"] if result["question"] == "checkpoints" else []), "verdict"]
    rows = [heads]
    for row in result["rows"]:
        cells = [row["set"] or "all", f"{label_of[row['b']]} - {label_of[row['a']]}"]
        cells += [f"{100 * row['rate_a']:.2f} %", f"{100 * row['rate_b']:.2f} %", f"{100 * row['difference']:+.2f}"]
        cells += [_between(row["difference_ci95"], 2), _relative(row["relative"]), _between(row["relative_ci95"], 1)]
        cells += [p_value(row["p"], "-"), p_value(row["p_holm"], "-")]
        if result["question"] == "checkpoints":
            cells += [p_value(row.get("mapsswe_p"), "-"), p_value(row["mapsswe_p_holm"], "-")]
        rows.append([*cells, row["verdict"].replace("B ", f"{label_of[row['b']]} ")])
    lines.append(aligned(rows))
    for method in dict.fromkeys(row["method"] for row in result["rows"]):
        sets = [row["set"] or "all" for row in result["rows"] if row["method"] == method]
        lines.append(f"interval of {', '.join(dict.fromkeys(sets))}: {method}")
    return lines


def _labels() -> list[str]:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return [*letters, *(first + second for first in letters for second in letters)]


def _between(bounds: list[float] | None, digits: int) -> str:
    return f"[{100 * bounds[0]:+.{digits}f}, {100 * bounds[1]:+.{digits}f}]" if bounds else "none"


def _relative(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f} %"
