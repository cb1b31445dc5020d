"""Models against each other: what is timed is what is recognised, and what is stated about it is counted."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moe_asr.analysis import headline as headline_module
from moe_asr.analysis.candidates import candidate, counterparts, find_audio
from moe_asr.analysis.headline import Heard, Row, headline, recognise
from moe_asr.analysis.record import record_trace
from moe_asr.analysis.trace import load_trace
from moe_asr.config.benchmark import BenchmarkConfig, Choice, Kind
from moe_asr.config.compose import compose_config
from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.config.inference import InferencePrecision
from moe_asr.config.model import LossConfig
from moe_asr.config.placement import MoESite
from moe_asr.data.manifest import read_split
from moe_asr.errors import InputError, JobError
from moe_asr.measure.machine import Peaks
from moe_asr.models.u2pp import build_model, parameter_counts
from moe_asr.modules.packed import supported
from moe_asr.runs.recognizer import Recognizer

PEAKS = Peaks(fp32=1e9, bf16=2e9, int8=4e9, read=1e9)
QUICK = BenchmarkConfig(kind=Kind.rtf, quick=True, vocab_size=50, seconds=1.5, rounds=2)


def rows(config: BenchmarkConfig) -> list[Row]:
    return [row for group in headline(config, dict.fromkeys(config.threads, PEAKS)) for row in group]


@pytest.mark.parametrize(
    ("preset", "total", "active"),
    [
        ("u2pp_225m", 225_700_092, 225_700_092),
        ("u2pp_moe_1b", 1_052_444_412, 343_964_412),
        ("u2pp_moe_1b_encoder", 1_052_386_812, 358_686_972),
        ("u2pp_moe_1b_decoder", 1_052_425_212, 245_545_212),
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
        assert (row.backend is None) == (row.experts is None) == (row.model == str(trained))
        assert row.limit is not None
        assert 0 < max(row.computing, row.reading) <= row.limit / row.rtf.median * 1.0000001
        assert (row.streamed is None) == (row.chunk is None)
        if row.streamed is not None:
            assert 0.685 < row.streamed.first_partial < 2
            assert row.streamed.chunk_p50 <= row.streamed.chunk_p90 <= row.streamed.chunk_p99
    full, chunked = (next(r for r in found if r.experts and r.chunk == chunk).experts for chunk in (None, 16))
    assert 1 <= chunked < full <= 4  # neighbours visit the same ones


def test_what_was_timed_must_be_what_evaluate_recognises(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deaf(*arguments: object) -> Heard:
        heard = recognise(*arguments)  # type: ignore[arg-type]
        return replace(heard, transcripts=tuple(replace(said, text="zero") for said in heard.transcripts))

    monkeypatch.setattr(headline_module, "recognise", deaf)
    with pytest.raises(JobError, match=r"WER of what was timed is \d.* in `evaluate` \(ctc_greedy, chunk None\)"):
        rows(replace(QUICK, models=[str(trained)]))


def test_presets_take_options_and_experts_may_be_balanced() -> None:
    models = ["u2pp_moe_1b moe.placement=decoder", "u2pp_moe_1b moe.num_experts=16"]
    config = replace(QUICK, models=models, modes=[DecodeMode.ctc_greedy], chunks=[8], rounds=1)
    own, balanced = (rows(replace(config, routing=choice)) for choice in (Choice.own, Choice.balanced))
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
def test_streams_are_pushed_chunk_by_chunk(untrained: Path, mode: DecodeMode) -> None:
    recognizer, decode = Recognizer.load(untrained), DecodeConfig(mode=mode, chunk=8)
    samples = 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0))
    heard = recognise(recognizer, decode, [("noise", samples), ("short", samples[:9000]), ("shorter", samples[:3000])])
    for said, length in zip(heard.transcripts, (16000, 9000, 3000), strict=True):
        session = recognizer.stream(8, None, decode)
        session.push(samples[:length])
        alone = session.finish()
        assert (said.text, said.hypothesis.tokens, said.seconds) == (alone.text, alone.hypothesis.tokens, alone.seconds)
    assert heard.transcripts[0].text != ""
    assert len(heard.pushes) == 1 + (98 - 3) // 32  # of 32 of the 98 feature frames each, and the end
    assert heard.time.audio_seconds == pytest.approx(28000 / 16000)
    assert heard.time.wall_seconds == pytest.approx(sum(heard.pushes))
    assert len(recognise(recognizer, decode, [("short", samples[:3000])]).pushes) == 1


def test_threads_batches_and_streams_are_ways(trained_moe: Path) -> None:
    config = replace(QUICK, models=[str(trained_moe)], modes=[DecodeMode.ctc_greedy], rounds=1)
    found = rows(replace(config, batches=[1, 3], streams=[2]))
    assert [(row.chunk, row.together) for row in found] == [(None, 1), (None, 3), (16, 2)]
    assert all(row.wer is not None and row.rtf == row.cpu_rtf for row in found)
    alone, together = found[0].experts, found[1].experts
    assert alone is not None
    assert together is not None
    assert 1 < alone <= together <= 4  # three utterances visit more than one does
    both = rows(replace(config, threads=[1, 2], chunks=[None]))
    assert [(row.threads, row.rtf == row.cpu_rtf, row.rtf == row.wall_rtf) for row in both] == [
        (1, True, False),
        (2, False, True),
    ]
    assert torch.get_num_threads() == 1


def test_replay_has_the_loads_and_runs_of_a_trace(trained_moe: Path, digits: Path, tmp_path: Path) -> None:
    recognizer = Recognizer.load(trained_moe)
    decode, cuts = DecodeConfig(batch=4), read_split(digits, "seen")
    record_trace(recognizer, {"seen": cuts}, decode, tmp_path / "trace", 10_000, {})
    small = "moe.num_experts=4 moe.top_k=1 router.normalize=false"
    config = replace(QUICK, routing=Choice.replay, trace=str(tmp_path / "trace"), models=[f"u2pp_moe_1b {small}"])
    config = replace(config, modes=[DecodeMode.ctc_greedy], chunks=[4], seconds=6.0, quick=True)
    trace, audio = load_trace(config.trace), find_audio(config)
    replayed = candidate(config.models[0], config, InferencePrecision.fp32, audio, trace).recognizer
    utterance, samples = next(iter(audio.samples.items()))
    decided = replayed.encode([samples], side=replayed.side([utterance])).routing
    assert [str(t.site) for t in decided] == [f"encoder.0{i}.{slot}" for i in (0, 1) for slot in ("ffn_in", "ffn_out")]
    starts = set()
    for part in decided:
        ids, stored = part.routing.expert_ids[0, :, 0], torch.from_numpy(trace.sites[str(part.site)].ids[:, 0]).long()
        looped = torch.cat([stored, stored]).unfold(0, len(ids), 1)
        starts.add(tuple((looped == ids).all(1).nonzero().flatten().tolist()))
    assert set.intersection(*map(set, starts))  # one stretch, at all sites
    assert rows(config)[0].experts < 3  # neighbours visit the same ones, unlike those of a uniform draw
    with pytest.raises(InputError, match=r"top 1 of 4 experts.* trace a run with moe\.num_experts=8 moe\.top_k=2, or"):
        rows(replace(config, models=["u2pp_moe_1b"]))


def test_sites_without_a_trace_take_the_likest() -> None:
    def site(name: str) -> MoESite:
        stack, layer, slot = name.split(".")
        return MoESite(stack, int(layer), slot)

    traced = [f"encoder.0{i}.{slot}" for i in range(3) for slot in ("ffn_in", "ffn_out")] + ["left_to_right.00.ffn_out"]
    expected = {
        "encoder.00.ffn_in": "encoder.00.ffn_in",
        "encoder.05.ffn_out": "encoder.01.ffn_out",
        "encoder.14.ffn_in": "encoder.02.ffn_in",
        "left_to_right.02.ffn_out": "left_to_right.00.ffn_out",
        "right_to_left.02.ffn_out": "left_to_right.00.ffn_out",
    }
    found = counterparts(map(site, expected), traced)
    assert {str(own): name for own, name in found.items()} == expected
    assert set(counterparts(map(site, expected), ["encoder.01.ffn_in"]).values()) == {"encoder.01.ffn_in"}
