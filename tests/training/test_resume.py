"""A killed run, started again by the same command, ends bit-identical to one that was never interrupted."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

TINY = [
    "model.encoder={layers: 2, width: 16, heads: 2, ffn_width: 32, kernel: 5, subsampling_channels: 4}",
    "model.decoder={layers: 1, reverse_layers: 1, heads: 2, ffn_width: 32}",
    "data.dev=[dev]",
    "data.test=[unseen]",
    "tokenizer.unit=word",
    "batch.seconds=8",
    "batch.bucket_ratio=2.0",
    "trainer.epochs=3",
    "trainer.accumulate=2",
    "trainer.recover_every=2",
    "trainer.average=2",
    "trainer.threads=1",
    "optim.warmup_steps=4",
    "features.dither=1.0",
    "augment.trim_frames=4",
    "augment.time_mask_share=0.2",
    "augment.gain_db=6",
    "chunk.dynamic_left=true",
    "decode.chunks=[4]",
    "logger.every=1",
]


def command(corpus: Path, runs: Path, *overrides: str) -> list[str]:
    words = ["train", f"data.path={corpus}", f"runs={runs}", "name=run", *TINY, *overrides]
    if not any(word.startswith("logger.mode") for word in overrides):
        words.append("logger.mode=disabled")
    return [sys.executable, "-m", "moe_asr.cli.main", *words]


def finish(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def kill_after_recovery(words: list[str], run: Path, delay: float) -> None:
    """Starts the command, waits for a new recovery checkpoint, and kills it `delay` seconds later."""
    recovery = run / "checkpoints" / "recovery.pt"
    before = recovery.stat().st_mtime_ns if recovery.exists() else 0
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (recovery.exists() and recovery.stat().st_mtime_ns > before):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no recovery checkpoint within two minutes"
        time.sleep(0.005)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def weights(run: Path) -> dict[str, torch.Tensor]:
    plain = torch.load(run / "checkpoints" / "model.pt", weights_only=True)
    return plain["weights"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "kills"), [("batch.workers=0", 2), ("batch.workers=2", 2), ("trainer.devices=2", 1)]
)
def test_killed_run_ends_as_if_it_had_not_been(digits: Path, tmp_path: Path, option: str, kills: int) -> None:
    whole, broken = (command(digits, tmp_path / name, option) for name in ("whole", "broken"))
    finish(whole)
    rng = random.Random(option)
    for _ in range(kills):
        kill_after_recovery(broken, tmp_path / "broken" / "run", rng.uniform(0.0, 0.2))
    assert not (tmp_path / "broken" / "run" / "results.json").exists(), "killed too late to show anything"
    finish(broken)

    one, other = tmp_path / "whole" / "run", tmp_path / "broken" / "run"
    for file in ("metrics.csv", "ledger.jsonl", "problems.jsonl", "hypotheses/unseen.jsonl"):
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
    expected, found = weights(one), weights(other)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    results = [json.loads((run / "results.json").read_text()) for run in (one, other)]
    assert results[0]["test"]["unseen"]["wer"] == results[1]["test"]["unseen"]["wer"]
    assert results[0]["averaged_steps"] == results[1]["averaged_steps"]
    utterances = [u for line in (one / "ledger.jsonl").read_text().splitlines() for u in json.loads(line)["utterances"]]
    assert all(utterances.count(u) == 3 for u in set(utterances)), "each utterance once per epoch"


@pytest.mark.slow
def test_two_models_of_one_seed_see_the_same_data(digits: Path, tmp_path: Path) -> None:
    ledgers = []
    for name, overrides in (
        ("a", ["trainer.epochs=1"]),
        ("b", ["trainer.epochs=1", "model.encoder.width=24", "moe.placement=both", "moe.num_experts=3"]),
        ("c", ["trainer.epochs=1", "seed=2"]),
    ):
        finish(command(digits, tmp_path / name, *overrides))
        ledgers.append((tmp_path / name / "run" / "ledger.jsonl").read_text())
    assert ledgers[0] == ledgers[1]
    assert ledgers[0] != ledgers[2]
    first = json.loads(ledgers[0].splitlines()[0])
    assert {"epoch", "batch", "utterances", "features", "chunk", "left"} == first.keys()
