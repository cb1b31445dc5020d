"""`moe-asr benchmark KIND`: speed with its receipt, beside what the machine could do at best."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moe_asr.columns import aligned
from moe_asr.config.benchmark import BenchmarkConfig, Kind, quickened

if TYPE_CHECKING:
    from moe_asr.analysis.headline import Row as ModelRow
    from moe_asr.measure.layer import Row
    from moe_asr.measure.loading import Row as LoadingRow
    from moe_asr.measure.machine import Peaks
    from moe_asr.measure.profile import Profile
    from moe_asr.measure.searches import Row as SearchRow
    from moe_asr.measure.timing import Spread

CONFIG = BenchmarkConfig


def run(config: BenchmarkConfig) -> None:
    import os
    from dataclasses import asdict, replace
    from pathlib import Path

    import torch

    from moe_asr.analysis.candidates import preset
    from moe_asr.config.compose import to_plain
    from moe_asr.errors import InputError
    from moe_asr.measure.machine import measure_peaks
    from moe_asr.measure.rtf import machine
    from moe_asr.measure.timing import by_cpu
    from moe_asr.runs.directory import environment, write_json
    from moe_asr.runs.process import keep_freed_memory
    from moe_asr.runs.recognizer import find_device

    for name in ("out", "figure"):
        folder = Path(getattr(config, name) or "x").parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise InputError(f"{folder} is no folder that can be written; choose another place with {name}=FILE.")
    compared = config.models if config.kind is Kind.rtf else ()
    for name in compared:  # a misspelt one is told before anything takes its time
        if not Path(name).exists():
            preset(name, config)
    config = quickened(config) if config.quick else config
    device = find_device(config.device)
    keep_freed_memory()
    print(f"{machine(device)}; {config.rounds} rounds")
    peaks = {}
    for threads in config.threads:
        torch.set_num_threads(threads)
        peaks[threads] = found = measure_peaks(config.quick, device)
        print(
            f"{threads} threads: {'CPU' if by_cpu(device) else 'wall'} time, median and quartiles; measured peaks: "
            f"fp32 {found.fp32 / 1e9:.0f}, bf16 {found.bf16 / 1e9:.0f} GFLOP/s, int8 {found.int8 / 1e9:.0f} GOP/s, "
            f"memory {found.read / 1e9:.1f} GB/s"
        )
    torch.set_num_threads(config.threads[0])
    results = _results(config, peaks)
    if config.out:
        speeds = {str(threads): asdict(found) for threads, found in peaks.items()}
        receipt = {"kind": config.kind.value, "machine": machine(device), "peaks": speeds}
        options = to_plain(replace(config, out=None))
        write_json(Path(config.out), {**receipt, **results, **environment(), "config": options})
    if config.figure:
        from moe_asr.analysis.figures import bars, save

        save(bars(_bars(results["rows"]), "real-time factor"), config.figure)


def _results(config: BenchmarkConfig, peaks: "dict[int, Peaks]") -> dict[str, Any]:
    """Measures, prints as it goes, and returns what is recorded."""
    from dataclasses import asdict

    alone = peaks[config.threads[0]]
    match config.kind:
        case Kind.profile:
            from moe_asr.measure.profile import profile

            profiled = profile(config, alone)
            print(_profile_table(profiled))
            return asdict(profiled)
        case Kind.layer:
            from moe_asr.measure.layer import layer_rows

            layers = layer_rows(config, alone)
            print(_layer_table(layers))
            return {"rows": [asdict(row) for row in layers]}
        case Kind.decode:
            from moe_asr.measure.searches import search_rows

            searches = search_rows(config)
            print(_search_table(searches, config.seconds))
            return {"rows": [asdict(row) for row in searches]}
        case Kind.data:
            from moe_asr.measure.loading import loading_rows

            stages, seconds = loading_rows(config)
            print(_loading_table(stages, seconds))
            return {"rows": [asdict(row) for row in stages], "audio_seconds": seconds}
        case Kind.rtf:
            from moe_asr.analysis.headline import headline

            if config.figure:
                import moe_asr.analysis.figures  # noqa: F401  (what it lacks is told before all the work)
            print(f"from samples to text; routing={config.routing}; ratios are to {config.models[0]}")
            found = []
            for group in headline(config, peaks):
                found += group
                print(_model_table(group), flush=True)
            return {"rows": [asdict(row) for row in found]}


def _bars(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float | None, float | None]]]:
    """RTF and its quartiles by model, and there by what differs between rows."""
    ways = ("precision", "mode", "chunk", "threads", "together")
    differing = [name for name in ways if len({row[name] for row in rows}) > 1] or ["mode"]

    def label(row: dict[str, Any]) -> str:
        words = {"chunk": f"chunk {row['chunk']}" if row["chunk"] else "full", "threads": f"{row['threads']} threads"}
        words["together"] = f"{row['together']} {'streams' if row['chunk'] else 'at once'}"
        return ", ".join(words.get(name, str(row[name])) for name in differing)

    found: dict[str, dict[str, tuple[float, float | None, float | None]]] = {}
    for row in rows:
        found.setdefault(row["model"], {})[label(row)] = row["rtf"]["median"], row["rtf"]["first"], row["rtf"]["third"]
    return found


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
    head = ["part", "GMAC", "ms", "quartiles", "greedy", "beam", "efficiency", "RTF"]
    return note + aligned([head, *rows])


def _layer_table(rows: "Sequence[Row]") -> str:
    head = ["routing", "frames", "experts", "backend", "ms", "quartiles", "x loop", "x dense", "limit ms", "x limit"]
    cells = []
    for row in rows:
        ratios = ["-", f"{row.ratio:.2f}"] if row.routing == "training" else [f"{row.ratio:.2f}", "-"]
        limits = [f"{1e3 * row.limit:.2f}", f"{row.seconds.median / row.limit:.2f}"]
        case = [row.routing, f"{row.frames}", f"{row.experts:.1f}", row.backend]
        cells.append([*case, *_ms(row.seconds), *ratios, *limits])
    return aligned([head, *cells])


def _search_table(rows: "Sequence[SearchRow]", seconds: float) -> str:
    head = ["search", "vocabulary", "beam", "ms per utterance", "quartiles", "frames/s", "RTF", "tokens"]
    cells = []
    for row in rows:
        case = [row.search, f"{row.vocab_size}", f"{row.beam}", *_ms(row.seconds)]
        speed = [f"{row.frames_per_second:.0f}", f"{row.seconds.median / seconds:.5f}", f"{row.tokens}"]
        cells.append([*case, *speed])
    return f"utterances of {seconds:g} s; rescoring and attention without the encoder and CTC\n" + aligned(
        [head, *cells]
    )


def _loading_table(rows: "Sequence[LoadingRow]", seconds: float) -> str:
    cells = [[row.stage, *_ms(row.seconds), f"{row.hours_per_second:.2f}"] for row in rows]
    return f"{seconds:.0f} s of audio\n" + aligned([["stage", "ms", "quartiles", "hours/s per core"], *cells])


def _model_table(rows: "Sequence[ModelRow]") -> str:
    """Of one precision: the models, what they cost, and the latency of streams."""
    sizes, costs, streams = [], [], []
    for row in {row.model: row for row in rows}.values():
        peak = max(other.peak for other in rows if other.model == row.model)
        counts = (f"{count / 1e6:.1f}" for count in (row.parameters, row.active))
        memory = (f"{size / 2**30:.2f}" for size in (row.resident, peak))
        times = (f"{row.load_seconds:.1f}", f"{row.prepare_seconds:.1f}")
        sizes.append([row.model, row.backend or "-", *counts, *times, *memory])
    for row in rows:
        way = [row.model, row.precision, row.mode, f"{row.chunk or 'full'}", f"{row.threads}", f"{row.together}"]
        speed = [f"{row.rtf.median:.4f}", f"{row.rtf.first:.4f}-{row.rtf.third:.4f}", f"{row.wall_rtf.median:.4f}"]
        speed += [f"{1 / row.rtf.median:.1f}", f"{row.ratio:.2f}"]
        work = ["-"] * 4
        if row.flops is not None and row.limit is not None:
            work = [f"{row.flops / 1e9:.1f}", f"{row.rtf.median / row.limit:.2f}"]
            work += [f"{row.computing:.2f}", f"{row.reading:.2f}"]
        experts = "-" if row.experts is None else f"{row.experts:.1f}"
        wer = "-" if row.wer is None else f"{100 * row.wer:.2f} %"
        costs.append([*way, *speed, *work, experts, f"{row.tokens:.0f}", wer])
        if row.streamed:
            streams.append([*way, *(f"{1e3 * seconds:.0f}" for seconds in vars(row.streamed).values())])
    way = ["model", "precision", "mode", "chunk", "threads", "at once"]
    cost = ["RTF", "quartiles", "wall", "RTFx", "ratio", "GFLOP/s", "x limit", "of peak", "of memory", "experts"]
    latency = ["first ms", "chunk p50", "p90", "p99", "final ms"]
    size = ["model", "experts", "M parameters", "active", "load s", "prepare s", "GiB", "peak GiB"]
    tables = [
        [size, *sizes],
        [[*way, *cost, "tokens", "WER"], *costs],
        *([[[*way, *latency], *streams]] if streams else []),
    ]
    return "\n".join(map(aligned, tables))


def _ms(seconds: "Spread") -> list[str]:
    return [f"{1e3 * seconds.median:.2f}", f"{1e3 * seconds.first:.2f}-{1e3 * seconds.third:.2f}"]
