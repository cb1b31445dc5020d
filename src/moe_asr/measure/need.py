"""What a recognition cannot do without: multiply-adds and weights from memory, and the least time for both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import nn

from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.measure import flops
from moe_asr.measure.machine import Peaks
from moe_asr.modules.moe.experts import Experts
from moe_asr.runs.recognizer import Recognizer
from moe_asr.tensors import Chunking

Spoken = tuple[int, int, int]
"""Of an utterance: samples, hypotheses that are rescored, and tokens of the longest."""


@dataclass(frozen=True)
class Need:
    """Per second of audio."""

    multiply_adds: float
    weights: float


def needs(
    recognizer: Recognizer, decode: DecodeConfig, batches: Sequence[Sequence[Spoken]], experts: float | None
) -> dict[str, Need] | None:
    """By part of the model; None for a search that is not counted.

    batches: of whole utterances, or of streams that advance together, for all of which each pass reads the weights
    once. experts: different ones that a pass visits at a site of the encoder; a rescoring visits all.
    """
    if decode.mode is DecodeMode.attention:
        return None
    config, model, vocab_size = recognizer.config, recognizer.model, len(recognizer.tokenizer)
    moe, chunking, bins = config.moe, Chunking(decode.chunk, decode.left), config.features.mel_bins
    mixed, decoding = _experts(model.encoder), sum(map(_experts, model.decoders.values()))
    named = [pair for decoder in model.decoders.values() for pair in decoder.named_parameters()]
    weights = {
        "subsampling": _size(model.encoder.subsampling),
        "encoder": _size(model.encoder) - _size(model.encoder.subsampling) - mixed + _size(model.ctc),
        "encoder experts": mixed * (experts or 0) / moe.num_experts,
        "decoders": sum(p.numel() for name, p in named if "embedding" not in name) - decoding,
        "decoder experts": decoding,
    }
    work, read = dict.fromkeys(weights, 0.0), dict.fromkeys(weights, 0.0)
    for batch in batches:
        longest = 0
        for samples, hypotheses, tokens in batch:
            feature_frames = int(recognizer.log_mel.feature_lengths(torch.tensor(samples)))
            frames = int(model.encoder.frame_lengths(torch.tensor(feature_frames)))
            longest = max(longest, frames)
            counts: Mapping[str, int] = flops.encoder(config.model, moe, feature_frames, bins, chunking)
            routed = frames * mixed * moe.top_k / moe.num_experts
            work["subsampling"] += counts["subsampling"]
            work["encoder experts"] += routed
            work["encoder"] += sum(counts.values()) - counts["subsampling"] - routed
            work["encoder"] += flops.ctc_head(config.model, vocab_size, frames)
            if decode.mode is DecodeMode.attention_rescoring:
                counts = flops.rescoring(config.model, moe, vocab_size, frames, hypotheses, tokens)
                routed = hypotheses * (tokens + 1) * decoding * moe.top_k / moe.num_experts
                work["decoder experts"] += routed
                work["decoders"] += sum(counts.values()) - routed
        passes = ceil(longest / (decode.chunk or max(longest, 1)))
        rescored = decode.mode is DecodeMode.attention_rescoring
        for part, size in weights.items():
            read[part] += size * (rescored if part.startswith("decoder") else passes)
    seconds = sum(samples for batch in batches for samples, _, _ in batch) / config.features.sample_rate
    return {part: Need(work[part] / seconds, read[part] / seconds) for part in weights}


def limit(needs: Mapping[str, Need], peaks: Peaks, precision: str) -> float:
    """The least RTF: of each part the longer of its multiply-adds at the machine's peak and its weights at the speed
    of the machine's memory."""
    return sum(peaks.seconds(need.multiply_adds, need.weights, precision) for need in needs.values())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _experts(module: nn.Module) -> int:
    """Weights of the matrices of experts, null experts having none."""
    return sum(part.w_in.numel() + part.w_out.numel() for part in module.modules() if isinstance(part, Experts))
