"""What jobs would cost, before any is trained: parameters, FLOPs of training, and about the time they take."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from moe_asr.columns import aligned
from moe_asr.config.program import TrainConfig
from moe_asr.data.batches import PlannedBatch, TrainingBatches
from moe_asr.data.manifest import split_size
from moe_asr.features.tokenizer import Tokenizer
from moe_asr.measure import flops
from moe_asr.models.u2pp import build_model, parameter_counts
from moe_asr.runs.checkpoint import build
from moe_asr.runs.directory import Status
from moe_asr.runs.process import keep_freed_memory
from moe_asr.runs.sweep import Job, clock
from moe_asr.training.module import TrainingData
from moe_asr.training.train import load_data, uses_gpu


def forecast(jobs: Sequence[Job], configs: Sequence[TrainConfig]) -> str:
    """A table of the jobs; the time per FLOP is that of the runs that are done, or else of a step of the first job."""
    first = configs[0]
    tokenizer, data, _ = load_data(first, None)
    done, work, cells = [], [], []
    for job, config in zip(jobs, configs, strict=True):
        known = (config.tokenizer, config.data.path) == (first.tokenizer, first.data.path)
        vocab_size, mel_bins = (
            len(tokenizer) if known else config.tokenizer.vocab_size,
            config.features.mel_bins,
        )
        with torch.device("meta"):
            model = build_model(
                config.model, config.moe, config.router, config.loss, vocab_size=vocab_size, mel_bins=mel_bins
            )
        flop = flops.training(config.model, config.moe, mel_bins, vocab_size) * audio_seconds(config)
        cells.append([job.label, job.status.value, *(f"{count / 1e6:.2f}" for count in parameter_counts(model))])
        work.append(flop)
        if job.results is not None:
            done.append((job.results["train_seconds"], flop))
    if done:
        seconds, flop = map(sum, zip(*done, strict=True))
        rate, source = seconds / flop, f"{len(done)} done run{'s' * (len(done) > 1)}"
    else:
        rate, source = seconds_per_flop(first, tokenizer, data), "a step of the first job"
    rows = [["", "status", "M parameters", "active", "PFLOP", "about"]]
    rows += [[*row, f"{flop / 1e15:.3f}", clock(rate * flop)] for row, flop in zip(cells, work, strict=True)]
    left = sum(rate * flop for job, flop in zip(jobs, work, strict=True) if job.status is not Status.done)
    return f"{aligned(rows)}\n{clock(left)} of training left, at the speed of {source}; evaluation comes on top."


def audio_seconds(config: TrainConfig) -> float:
    """Of training audio that passes in all epochs, each repetition counted."""
    data, trainer = config.data, config.trainer
    sizes = [split_size(Path(data.path), split) for split in data.train]
    hours, utterances = sum(size.hours for size in sizes), sum(size.utterances for size in sizes)
    hours *= min(1.0, data.limit / utterances) if data.limit else 1.0
    seconds = 3600 * min(hours, data.hours or hours) * trainer.epochs
    step = config.batch.seconds * trainer.accumulate * trainer.devices
    return seconds if trainer.max_steps < 0 else min(seconds, trainer.max_steps * step)


def seconds_per_flop(config: TrainConfig, tokenizer: Tokenizer, data: TrainingData) -> float:
    """Of reading, augmenting, forward and backward pass of one batch of usual length, after another as a warm-up."""
    keep_freed_memory()
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    device = "cuda" if uses_gpu(config) else "cpu"
    planned = sorted(data.plan.batches(0), key=lambda members: sum(data.plan.durations[i] for i in members))
    usual = PlannedBatch(0, 0, planned[len(planned) // 2], 1)
    batches = TrainingBatches(data.cuts, data.tokens, [usual] * 2, config.features, config.augment, config.seed)
    model = build(config, tokenizer).to(device).train()
    seconds = flop = 0.0
    for i in range(2):
        started = time.perf_counter()
        batch = batches[i].to(device).batch
        if batch is None:
            break
        model(batch)[0].total.backward()
        if uses_gpu(config):
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        flop = batch.audio_seconds * flops.training(config.model, config.moe, config.features.mel_bins, len(tokenizer))
    return seconds / flop if flop else 0.0
