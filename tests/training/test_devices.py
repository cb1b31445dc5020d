"""Whole training runs by two processes: what one would do, in one run directory."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_asr.config.data import BatchConfig
from moe_asr.config.model import LossConfig, RouterConfig
from moe_asr.config.program import Accelerator, LoggerConfig, LoggerMode, OptimConfig, TrainConfig, TrainerConfig
from moe_asr.runs.checkpoint import load_checkpoint
from moe_asr.training.train import train


@pytest.fixture
def short(tiny: TrainConfig, tmp_path: Path) -> TrainConfig:
    """One epoch of a few steps with two processes."""
    return replace(
        tiny,
        router=RouterConfig(balance_rate=0.5),
        data=replace(tiny.data, test=["dev"], limit=18),
        batch=BatchConfig(seconds=60, utterances=3, bucket_ratio=100.0),
        optim=OptimConfig(warmup_steps=2),
        trainer=TrainerConfig(Accelerator.cpu, devices=2, epochs=1, average=1, threads=1, progress=False),
        logger=LoggerConfig(mode=LoggerMode.disabled, every=1),
        runs=str(tmp_path),
        name="two",
    )


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_training_with_two_processes_is_training_with_twice_the_micro_batches(
    short: TrainConfig, tmp_path: Path
) -> None:
    """Dropout, chunks, masks and the balance bias included; and only one run directory comes of it."""
    train(short)
    train(replace(short, name="one", trainer=replace(short.trainer, devices=1, accumulate=2)))
    one, two = tmp_path / "one", tmp_path / "two"
    assert len(lines(one)) == len(lines(two)) == 6
    assert lines(one) == lines(two)
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", one.resolve().name, two.resolve().name}
    found, expected = (
        [(step, name, float(value)) for step, name, value in (line.split(",") for line in text[1:])]
        for text in ((run / "metrics.csv").read_text().splitlines() for run in (two, one))
    )
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    for (step, name, value), (_, _, wanted) in zip(found, expected, strict=True):
        assert value == pytest.approx(wanted, rel=1e-3, abs=1e-5), (step, name)
    biases = [load_checkpoint(run).weights["routers.bias"] for run in (one, two)]
    assert torch.equal(*biases)
    assert biases[0].abs().sum() > 0  # each of an odd number of steps moves it by as much


@pytest.mark.slow
def test_a_process_without_utterances_takes_part(short: TrainConfig, tmp_path: Path) -> None:
    """Each utterance is a batch here, and their number is odd."""
    config = replace(
        short,
        batch=BatchConfig(bucket_ratio=1.0, utterances=1),
        loss=LossConfig(balance=0.1, z=0.1),
        data=replace(short.data, limit=3),
    )
    train(config)
    utterances = [line["utterances"] for line in lines(tmp_path / "two")]
    assert sorted(map(len, utterances)) == [0, 1, 1, 1]
