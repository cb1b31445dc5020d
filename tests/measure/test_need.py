"""The least work and memory traffic of a recognition, against counts by hand."""

from dataclasses import replace

import pytest
import torch

from moe_asr.config.data import TokenUnit
from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.config.model import DecoderConfig, EncoderConfig, ModelConfig, MoEConfig
from moe_asr.config.program import TrainConfig
from moe_asr.features.tokenizer import SPECIALS, Tokenizer
from moe_asr.measure import flops
from moe_asr.measure.machine import Peaks
from moe_asr.measure.need import Need, limit, needs
from moe_asr.runs.checkpoint import build
from moe_asr.runs.recognizer import Recognizer
from moe_asr.tensors import Chunking

SAMPLES, FEATURE_FRAMES, FRAMES = 24000, 148, 36  # 1.5 s


def recognizer(moe: MoEConfig) -> Recognizer:
    encoder = EncoderConfig(layers=2, width=32, heads=2, ffn_width=64, subsampling_channels=4)
    model = ModelConfig(encoder=encoder, decoder=DecoderConfig(1, 1, heads=2, ffn_width=64))
    config = TrainConfig(model=model, moe=moe)
    tokenizer = Tokenizer(TokenUnit.word, (*SPECIALS, *"abcdef"))
    torch.manual_seed(0)
    return Recognizer.of(build(config, tokenizer), tokenizer, config)


def test_dense() -> None:
    dense = recognizer(MoEConfig())
    model, config = dense.model, dense.config
    size = len(dense.tokenizer)
    spoken = (SAMPLES, 3, 7)
    found = needs(dense, DecodeConfig(mode=DecodeMode.attention_rescoring), [[spoken]], None)
    assert found is not None
    counts = flops.encoder(config.model, config.moe, FEATURE_FRAMES, 80)
    encoder = sum(counts.values()) + flops.ctc_head(config.model, size, FRAMES)
    rescored = sum(flops.rescoring(config.model, config.moe, size, FRAMES, 3, 7).values())
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    front = sum(p.numel() for p in model.encoder.subsampling.parameters())
    decoders = sum(p.numel() for d in model.decoders.values() for p in d.parameters()) - 2 * size * 32
    assert 1.5 * found["subsampling"].multiply_adds == pytest.approx(counts["subsampling"])
    assert 1.5 * found["encoder"].multiply_adds == pytest.approx(encoder - counts["subsampling"])
    assert 1.5 * found["decoders"].multiply_adds == pytest.approx(rescored)
    assert 1.5 * found["subsampling"].weights == pytest.approx(front)
    assert 1.5 * found["encoder"].weights == pytest.approx(sizes["encoder"] + sizes["ctc"] - front)
    assert 1.5 * found["decoders"].weights == pytest.approx(decoders)
    assert found["encoder experts"] == found["decoder experts"] == Need(0, 0)
    assert needs(dense, DecodeConfig(mode=DecodeMode.attention), [[spoken]], None) is None
    chunked = needs(dense, DecodeConfig(chunk=16), [[spoken]], None)
    assert chunked is not None
    assert 1.5 * chunked["encoder"].weights == pytest.approx(3 * (sizes["encoder"] + sizes["ctc"] - front))
    counts = flops.encoder(config.model, config.moe, FEATURE_FRAMES, 80, Chunking(16))
    assert 1.5 * chunked["subsampling"].multiply_adds == pytest.approx(counts["subsampling"])
    assert chunked["decoders"] == Need(0, 0)
    # Together they read the weights once, for twice the audio.
    two = needs(dense, DecodeConfig(chunk=16), [[spoken, spoken]], None)
    assert two is not None
    assert two["encoder"] == Need(chunked["encoder"].multiply_adds, chunked["encoder"].weights / 2)


def test_experts() -> None:
    mixed = recognizer(MoEConfig("both", num_experts=8, top_k=2))
    decode = DecodeConfig(mode=DecodeMode.attention_rescoring, chunk=12)
    few, many = (needs(mixed, decode, [[(SAMPLES, 3, 7)]], count) for count in (2.0, 8.0))
    assert few is not None
    assert many is not None
    expert = 2 * 32 * 64
    assert 1.5 * few["encoder experts"].multiply_adds == pytest.approx(4 * FRAMES * 2 * expert)
    assert 1.5 * few["encoder experts"].weights == pytest.approx(4 * 2 * expert * 3)  # sites, experts, chunks
    assert many["encoder experts"].weights == pytest.approx(4 * few["encoder experts"].weights)
    assert replace(many["encoder experts"], weights=0) == replace(few["encoder experts"], weights=0)
    assert 1.5 * few["decoder experts"].multiply_adds == pytest.approx(2 * 3 * (7 + 1) * 2 * expert)
    assert 1.5 * few["decoder experts"].weights == pytest.approx(2 * 8 * expert)


def test_each_part_has_the_longer_of_both_limits() -> None:
    parts = {"computes": Need(10.0, 1.0), "reads": Need(1.0, 10.0)}
    peaks = Peaks(fp32=2.0, bf16=4.0, int8=8.0, read=4.0)
    assert limit(parts, peaks, "fp32") == pytest.approx(10 + 10)
    assert limit(parts, peaks, "bf16") == pytest.approx(5 + 5)
    assert limit(parts, peaks, "int8") == pytest.approx(2.5 + 2.5)
