"""`moe-asr train`: trains one model, or with -m every point of a grid."""

from typing import Any

from moe_asr.config.program import TrainConfig

CONFIG = TrainConfig


def run(config: TrainConfig) -> None:
    from pathlib import Path

    from moe_asr.config.compose import to_plain
    from moe_asr.measure.table import results_table
    from moe_asr.runs.directory import open_run, read_results

    if config.match is not None:  # before the run is named: solved widths are its own
        from moe_asr.measure.matching import matched

        config, line = matched(config, config.tokenizer.vocab_size)
        print(line)
    if config.dry_run:
        from moe_asr.runs.sweep import Job
        from moe_asr.training.forecast import forecast
        from moe_asr.training.sweep import run_of

        print(forecast([Job(run_of(config), {}, [], "")], [config]))
        return
    link = Path(config.runs, config.name) if config.name else None
    before = link.readlink() if link and link.is_symlink() else None
    folder = open_run(to_plain(config))
    if (results := read_results(folder)) is None:
        from moe_asr.runs.process import keep_freed_memory
        from moe_asr.training.train import train

        keep_freed_memory()
        results = train(config)
    else:
        print(f"{folder.path} is done already; its results:")
    print(results_table(results))
    moved = f" (which was {before})" if before and before.name != folder.path.name else ""
    print(f"run directory: {folder.path}" + (f", linked as {link}{moved}" if link else ""))


def sweep(overrides: list[str]) -> None:
    import signal

    from moe_asr.config.compose import multirun

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout` and `kill` end jobs as Ctrl-C does

    multirun("train", TrainConfig, overrides, job)


def job(composed: Any) -> None:
    """One job of a sweep, wherever a launcher of Hydra's has it run."""
    from hydra.core.hydra_config import HydraConfig

    from moe_asr.runs.sweep import supervise

    named = HydraConfig.get()
    supervise(named.sweep.dir, named.job.name)
