"""Models against each other: what is timed is what is recognised, and what is stated about it is counted."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moe_asr.analysis import headline as headline_module
from moe_asr.analysis.headline import Heard, Row, _needs, _untrained, headline, recognise
from moe_asr.config.benchmark import BenchmarkConfig, Choice, Kind
from moe_asr.config.compose import compose_config
from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.config.inference import InferencePrecision
from moe_asr.config.model import LossConfig
from moe_asr.errors import InputError, JobError
from moe_asr.measure import flops
from moe_asr.measure.machine import Peaks
from moe_asr.measure.rtf import TimedBatch
from moe_asr.models.u2pp import build_model, parameter_counts
from moe_asr.modules.packed import supported
from moe_asr.runs.recognizer import Recognizer
from moe_asr.tensors import Chunking

PEAKS = Peaks(fp32=1e9, bf16=2e9, int8=4e9, read=1e9)
QUICK = BenchmarkConfig(kind=Kind.rtf, quick=True, vocab_size=50, seconds=1.5, rounds=2)


def rows(config: BenchmarkConfig) -> list[Row]:
    return [row for group in headline(config, PEAKS) for row in group]


@pytest.mark.parametrize(
    ("preset", "total", "active"),
    [
        ("u2pp_225m", 225_700_092, 225_700_092),
        ("u2pp_moe_1b", 1_052_444_412, 343_964_412),
        ("u2pp_dense_344m", 343_757_052, 343_757_052),
        ("u2pp_dense_1b", 1_044_776_572, 1_044_776_572),
    ],
)
def test_the_presets_are_as_large_as_they_say(preset: str, total: int, active: int) -> None:
    config = compose_config("benchmark", BenchmarkConfig, [f"model={preset}"], {"kind": "rtf"})
    with torch.device("meta"):
        model = build_model(config.model, config.moe, config.router, LossConfig(), vocab_size=8404, mel_bins=80)
    assert parameter_counts(model) == (total, active)


def test_every_model_in_every_way(trained: Path, trained_moe: Path) -> None:
    if not supported(InferencePrecision.int8):
        pytest.skip("no int8 kernels on this machine")
    models = [str(trained), str(trained_moe)]
    found = rows(replace(QUICK, models=models, precisions=[InferencePrecision.int8], rounds=3))
    assert [(r.precision, r.chunk, r.mode, r.model) for r in found] == [
        ("int8", chunk, mode, str(model))
        for chunk in (None, 16)
        for mode in ("ctc_greedy", "attention_rescoring")
        for model in (trained, trained_moe)
    ]
    for row in found:
        assert (row.ratio == 1) == (row.model == str(trained))
        assert row.wer is not None
        assert 0 <= row.wer < 0.5
        assert 0 < row.rtf.first <= row.rtf.median <= row.rtf.third
        assert (row.backend, row.experts is None) == ((None, True) if row.model == str(trained) else ("packed", False))
        assert (row.streamed is None) == (row.chunk is None)
        if row.streamed is not None:
            assert 0.685 < row.streamed.first_partial < 2
            assert row.streamed.chunk_p50 <= row.streamed.chunk_p90 <= row.streamed.chunk_p99
    full, chunked = (next(r for r in found if r.experts and r.chunk == chunk).experts for chunk in (None, 16))
    assert 1 <= chunked < full <= 4  # neighbours visit the same ones


def test_what_was_timed_must_be_what_evaluate_recognises(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deaf(*arguments: object) -> Heard:
        heard = recognise(*arguments)  # type: ignore[arg-type]
        return replace(heard, transcript=replace(heard.transcript, text="zero"))

    monkeypatch.setattr(headline_module, "recognise", deaf)
    with pytest.raises(JobError, match=r"WER of what was timed is \d.* in `evaluate` \(ctc_greedy, chunk None\)"):
        rows(replace(QUICK, models=[str(trained)]))


def test_presets_take_options_and_experts_may_be_balanced() -> None:
    models = ["u2pp_moe_1b moe.placement=decoder", "u2pp_moe_1b moe.num_experts=16"]
    config = replace(QUICK, models=models, modes=[DecodeMode.ctc_greedy], chunks=[8], rounds=1)
    own, balanced = (rows(replace(config, choice=choice)) for choice in Choice)
    assert [row.experts is None for row in own] == [True, False]
    assert own[0].active < own[0].parameters < own[1].parameters
    assert own[1].experts < balanced[1].experts <= 16
    # 8 frames draw 2 of 16 each; the last chunk of 36 frames has 4.
    expected = 16 - 16 * (4 * (7 / 8) ** 8 + (7 / 8) ** 4) / 5
    assert balanced[1].experts == pytest.approx(expected, abs=0.7)
    assert all(row.wer is None and row.tokens > 0 for row in own)


def test_unknown_models_and_those_without_decoders_are_refused() -> None:
    with pytest.raises(InputError, match=r"model=u2pp_225 does not exist; did you mean u2pp_225m\?"):
        rows(replace(QUICK, models=["u2pp_225"]))
    with pytest.raises(InputError, match="no left-to-right decoder"):
        rows(replace(QUICK, models=["omni_tiny"], modes=[DecodeMode.attention_rescoring], chunks=[None]))


@pytest.mark.parametrize("mode", [DecodeMode.ctc_greedy, DecodeMode.attention_rescoring])
def test_a_stream_is_pushed_chunk_by_chunk(untrained: Path, mode: DecodeMode) -> None:
    recognizer, decode = Recognizer.load(untrained), DecodeConfig(mode=mode, chunk=8)
    samples = 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0))
    heard = recognise(recognizer, decode, "noise", samples)
    session = recognizer.stream(8, None, decode)
    session.push(samples)
    assert heard.transcript == session.finish()
    assert heard.transcript.text != ""
    assert len(heard.pushes) == 1 + (98 - 3) // 32  # of 32 of the 98 feature frames each, and the end
    assert heard.time.audio_seconds == pytest.approx(1.0)
    assert heard.time.wall_seconds == pytest.approx(sum(heard.pushes))
    short = recognise(recognizer, decode, "noise", samples[:3000])
    assert len(short.pushes) == 1


def test_work_and_weights_are_counted() -> None:
    samples = {"noise": torch.randn(24000)}
    audio = headline_module.Audio(samples, compose_config("train", headline_module.TrainConfig, []).features)
    recognizer = _untrained("u2pp_225m", QUICK, audio)
    config, model = recognizer.config, recognizer.model
    heard = recognise(recognizer, DecodeConfig(nbest=3, mode=DecodeMode.attention_rescoring), "noise", samples["noise"])
    frames, own = 36, heard.transcript.nbest
    encoder = sum(flops.encoder(config.model, config.moe, 148, 80).values()) + flops.ctc_head(config.model, 50, frames)
    longest = max(len(h.tokens) for h in own)
    rescored = sum(flops.rescoring(config.model, config.moe, 50, frames, len(own), longest).values())
    once = sum(p.numel() for part in (model.encoder, model.ctc) for p in part.parameters())
    decoders = sum(p.numel() for d in model.decoders.values() for p in d.parameters()) - 2 * 50 * 32
    assert _needs(recognizer, DecodeConfig(), [heard], None) == (encoder / 1.5, once / 1.5)
    work, weights = _needs(recognizer, DecodeConfig(mode=DecodeMode.attention_rescoring), [heard], None)
    assert (work, weights) == ((encoder + rescored) / 1.5, (once + decoders) / 1.5)
    assert _needs(recognizer, DecodeConfig(mode=DecodeMode.attention), [heard], None)[0] is None
    chunked = flops.encoder(config.model, config.moe, 148, 80, Chunking(16))
    expected = (sum(chunked.values()) + flops.ctc_head(config.model, 50, frames)) / 1.5, 3 * once / 1.5
    assert _needs(recognizer, DecodeConfig(chunk=16), [heard], None) == expected
    mixture = _untrained("u2pp_moe_1b", QUICK, audio)
    few, all_of_them = (_needs(mixture, DecodeConfig(), [heard], count)[1] for count in (2.0, 8.0))
    stacks = 4 * 8 * (2 * 32 * 64 + 32 + 64)
    assert 1.5 * (all_of_them - few) == pytest.approx(0.75 * stacks)
    assert isinstance(heard.time, TimedBatch)
