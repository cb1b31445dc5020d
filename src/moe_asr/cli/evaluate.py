"""`moe-asr evaluate RUN`: error rates with intervals, RTF and hypotheses of a trained model."""

from moe_asr.config.commands import EvaluateConfig

CONFIG = EvaluateConfig


def run(config: EvaluateConfig) -> None:
    import dataclasses
    import sys
    from datetime import datetime
    from pathlib import Path

    import torch

    from moe_asr.analysis.evaluation import evaluate_splits
    from moe_asr.analysis.forcing import forced
    from moe_asr.analysis.latency_figure import latency_figure
    from moe_asr.config.compose import to_plain
    from moe_asr.errors import InputError
    from moe_asr.measure.normalize import normalizer
    from moe_asr.measure.table import results_table
    from moe_asr.runs.directory import environment, write_json
    from moe_asr.runs.process import keep_freed_memory
    from moe_asr.runs.recognizer import Recognizer
    from moe_asr.runs.tuned import with_tuned

    normalizer(config.normalizer or "none")
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    recognizer = Recognizer.load(config.run, config.device, config.precision, config.experts)
    recognizer = forced(recognizer, config.routing)
    trained = recognizer.config
    if config.tuned and config.modes:
        raise InputError("tuned=true has the weights of one mode: write decode.mode, not modes.")
    decode, receipt = with_tuned(config.decode, config.run) if config.tuned else (config.decode, None)
    data = dataclasses.replace(
        trained.data,
        path=config.data or trained.data.path,
        test=config.sets or trained.data.test,
        normalizer=config.normalizer or trained.data.normalizer,
    )
    moment = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path(config.out) if config.out else Path(config.run) / "evaluations" / moment
    if not config.out and not Path(config.run).is_dir():
        raise InputError(f"{config.run} is a file; say with out=FOLDER where the results go.")
    try:
        (folder / "hypotheses").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The results cannot be written ({error}); choose a folder with out=FOLDER.") from error
    asked = dataclasses.replace(trained, data=data)
    streams = (config.streams or sys.maxsize) if config.latency else 0
    results = {
        "test": evaluate_splits(recognizer, asked, data.test, decode, folder, config.modes, config.lefts, streams),
        "data": data.path,
        "routing": to_plain(config.routing) if config.routing.choose else None,
        "largest_trained_chunk": trained.chunk.largest if trained.chunk.dynamic else None,
        "tuned": receipt and {key: receipt[key] for key in ("weights", "data", "sets", "commit")},
        "precision": config.precision,
        "experts": config.experts,
        **environment(),
    }
    write_json(folder / "results.json", results)
    if config.figure:
        Path(config.figure).write_text(latency_figure(results), encoding="utf8")
    print(results_table(results))
    print(f"results: {folder}")
