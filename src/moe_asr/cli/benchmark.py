"""`moe-asr benchmark KIND`: speed with its receipt, beside what the machine could do at best."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moe_asr.config.benchmark import BenchmarkConfig, Kind, quickened

if TYPE_CHECKING:
    from moe_asr.measure.layer import Row
    from moe_asr.measure.profile import Profile
    from moe_asr.measure.timing import Spread

CONFIG = BenchmarkConfig


def run(config: BenchmarkConfig) -> None:
    from dataclasses import asdict, replace
    from pathlib import Path

    import torch

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


def _ms(seconds: "Spread") -> list[str]:
    return [f"{1e3 * seconds.median:.2f}", f"{1e3 * seconds.first:.2f}-{1e3 * seconds.third:.2f}"]


def _table(head: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as needed, to the right but for the first."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in [head, *rows])
    return "\n".join(line[: widths[0]].strip().ljust(widths[0]) + line[widths[0] :] for line in lines)
