"""How a recognizer computes is chosen when it is loaded."""

import json

import numpy
import pytest
import soundfile
import torch

import moe_asr
from moe_asr.cli import transcribe
from moe_asr.config.commands import Format, TranscribeConfig
from moe_asr.config.inference import ExpertBackend, InferencePrecision
from moe_asr.errors import InputError
from moe_asr.modules.moe.experts import Experts, loop
from moe_asr.modules.packed import PackedLinear, supported
from moe_asr.runs.checkpoint import build, load_checkpoint
from moe_asr.runs.recognizer import Recognizer


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_every_precision_hears_about_the_same(untrained, precision):
    if not supported(InferencePrecision(precision)):
        pytest.skip(f"no {precision} kernels on this machine")
    samples = torch.randn(16000, generator=torch.Generator().manual_seed(0)) * 0.1
    checkpoint = load_checkpoint(untrained)
    plain = Recognizer.of(build(checkpoint.config, checkpoint.tokenizer), checkpoint.tokenizer, checkpoint.config)
    plain.model.load_state_dict(checkpoint.weights)
    recognizer = moe_asr.load(str(untrained), precision=precision)
    assert any(isinstance(module, PackedLinear) for module in recognizer.model.modules())
    assert not any(isinstance(module, PackedLinear) for module in plain.model.modules())
    one, two = (each.encode([samples]).frames for each in (recognizer, plain))
    assert ((one - two).norm() / two.norm()).item() < {"fp32": 1e-5, "bf16": 5e-2, "int8": 1e-1}[precision]
    assert -100.0 < recognizer.transcribe(samples).hypothesis.score < 0.0


def test_a_model_can_be_loaded_where_nothing_is_trained(untrained):
    samples = torch.zeros(8000)
    with torch.inference_mode():
        assert moe_asr.load(str(untrained)).transcribe(samples) == moe_asr.load(str(untrained)).transcribe(samples)


def test_the_command_line_chooses_the_backend(untrained, tmp_path, capsys, monkeypatch):
    soundfile.write(tmp_path / "noise.wav", numpy.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    made, load = [], Recognizer.load
    monkeypatch.setattr(Recognizer, "load", lambda *options: made.append(load(*options)) or made[0])
    audio, run = [str(tmp_path / "noise.wav")], str(untrained)
    transcribe.run(TranscribeConfig(run=run, audio=audio, experts=ExpertBackend.loop, format=Format.json))
    assert len(json.loads(capsys.readouterr().out)) == 1
    assert {module.backend for module in made[0].model.modules() if isinstance(module, Experts)} == {loop}


def test_contradictions_and_unknown_words_are_refused(untrained):
    with pytest.raises(InputError, match=r"experts=sorted computes in fp32"):
        TranscribeConfig(precision=InferencePrecision.bf16, experts=ExpertBackend.sorted)
    with pytest.raises(InputError, match=r"precision is fp32, bf16, int8; experts is auto"):
        moe_asr.load(str(untrained), precision="fp8")
