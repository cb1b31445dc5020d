"""`moe-asr evaluate RUN`: error rates with intervals, RTF and hypotheses of a trained model."""

from typing import Any

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
    from moe_asr.config.compose import compose_config, groups, to_plain
    from moe_asr.config.prepare import Corpus
    from moe_asr.config.program import TrainConfig
    from moe_asr.data.manifest import read_card
    from moe_asr.errors import InputError
    from moe_asr.measure.domains import domain_lines, domain_means, read_results
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
    other = config.data or trained.data.path
    named = config.data in groups()["data"] and not Path(other).is_dir()
    corpus = compose_config("train", TrainConfig, [f"data={other}"]).data if named else trained.data
    path = corpus.path if named else other
    suite = read_card(path).name == Corpus.domains
    if config.against and not suite:
        raise InputError(
            f"against= compares suites of domains, which {path} is none of; see `moe-asr prepare domains`."
        )
    others = read_results(config.against) if config.against else None
    data = dataclasses.replace(
        trained.data,
        path=path,
        test=config.sets or (list(read_card(path).splits) if suite else corpus.test),
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
    if config.figure and not Path(config.figure).absolute().parent.is_dir():
        raise InputError(f"{Path(config.figure).parent} is no folder; choose another place with figure=FILE.")
    if config.figure:  # refused before hours of work are lost, where matplotlib is missing
        from moe_asr.analysis.figures import latency, save
    asked = dataclasses.replace(trained, data=data)
    streams = (config.streams or sys.maxsize) if config.latency else 0
    results: dict[str, Any] = {
        "test": evaluate_splits(recognizer, asked, data.test, decode, folder, config.modes, config.lefts, streams),
        "data": data.path,
        "routing": to_plain(config.routing) if config.routing.choose else None,
        "largest_trained_chunk": trained.chunk.largest if trained.chunk.dynamic else None,
        "tuned": receipt and {key: receipt[key] for key in ("weights", "data", "sets", "commit")},
        "precision": config.precision,
        "experts": config.experts,
        "trained": to_plain(trained),
        **environment(),
    }
    if suite:
        results["domains"] = domain_means(results["test"], others)
    write_json(folder / "results.json", results)
    print("\n".join([results_table(results), *domain_lines(results.get("domains", {}))]))
    print(f"results: {folder}")
    if config.figure:
        save(latency(results), config.figure)
