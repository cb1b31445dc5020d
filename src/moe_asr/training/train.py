"""A training run from its configuration to results.json; run again, it goes on where it was, or says it is done."""

import json
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lhotse.cut import Cut
from lightning_fabric.plugins.environments import LightningEnvironment
from omegaconf import OmegaConf
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor

from moe_asr.analysis.evaluation import evaluate_run
from moe_asr.config.compose import to_plain
from moe_asr.config.data import FeaturesConfig
from moe_asr.config.program import Accelerator, LoggerMode, TrainConfig, UpcycleConfig
from moe_asr.data.batches import EvaluationBatches, sample_cuts, sample_hours
from moe_asr.data.epoch_plan import EpochPlan
from moe_asr.data.manifest import Problem, read_card, read_split, split_size
from moe_asr.data.selection import learn_tokenizer, select_for_training, summary
from moe_asr.errors import InputError, JobError
from moe_asr.features.cmvn import feature_statistics
from moe_asr.features.tokenizer import Tokenizer, read_sentencepiece
from moe_asr.measure import flops
from moe_asr.measure.expert_use import Watch
from moe_asr.measure.matching import matched
from moe_asr.models.inference import prepare
from moe_asr.models.u2pp import AsrModel, parameter_counts
from moe_asr.models.upcycling import upcycled
from moe_asr.randomness import numpy_rng
from moe_asr.runs.checkpoint import Checkpoint, build, build_initial, load_checkpoint, save_checkpoint, save_tensors
from moe_asr.runs.directory import (
    AppendLog,
    RunDirectory,
    discard,
    environment,
    link,
    only_process,
    open_run,
    read_results,
    write_atomically,
    write_json,
)
from moe_asr.runs.process import keep_freed_memory
from moe_asr.runs.recognizer import Recognizer
from moe_asr.training.averaging import Candidate, average, retain
from moe_asr.training.logs import Log, MetricsCsv, ProgressDisplay, WandbRun
from moe_asr.training.module import AsrTraining, TrainingData
from moe_asr.training.optimisation import freeze
from moe_asr.training.ranks import companions
from moe_asr.training.schedule import segments, steps_of


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains, averages, evaluates on dev and test, and returns what results.json holds; at once if the run is done."""
    config, _ = matched(config, config.tokenizer.vocab_size)
    check_accelerator(config)
    resolved = to_plain(config)
    run = open_run(resolved)
    if (done := read_results(run)) is not None:
        return done
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    with only_process(run):
        state = recovery_state(run)
        try:
            tokenizer, data, problems = load_data(config, state)
            model = initial_model(config, tokenizer, data.cuts, state)
        except InputError:
            if state is None:  # what was refused leaves nothing behind, and a link where it was
                discard(run)
            raise
        if config.name:
            link(run.path.parent / config.name, run.path)
        write_atomically(run.path / "config.yaml", lambda file: file.write(OmegaConf.to_yaml(resolved)))
        write_json(run.path / "environment.json", environment())
        report_problems(run, problems, len(data.cuts) + len(problems))
        print(outline(config, model))
        wandb = (
            None if config.logger.mode is LoggerMode.disabled else WandbRun(config.logger, run, config.name, resolved)
        )
        try:
            recorder = fit(config, run, model, tokenizer, data, state, [wandb] if wandb else [])
            report_problems(run, problems + recorder.problems, len(data.cuts) + len(problems))
            results = finish(config, run, model, tokenizer, data, recorder)
            if wandb:
                wandb.summarize(results)
        finally:
            if wandb:
                wandb.run.finish()
    return results


def finish(
    config: TrainConfig,
    run: RunDirectory,
    model: AsrModel,
    tokenizer: Tokenizer,
    data: TrainingData,
    recorder: "Recorder",
) -> dict[str, Any]:
    """Averages the kept checkpoints into the final model, evaluates it, and writes results.json."""
    weights = average([run.path / "checkpoints" / c.file for c in recorder.candidates])
    save_checkpoint(run.model, Checkpoint(config, tokenizer, weights))
    model.load_state_dict(weights)
    total, active = parameter_counts(model)
    recognizer = Recognizer.of(model, tokenizer, config, device="cuda" if uses_gpu(config) else "cpu")
    prepare(model)  # as `evaluate` does, so that their speeds are comparable
    results = {
        **evaluate_run(recognizer, config, run.path),
        "params_total": total,
        "params_active": active,
        "train_hours": sum(cut.duration for cut in data.cuts) / 3600,
        "train_flops": training_flops(config, data, len(tokenizer)),
        "train_seconds": recorder.seconds,
        "averaged_steps": [c.step for c in recorder.candidates],
        "alarms": [asdict(alarm) for alarm in recorder.watch.alarms],
        "skipped_steps": recorder.watch.skipped_in_all,
        **environment(),
        "config_hash": run.path.name,
        "seed": config.seed,
    }
    write_json(run.results, results)
    return results


def training_flops(config: TrainConfig, data: TrainingData, vocab_size: int) -> float:
    """Of all optimiser steps, for the audio as it was recorded."""
    batches = len(data.plan)
    epochs = segments(batches, config.trainer)[-1].last_step / steps_of(batches, config.trainer.accumulate)
    rate = flops.training(config.model, config.moe, config.features.mel_bins, vocab_size)
    return rate * epochs * sum(cut.duration for cut in data.cuts)


def check_accelerator(config: TrainConfig) -> None:
    if uses_gpu(config) and not torch.cuda.is_available():
        raise InputError("torch sees no GPU here; write trainer=cpu, or install torch's build for a GPU.")
    if uses_gpu(config) and config.trainer.devices > (count := torch.cuda.device_count()):
        raise InputError(f"trainer.devices={config.trainer.devices} is more than the {count} GPUs here; write {count}.")


def uses_gpu(config: TrainConfig) -> bool:
    wanted = config.trainer.accelerator
    return wanted is Accelerator.gpu or (wanted is Accelerator.auto and torch.cuda.is_available())


def load_splits(config: TrainConfig, names: list[str]) -> list[Cut]:
    return [cut for name in names for cut in read_split(config.data.path, name)]


def load_data(config: TrainConfig, state: dict[str, Any] | None) -> tuple[Tokenizer, TrainingData, list[Problem]]:
    cuts = load_splits(config, config.data.train)
    dev = load_splits(config, config.data.dev)
    for name in config.data.test:  # refused before the training that would be lost
        split_size(Path(config.data.path), name)
    if config.data.limit is not None:
        cuts = sample_cuts(cuts, config.data.limit, numpy_rng("limit", config.seed))
    if config.data.hours is not None:
        cuts = sample_hours(cuts, config.data.hours, numpy_rng("hours", config.seed))
    if state is not None:
        tokenizer = Tokenizer.from_dict(state["tokenizer"])
    elif source := config.tokenizer.file or config.init_from:
        pieces = source.endswith(".model")
        tokenizer = read_sentencepiece(source) if pieces else load_checkpoint(source).tokenizer
        if tokenizer.unit is not config.tokenizer.unit:
            unit = tokenizer.unit.value
            raise InputError(f"{source} was trained on {unit} tokens: write tokenizer.unit={unit} too.")
    else:
        tokenizer = learn_tokenizer(config.tokenizer, cuts)
    corpus = read_card(config.data.path).config_hash
    if state is not None and state["corpus"] != corpus:
        raise InputError(
            f"{config.data.path} was prepared anew since this run began, so it cannot go on; "
            f"prepare it as before, or start over in another runs= folder."
        )
    usable, tokens, problems = select_for_training(
        cuts, tokenizer, config.data, config.features, config.augment, config.model.encoder.subsampling
    )
    if not usable:
        raise InputError(f"No training utterance can be used: {summary(problems, len(cuts))}.")
    if not dev:
        raise InputError("There is no dev utterance to select the model by; name a split in data.dev.")
    slowest = tuple(cut.duration / min(config.augment.speeds) for cut in usable)
    plan = EpochPlan(slowest, config.batch, config.seed, ranks=config.trainer.devices)
    return tokenizer, TrainingData(usable, tokens, plan, dev, corpus), problems


def report_problems(run: RunDirectory, problems: list[Problem], total: int) -> None:
    problems = list(dict.fromkeys(problems))  # unreadable audio is met again in every epoch
    lines = "".join(json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in problems)
    write_atomically(run.path / "problems.jsonl", lambda file: file.write(lines))
    if problems:
        print(f"{summary(problems, total)}; see {run.path / 'problems.jsonl'}.")


def initial_model(
    config: TrainConfig, tokenizer: Tokenizer, cuts: Sequence[Cut], state: dict[str, Any] | None
) -> AsrModel:
    """The model to go on with: of the recovery checkpoint, or new (with the weights of `init_from` where they fit).

    Raises InputError for a dense `init_from` that cannot become the mixture.
    """
    model = build_initial(config, tokenizer)
    if state is not None:
        model.load_state_dict(state["weights"])
    else:
        experts: dict[str, Tensor] = {}
        if config.init_from:
            source = load_checkpoint(config.init_from)
            experts = upcycled(model, config, source.config, source.weights)
            adopt(model, {**source.weights, **experts})
            if experts and config.upcycle != UpcycleConfig():
                print("The experts differ (upcycle), so the outputs are not those of the dense model.")
        if not experts:  # a dense model that becomes a mixture keeps the statistics that its outputs depend on
            sample = sample_cuts(cuts, config.features.cmvn_utterances, numpy_rng("cmvn", config.seed))
            model.encoder.cmvn.set_cmvn(*global_cmvn(sample, config.features))
    choose_trained(model, config)
    return model


def choose_trained(model: AsrModel, config: TrainConfig) -> None:
    """Freezes what the configuration names, and what no loss reaches: of all the rest, every process has gradients."""
    freeze(model, config.freeze)
    for part in model.idle_parts():
        part.requires_grad_(False)


def outline(config: TrainConfig, model: AsrModel) -> str:
    """What is trained, in a line: a model without experts cannot be taken for one with them."""
    total, active = (count / 1e6 for count in parameter_counts(model))
    sites, moe = len(model.routers.sites), config.moe
    if sites == 0:
        return f"0 MoE sites: a dense model of {total:.2f} M parameters."
    routers = len(model.routers.routers)
    return (
        f"{sites} MoE sites ({moe.placement}) with {moe.num_experts} experts each, top {moe.top_k}, "
        f"{routers} router{'s' * (routers > 1)} ({moe.sharing}); {total:.2f} M parameters, {active:.2f} M active."
    )


def adopt(model: AsrModel, weights: dict[str, Tensor]) -> None:
    """Copies every parameter whose name and shape agree, and says which start anew."""
    own = model.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    anew = sorted(set(own) - set(fitting))
    model.load_state_dict({**own, **fitting})
    print(f"{len(fitting)} of {len(own)} tensors taken over" + (f"; new: {', '.join(anew)}" if anew else "") + ".")


def global_cmvn(cuts: list[Cut], features: FeaturesConfig) -> tuple[Tensor, Tensor]:
    batches = EvaluationBatches(cuts, features, size=16, seconds=300.0)
    problems: list[Problem] = []

    def readable() -> Iterator[tuple[Tensor, Tensor]]:
        for i in range(len(batches)):
            loaded = batches[i]
            problems.extend(loaded.problems)
            if loaded.batch is not None:
                yield loaded.batch.features, loaded.batch.feature_lengths

    try:
        return feature_statistics(readable()).mean_istd()
    except InputError as error:
        if not problems:
            raise
        raise InputError(f"No training audio can be used; the first problem: {problems[0].detail}") from error


class Recorder(pl.Callback):
    """Writes a recovery checkpoint at the end of every segment, after the validation due there, and shows progress."""

    def __init__(
        self,
        run: RunDirectory,
        tokenizer: Tokenizer,
        logs: dict[str, AppendLog],
        state: dict[str, Any] | None,
        shown: ProgressDisplay,
    ) -> None:
        self.run, self.tokenizer, self.logs, self.shown = run, tokenizer, logs, shown
        self.candidates = [Candidate(**c) for c in state["candidates"]] if state else []
        self.done = state["segments"] if state else 0
        self.started = time.monotonic() - (state["seconds"] if state else 0.0)
        self.problems: list[Problem] = []
        self.watch = Watch()

    @property
    def seconds(self) -> float:
        """Wall time of training, over all parts of a run that was interrupted."""
        return time.monotonic() - self.started

    def on_train_batch_end(self, trainer: pl.Trainer, module: AsrTraining, *args: Any) -> None:  # type: ignore[override]
        self.shown.step(module.step, module.last_loss)

    def on_validation_end(self, trainer: pl.Trainer, module: AsrTraining) -> None:  # type: ignore[override]
        self.shown.line(module.validation_line)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: AsrTraining) -> None:  # type: ignore[override]
        if not trainer.is_global_zero:
            return
        segment, folder = module.segment, self.run.path / "checkpoints"
        settings = module.config.trainer
        before = self.candidates
        if segment.validate:
            candidate = Candidate(module.step, module.dev_error)
            save_tensors(folder / candidate.file, module.model.state_dict())
            self.candidates = retain([*before, candidate], settings.keep, settings.average)
        self.done += 1
        save_tensors(
            self.run.recovery,
            {
                "segments": self.done,
                "weights": module.model.state_dict(),
                "optimizer": trainer.optimizers[0].state_dict(),
                "tokenizer": self.tokenizer.to_dict(),
                "candidates": [asdict(c) for c in self.candidates],
                "offsets": {name: log.offset() for name, log in self.logs.items()},
                "seconds": self.seconds,
                "corpus": module.data.corpus,
                "watch": module.watch.to_dict(),
            },
        )
        # Only now: until the recovery checkpoint names the new candidates, a killed run needs the old ones.
        keep = {c.file for c in self.candidates}
        for file in folder.glob("step=*.pt"):
            if file.name not in keep:
                file.unlink()


def fit(
    config: TrainConfig,
    run: RunDirectory,
    model: AsrModel,
    tokenizer: Tokenizer,
    data: TrainingData,
    state: dict[str, Any] | None,
    loggers: list[Log],
) -> Recorder:
    """Trains what is left of the run; the recorder knows the models to average and the seconds of all its parts."""
    steps = segments(len(data.plan), config.trainer)[-1].last_step
    offsets = state["offsets"] if state else {}
    logs = {name: AppendLog(run.path / name, offsets.get(name, 0)) for name in ("metrics.csv", "ledger.jsonl")}
    module = prepared(config, model, tokenizer, data, state, logs["ledger.jsonl"])
    done_steps = module.segments[0].first_step if module.segments else steps
    if state is None:
        logs["metrics.csv"].write_rows([("step", "metric", "value")])
    else:
        print(f"Going on with {run.path} after step {done_steps} of {steps}.")
        for logger in loggers:
            logger.catch_up(run.path / "metrics.csv")
    display = ProgressDisplay(steps, done_steps, config.trainer.progress)
    recorder = Recorder(run, tokenizer, logs, state, display)
    loggers = [MetricsCsv(logs["metrics.csv"]), *loggers]
    try:
        if module.segments:
            with companions(config.trainer.devices, uses_gpu(config), follow, config, run, tokenizer, data):
                lightning(config, len(module.segments), run.path, loggers, [recorder]).fit(module)
    except SystemExit as ended:  # how Lightning answers Ctrl-C
        raise KeyboardInterrupt from ended
    finally:
        display.close()
        for log in logs.values():
            log.close()
    recorder.problems, recorder.watch = module.problems, module.watch
    if 0 < module.step <= module.watch.skipped_in_all:
        raise JobError("Every step was skipped, as none was finite: lower optim.lr, or look at the data.")
    return recorder


def follow(config: TrainConfig, run: RunDirectory, tokenizer: Tokenizer, data: TrainingData) -> None:
    """What every process but the first does in `fit`: it trains on batches of its own, and writes nothing.

    Its weights are those of the first, which sends them before the first step.
    """
    keep_freed_memory()
    model = build(config, tokenizer)
    choose_trained(model, config)
    module = prepared(config, model, tokenizer, data, recovery_state(run), None)
    lightning(config, len(module.segments), run.path, [], []).fit(module)


def prepared(
    config: TrainConfig,
    model: AsrModel,
    tokenizer: Tokenizer,
    data: TrainingData,
    state: dict[str, Any] | None,
    ledger: AppendLog | None,
) -> AsrTraining:
    """What is left to train of the run."""
    left = segments(len(data.plan), config.trainer)[state["segments"] if state else 0 :]
    watch = Watch.from_dict(state["watch"]) if state and "watch" in state else Watch()
    return AsrTraining(model, tokenizer, config, data, left, ledger, state["optimizer"] if state else None, watch)


def recovery_state(run: RunDirectory) -> dict[str, Any] | None:
    """What the run goes on from; None where it begins. Raises InputError for a file that is damaged."""
    if not run.recovery.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(run.recovery, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds
        raise InputError(
            f"{run.recovery} is damaged: remove it, and the same command trains from the start."
        ) from error
    return state


def lightning(
    config: TrainConfig, epochs: int, folder: Path, loggers: Sequence[Logger], callbacks: list[pl.Callback]
) -> pl.Trainer:
    # Lightning's advice on workers and log intervals, and its greeting, say nothing about this run.
    warnings.filterwarnings("ignore", ".*does not have many workers.*|.*number of training batches.*")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*|.*across ranks is zero.*")
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # but in a dimension of size 1
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    many = config.trainer.devices > 1
    return pl.Trainer(
        accelerator=config.trainer.accelerator.value,
        devices=config.trainer.devices,
        strategy=Joined() if many else "auto",
        plugins=[] if many else [LightningEnvironment()],  # not that of SLURM, which wants `srun` and takes signals
        precision=config.trainer.precision.value,
        max_epochs=epochs,
        accumulate_grad_batches=config.trainer.accumulate,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
        logger=loggers,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class Joined(DDPStrategy):
    """Distributed data parallelism among the processes of a group that exists already.

    Buffers are those of the first process: so are the running statistics of a batch norm, which every process
    normalises by its own batch.
    """

    def __init__(self) -> None:
        super().__init__(cluster_environment=_Rank(), find_unused_parameters=False)

    def _configure_launcher(self) -> None:
        """There is nothing to launch."""


class _Rank(LightningEnvironment):
    def local_rank(self) -> int:
        return torch.distributed.get_rank()
