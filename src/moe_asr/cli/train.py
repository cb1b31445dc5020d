"""`moe-asr train`: trains one model, or with -m every point of a grid."""

from moe_asr.config.program import TrainConfig

CONFIG = TrainConfig


def run(config: TrainConfig) -> None:
    from moe_asr.analysis.evaluation import results_table
    from moe_asr.runs.process import keep_freed_memory
    from moe_asr.training.train import train

    keep_freed_memory()
    results = train(config)
    print(results_table(results))
    print(f"run directory: {config.runs}/{config.name or results['config_hash']}")
