"""`moe-asr train`: trains one model, or with -m every point of a grid."""

from moe_asr.config.program import TrainConfig

CONFIG = TrainConfig


def run(config: TrainConfig) -> None:
    from moe_asr.config.compose import to_plain
    from moe_asr.measure.table import results_table
    from moe_asr.runs.directory import open_run, read_results

    if config.match is not None:  # before the run is named: solved widths are its own
        from moe_asr.measure.matching import matched

        config, line = matched(config, config.tokenizer.vocab_size)
        print(line)
    folder = open_run(to_plain(config))
    if (results := read_results(folder)) is None:
        from moe_asr.runs.process import keep_freed_memory
        from moe_asr.training.train import train

        keep_freed_memory()
        results = train(config)
    else:
        print(f"{folder.path} is done already; its results:")
    print(results_table(results))
    print(f"run directory: {folder.path}" + (f", linked as {config.runs}/{config.name}" if config.name else ""))
