"""`moe-asr benchmark KIND`: speed with its receipt, beside what the machine could do at best."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moe_asr.config.benchmark import BenchmarkConfig, Kind, quickened

if TYPE_CHECKING:
    from moe_asr.analysis.headline import Row as ModelRow
    from moe_asr.measure.layer import Row
    from moe_asr.measure.profile import Profile
    from moe_asr.measure.timing import Spread

CONFIG = BenchmarkConfig


def run(config: BenchmarkConfig) -> None:
    from dataclasses import asdict, replace
    from pathlib import Path

    import torch

    from moe_asr.analysis.headline import headline
    from moe_asr.config.compose import to_plain
    from moe_asr.errors import InputError
    from moe_asr.measure.layer import layer_rows
    from moe_asr.measure.machine import measure_peaks
    from moe_asr.measure.profile import profile
    from moe_asr.measure.rtf import machine
    from moe_asr.runs.directory import environment, write_json
    from moe_asr.runs.process import keep_freed_memory

    if config.out and not Path(config.out).parent.is_dir():
        raise InputError(f"{Path(config.out).parent} is no folder; choose another place with out=FILE.")
    config = quickened(config) if config.quick else config
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    peaks = measure_peaks(config.quick)
    clock = "CPU" if config.threads == 1 else "wall"
    print(f"{machine()}; {config.threads} threads; {clock} time, median and quartiles of {config.rounds} rounds")
    print(
        f"measured peaks: fp32 {peaks.fp32 / 1e9:.0f}, bf16 {peaks.bf16 / 1e9:.0f} GFLOP/s, "
        f"int8 {peaks.int8 / 1e9:.0f} GOP/s, memory {peaks.read / 1e9:.1f} GB/s"
    )
    if config.kind is Kind.profile:
        profiled = profile(config, peaks)
        print(_profile_table(profiled))
        results = asdict(profiled)
    elif config.kind is Kind.rtf:
        print(f"from samples to text; choice={config.choice}; ratios are to {config.models[0]}")
        found = []
        for group in headline(config, peaks):
            found += group
            print(_model_table(group), flush=True)
        results = {"rows": [asdict(row) for row in found]}
    else:
        rows = layer_rows(config, peaks)
        print(_layer_table(rows))
        results = {"rows": [asdict(row) for row in rows]}
    if config.out:
        receipt = {"kind": config.kind.value, "machine": machine(), "clock": clock, "peaks": asdict(peaks)}
        options = to_plain(replace(config, out=None))
        write_json(Path(config.out), {**receipt, **results, **environment(), "config": options})


def _profile_table(profile: "Profile") -> str:
    note = (
        f"{profile.audio_seconds:g} s of random features ({profile.frames} frames), random weights; "
        f"{profile.hypotheses} hypotheses of up to {profile.tokens} tokens; log-mel and text not included\n"
    )
    rows = [
        [
            row.part,
            f"{row.multiply_adds / 1e9:.2f}",
            *_ms(row.seconds),
            *("-" if share is None else f"{100 * share:.1f} %" for share in (row.of_greedy, row.of_beam)),
            "-" if row.efficiency is None else f"{row.efficiency:.2f}",
            f"{row.seconds.median / profile.audio_seconds:.4f}",
        ]
        for row in profile.rows
    ]
    return note + _table(["part", "GMAC", "ms", "quartiles", "greedy", "beam", "efficiency", "RTF"], rows)


def _layer_table(rows: "Sequence[Row]") -> str:
    head = ["routing", "frames", "experts", "backend", "ms", "quartiles", "x loop", "x dense", "limit ms", "x limit"]
    cells = []
    for row in rows:
        ratios = ["-", f"{row.ratio:.2f}"] if row.routing == "training" else [f"{row.ratio:.2f}", "-"]
        limits = [f"{1e3 * row.limit:.2f}", f"{row.seconds.median / row.limit:.2f}"]
        case = [row.routing, f"{row.frames}", f"{row.experts:.1f}", row.backend]
        cells.append([*case, *_ms(row.seconds), *ratios, *limits])
    return _table(head, cells)


def _model_table(rows: "Sequence[ModelRow]") -> str:
    """Of one precision: the models, what they cost, and the latency of streams."""
    sizes, costs, streams = [], [], []
    for row in {row.model: row for row in rows}.values():
        peak = max(other.peak for other in rows if other.model == row.model)
        counts = (f"{count / 1e6:.1f}" for count in (row.parameters, row.active))
        memory = (f"{size / 2**30:.2f}" for size in (row.resident, peak))
        sizes.append([row.model, row.backend or "-", *counts, f"{row.prepare_seconds:.1f}", *memory])
    for row in rows:
        way = [row.model, row.precision, row.mode, f"{row.chunk or 'full'}"]
        speed = [f"{row.rtf.median:.4f}", f"{row.rtf.first:.4f}-{row.rtf.third:.4f}", f"{row.wall_rtf.median:.4f}"]
        work = ["-", "-"]
        if row.flops is not None and row.limit is not None:
            work = [f"{row.flops / 1e9:.1f}", f"{row.limit / row.rtf.median:.2f}"]
        experts = "-" if row.experts is None else f"{row.experts:.1f}"
        wer = "-" if row.wer is None else f"{100 * row.wer:.2f} %"
        costs.append([*way, *speed, f"{row.ratio:.2f}", *work, experts, f"{row.tokens:.0f}", wer])
        if row.streamed:
            streams.append([*way, *(f"{1e3 * seconds:.0f}" for seconds in vars(row.streamed).values())])
    way = ["model", "precision", "mode", "chunk"]
    cost = ["RTF", "quartiles", "wall", "ratio", "GFLOP/s", "efficiency", "experts", "tokens", "WER"]
    latency = ["first ms", "chunk p50", "p90", "p99", "final ms"]
    tables = [_table(["model", "experts", "M parameters", "active", "prepare s", "GiB", "peak GiB"], sizes)]
    tables.append(_table([*way, *cost], costs))
    return "\n".join([*tables, *([_table([*way, *latency], streams)] if streams else [])])


def _ms(seconds: "Spread") -> list[str]:
    return [f"{1e3 * seconds.median:.2f}", f"{1e3 * seconds.first:.2f}-{1e3 * seconds.third:.2f}"]


def _table(head: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as needed, to the right but for the first."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in [head, *rows])
    return "\n".join(line[: widths[0]].strip().ljust(widths[0]) + line[widths[0] :] for line in lines)
