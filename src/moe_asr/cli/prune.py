"""`moe-asr prune RUN OUT num_experts=N`: a run with fewer experts, those that its dev set uses most."""

from moe_asr.config.prune import PruneConfig

CONFIG = PruneConfig


def run(config: PruneConfig) -> None:
    """Prints what every site lost, with its load."""
    from collections import defaultdict
    from dataclasses import asdict
    from pathlib import Path

    import torch

    from moe_asr.analysis.pruning import prune
    from moe_asr.config.model import require
    from moe_asr.data.manifest import read_split
    from moe_asr.models.u2pp import parameter_counts
    from moe_asr.runs.checkpoint import write_run
    from moe_asr.runs.directory import RunDirectory
    from moe_asr.runs.recognizer import Recognizer

    written = RunDirectory(Path(config.out))
    require(not written.model.exists(), f"{written.path} holds a model already; choose another folder.")
    torch.set_num_threads(config.threads)
    recognizer = Recognizer.load(config.run, config.device)
    before, data = parameter_counts(recognizer.model), config.data or recognizer.config.data.path
    sets = config.sets or recognizer.config.data.dev
    cuts = [cut for name in sets for cut in read_split(data, name)]
    checkpoint, removed = prune(recognizer, cuts, config.num_experts, config.method)
    origin = {"run": config.run, "method": config.method.value, "data": data, "sets": sets}
    write_run(written, checkpoint, {"pruned": {**origin, "removed": [asdict(gone) for gone in removed]}})
    lost = defaultdict(list)
    for gone in removed:
        merged = "" if gone.into is None else f" into {gone.into}"
        lost[gone.site].append(f"{gone.expert}{merged} ({100 * gone.load:.1f} %)")
    for site, experts in lost.items():
        print(f"{site:<28} removed {', '.join(experts)}")
    after = parameter_counts(Recognizer.load(written.path).model)
    counts = (f"{a / 1e6:.3f} M of {b / 1e6:.3f} M" for a, b in zip(after, before, strict=True))
    print(f"{written.path}: {' parameters, '.join(counts)} active")
