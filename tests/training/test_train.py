"""Whole training runs of a tiny model, in this process."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from moe_asr.config.compose import to_plain
from moe_asr.config.data import AugmentConfig, BatchConfig
from moe_asr.config.model import ChunkConfig, LossConfig, MoEConfig
from moe_asr.config.program import (
    Accelerator,
    DecodeConfig,
    Keep,
    LoggerConfig,
    LoggerMode,
    OptimConfig,
    Precision,
    TrainConfig,
    TrainerConfig,
)
from moe_asr.errors import InputError
from moe_asr.runs.checkpoint import load_checkpoint
from moe_asr.runs.directory import RunDirectory, only_process, open_run
from moe_asr.training.train import lightning, train

OFF = AugmentConfig(speeds=[1.0], time_masks=0, mel_masks=0, substitutions=0)


def with_dropout(config: TrainConfig, rate: float) -> TrainConfig:
    def changed(part: object) -> object:
        names = [field.name for field in dataclasses.fields(part) if "dropout" in field.name]  # type: ignore[arg-type]
        return dataclasses.replace(part, **dict.fromkeys(names, rate))  # type: ignore[type-var]

    model = config.model
    return dataclasses.replace(
        config, model=dataclasses.replace(model, encoder=changed(model.encoder), decoder=changed(model.decoder))
    )


@pytest.fixture
def short(tiny: TrainConfig, tmp_path: Path) -> TrainConfig:
    """One epoch of a few steps."""
    return dataclasses.replace(
        tiny,
        data=dataclasses.replace(tiny.data, test=["unseen"], limit=12),
        batch=BatchConfig(seconds=12),
        trainer=TrainerConfig(accelerator=Accelerator.cpu, epochs=1, average=1, threads=1, progress=False),
        logger=LoggerConfig(mode=LoggerMode.disabled, every=1),
        runs=str(tmp_path / "runs"),
        name="run",
    )


def metrics(run: Path) -> dict[str, list[float]]:
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()[1:]]
    found: dict[str, list[float]] = {}
    for _, name, value in rows:
        found.setdefault(name, []).append(float(value))
    return found


@pytest.mark.slow
def test_a_run_leaves_everything_and_is_done_once(short: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(short, decode=DecodeConfig(chunks=[4]), loss=LossConfig(balance=0.01))
    results = train(config)
    run = tmp_path / "runs" / "run"
    assert json.loads((run / "results.json").read_text()) == json.loads(json.dumps(results))
    found = results["test"]["unseen"]
    assert {"wer", "wer_ci95", "rtf", "num_utterances", "num_tokens"} <= found.keys()
    assert found["num_utterances"] == 12
    assert results["test"].keys() == {"unseen", "unseen_c4"}
    assert results["params_active"] < results["params_total"]
    assert {"train_seconds", "commit", "averaged_steps"} <= results.keys()
    named = metrics(run)
    assert {"train/loss", "train/loss_ctc", "train/loss_att_r2l", "train/loss_balance", "train/lr"} <= named.keys()
    assert {"grad_norm/encoder", "grad_norm/routers", "val/wer", "val/wer_c4", "routing/dead_experts"} <= named.keys()
    assert len((run / "hypotheses" / "unseen.jsonl").read_text().splitlines()) == 12
    before = (run / "results.json").stat().st_mtime_ns
    assert train(config)["test"]["unseen"]["wer"] == found["wer"]
    assert (run / "results.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_accumulated_batches_equal_one_batch(short: TrainConfig, tmp_path: Path) -> None:
    """However utterances are cut into micro-batches of a step, each weighs the same (uneven lengths, uneven sizes)."""
    plain = dataclasses.replace(
        with_dropout(short, 0.0),
        augment=OFF,
        chunk=ChunkConfig(dynamic=False),
        optim=OptimConfig(warmup_steps=0, clip=1e9),
        data=dataclasses.replace(short.data, limit=5),
    )
    arms = {"one": (60.0, 5, 1), "cut": (60.0, 2, 3)}
    weights = []
    for name, (seconds, utterances, accumulate) in arms.items():
        config = dataclasses.replace(
            plain,
            batch=BatchConfig(seconds=seconds, utterances=utterances, bucket_ratio=100.0),
            trainer=dataclasses.replace(plain.trainer, accumulate=accumulate),
            name=name,
        )
        train(config)
        run = tmp_path / "runs" / name
        assert len(set(metrics(run)["train/lr"])) == 1, "one optimiser step"
        assert len((run / "ledger.jsonl").read_text().splitlines()) == accumulate
        weights.append(metrics(run)["grad_norm/all"][0])
    assert weights[0] == pytest.approx(weights[1], rel=1e-4)


@pytest.mark.slow
def test_bf16_trains_with_finite_losses(short: TrainConfig, tmp_path: Path) -> None:
    train(dataclasses.replace(short, trainer=dataclasses.replace(short.trainer, precision=Precision.bf16)))
    losses = metrics(tmp_path / "runs" / "run")["train/loss"]
    assert len(losses) > 1
    assert all(loss == loss and abs(loss) < 1e4 for loss in losses)


@pytest.mark.slow
def test_fine_tuning_takes_over_freezes_and_scales(short: TrainConfig, tmp_path: Path) -> None:
    train(dataclasses.replace(short, name="base"))
    base = load_checkpoint(tmp_path / "runs" / "base")
    tuned = dataclasses.replace(
        short,
        name="tuned",
        init_from=str(tmp_path / "runs" / "base"),
        freeze=["encoder.layers"],
        optim=OptimConfig(lr_scale={"ctc": 0.0}),
        seed=2,
    )
    train(tuned)
    after = load_checkpoint(tmp_path / "runs" / "tuned")
    assert after.tokenizer == base.tokenizer
    same = {name for name, value in base.weights.items() if torch.equal(value, after.weights[name])}
    assert {name for name in base.weights if name.startswith(("encoder.layers", "ctc."))} <= same
    assert any(name.startswith("decoders.") for name in base.weights.keys() - same)
    with pytest.raises(InputError, match="did you mean encoder"):
        train(dataclasses.replace(tuned, name=None, freeze=["encodr"]))


@pytest.mark.slow
def test_the_best_or_the_last_checkpoints_are_averaged(short: TrainConfig, tmp_path: Path) -> None:
    trainer = dataclasses.replace(short.trainer, epochs=3, average=2, keep=Keep.last)
    config = dataclasses.replace(short, trainer=trainer)
    results = train(config)
    steps = sorted(results["averaged_steps"])
    assert len(steps) == 2
    run = tmp_path / "runs" / "run"
    saved = [torch.load(run / "checkpoints" / f"step={step:07d}.pt", weights_only=True) for step in steps]
    found = load_checkpoint(run).weights
    for name, value in found.items():
        if value.is_floating_point():
            mean = (saved[0][name].double() + saved[1][name].double()) / 2
            assert torch.allclose(value.double(), mean, atol=1e-7), name


@pytest.mark.slow
def test_a_few_utterances_are_learnt_by_heart(short: TrainConfig, tmp_path: Path) -> None:
    encoder = dataclasses.replace(short.model.encoder, width=48, ffn_width=96, layers=2, subsampling_channels=8)
    config = dataclasses.replace(
        with_dropout(dataclasses.replace(short, model=dataclasses.replace(short.model, encoder=encoder)), 0.0),
        data=dataclasses.replace(short.data, limit=6, dev=["train"], test=["train"]),
        moe=MoEConfig(),
        augment=OFF,
        loss=LossConfig(ctc_weight=1.0, reverse_weight=0.0),
        optim=OptimConfig(lr=4e-3, warmup_steps=20),
        trainer=dataclasses.replace(short.trainer, epochs=150, validate_every=150, recover_every=1000),
    )
    train(config)
    lines = [json.loads(line) for line in (tmp_path / "runs/run/hypotheses/train.jsonl").read_text().splitlines()]
    seen = {
        u
        for line in (tmp_path / "runs/run/ledger.jsonl").read_text().splitlines()
        for u in json.loads(line)["utterances"]
    }
    assert len(seen) == 6
    learnt = [line for line in lines if line["id"] in seen]
    assert [line["hypothesis"] for line in learnt] == [line["reference"] for line in learnt]


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with only_process(run), pytest.raises(InputError, match="another process"), only_process(run):
        pass
    with only_process(run):
        assert (tmp_path / ".lock").exists()


def test_what_is_refused_leaves_no_directory_and_moves_no_link(tiny: TrainConfig, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (runs / "good").mkdir(parents=True)
    (runs / "mine").symlink_to("good")
    wrong = dataclasses.replace(tiny, runs=str(runs), name="mine", freeze=["nothing"])
    with pytest.raises(InputError, match="nothing"):
        train(wrong)
    assert (runs / "mine").resolve() == (runs / "good").resolve()
    assert sorted(path.name for path in runs.iterdir()) == ["good", "mine"]


def test_a_test_set_that_is_not_there_is_refused_before_training(tiny: TrainConfig, tmp_path: Path) -> None:
    data = dataclasses.replace(tiny.data, test=["unsen"])
    with pytest.raises(InputError, match=r"did you mean 'unseen'\?"):
        train(dataclasses.replace(tiny, data=data, runs=str(tmp_path / "runs")))
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_damaged_recovery_checkpoint_is_named_and_kept(short: TrainConfig) -> None:
    run = open_run(to_plain(short))
    run.recovery.write_bytes(b"half a checkpoint")
    with pytest.raises(InputError, match=r"recovery\.pt is damaged: remove it"):
        train(short)
    assert run.recovery.read_bytes() == b"half a checkpoint"


def test_where_slurm_is_the_trainer_is_that_of_any_machine(
    short: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning would warn that `srun` is not used, and inside of a job refuse its number of tasks."""
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert lightning(short, 1, tmp_path, [], []).num_devices == 1
    for name in ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.setenv(name, "3")
    assert lightning(short, 1, tmp_path, [], []).world_size == 1
