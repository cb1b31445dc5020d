"""`moe-asr trace RUN`: which experts a trained model chooses, for every frame of a corpus."""

from moe_asr.config.routing import TraceConfig

CONFIG = TraceConfig


def run(config: TraceConfig) -> None:
    from datetime import datetime
    from pathlib import Path

    import torch

    from moe_asr.analysis.forcing import forced
    from moe_asr.analysis.record import record_trace
    from moe_asr.config.compose import to_plain
    from moe_asr.data.manifest import read_split
    from moe_asr.errors import InputError
    from moe_asr.runs.directory import environment
    from moe_asr.runs.process import keep_freed_memory
    from moe_asr.runs.recognizer import Recognizer

    torch.set_num_threads(config.threads)
    keep_freed_memory()
    recognizer = Recognizer.load(config.run, config.device, config.precision, config.experts, config.initial)
    recognizer = forced(recognizer, config.routing)
    data = config.data or recognizer.config.data.path
    splits = config.sets or recognizer.config.data.test
    if not config.out and not Path(config.run).is_dir():
        raise InputError(f"{config.run} is a file; say with out=FOLDER where the trace goes.")
    moment = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path(config.out) if config.out else Path(config.run) / "traces" / moment
    about = {
        "run": config.run,
        "data": data,
        "sets": splits,
        "routing": to_plain(config.routing) if config.routing.choose else None,
        "initial": config.initial,
        "precision": config.precision,
        **environment(),
    }
    whole = {split: read_split(data, split) for split in splits}
    sets = {split: cuts[:: -(-len(cuts) // (config.limit or len(cuts)))] for split, cuts in whole.items()}
    asked = (config.shard_frames, about, config.probabilities, config.align)
    card = record_trace(recognizer, sets, config.decode, folder, *asked)
    lost = f"; {len(card['unreadable'])} could not be read" if card["unreadable"] else ""
    print(f"{card['utterances']} utterances, {len(card['sites'])} sites{lost}")
    print(f"trace: {folder}")
