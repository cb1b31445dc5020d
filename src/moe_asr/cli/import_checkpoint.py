"""`moe-asr import-checkpoint wenet DIR OUT`: another project's trained model as a run directory."""

from moe_asr.config.import_checkpoint import ImportConfig

CONFIG = ImportConfig


def run(config: ImportConfig) -> None:
    from pathlib import Path

    from moe_asr.errors import InputError
    from moe_asr.interop.wenet import import_wenet
    from moe_asr.models.u2pp import parameter_counts
    from moe_asr.runs.recognizer import Recognizer

    folder = Path(config.dir)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a directory; give the folder with train.yaml and the checkpoint.")
    written = import_wenet(folder, Path(config.out), config.checkpoint)
    recognizer = Recognizer.load(written.path)
    total, active = parameter_counts(recognizer.model)
    print(
        f"{written.path}: {total / 1e6:.3f} M parameters, {active / 1e6:.3f} M active, "
        f"{len(recognizer.tokenizer)} tokens ({recognizer.tokenizer.unit.value})"
    )
