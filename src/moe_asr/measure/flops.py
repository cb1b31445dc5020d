"""How much a model computes: multiply-adds of each of its parts for one utterance, from its configuration alone.

Matrix products and convolutions as this program computes them, a multiply-add being 2 FLOPs; norms, activations,
softmax and the beam are not counted. Attention counts every pair that is computed, whether masked or not.
"""

from moe_asr.config.decode import DecodeConfig
from moe_asr.config.model import ModelConfig, MoEConfig, Positions, Subsampling
from moe_asr.config.placement import moe_sites
from moe_asr.models.encoder import FULL_CONTEXT
from moe_asr.modules.subsampling import FACTOR, OVERLAP, frame_lengths
from moe_asr.tensors import Chunking

SECONDS, TOKENS_PER_SECOND = 12, 4
"""The audio that `recognition` is counted for."""
MultiplyAdds = dict[str, int]
"""By part of the model."""


def encoder(
    model: ModelConfig, moe: MoEConfig, feature_frames: int, mel_bins: int, chunking: Chunking = FULL_CONTEXT
) -> MultiplyAdds:
    """Of a pass over so many feature frames: at once with full context, else chunk by chunk as a stream.

    Parts: subsampling, attention (with relative positions), convolution, feed-forward, router.
    """
    config = model.encoder
    frames, overlap = frame_lengths(feature_frames, config.subsampling), OVERLAP[config.subsampling]
    width, channels = config.width, config.subsampling_channels or config.width
    bins1 = (mel_bins - 1) // 2
    bins2 = (bins1 - 1) // 2
    size, past = chunking.size or frames, frames if chunking.left is None else chunking.left * (chunking.size or 0)
    windows, pairs = [feature_frames], frames**2
    if size < frames:
        chunks = [(min(size, frames - first), first) for first in range(0, frames, size)]
        windows = [FACTOR * n + overlap for n, _ in chunks]
        pairs = sum(n * (n + min(first, past)) for n, first in chunks)
    rows1 = sum((window - 1) // 2 for window in windows)
    convolutions = 9 * channels * (rows1 * bins1 + frames * bins2 * channels) + frames * bins2 * channels * width
    projections = 5 if config.positions is Positions.relative else 4
    return {
        "subsampling": FACTOR * frames * mel_bins * width if config.subsampling is Subsampling.stack else convolutions,
        "attention": config.layers * (projections * frames * width**2 + 2 * pairs * width),
        "convolution": config.layers * frames * width * (3 * width + config.kernel) if config.kernel else 0,
        **_feed_forward(model, moe, "encoder", (1 + config.macaron) * config.layers, frames, config.ffn_width),
    }


def ctc_head(model: ModelConfig, vocab_size: int, frames: int) -> int:
    return frames * model.encoder.width * vocab_size


def rescoring(
    model: ModelConfig, moe: MoEConfig, vocab_size: int, frames: int, hypotheses: int, tokens: int
) -> MultiplyAdds:
    """Of scoring so many hypotheses of an utterance, padded to so many tokens, by the decoders in both directions.

    Parts: keys and values (of cross-attention, once per utterance), attention, feed-forward, router, output.
    """
    config, width, rows = model.decoder, model.encoder.width, hypotheses * (tokens + 1)
    depths = {"left_to_right": config.layers, "right_to_left": config.reverse_layers}
    layers = sum(depths.values())
    pairs = rows * (tokens + 1 + frames)
    parts = {
        "keys and values": layers * 2 * frames * width**2,
        "attention": layers * (6 * rows * width**2 + 2 * pairs * width),
        "feed-forward": 0,
        "router": 0,
        "output": sum(depth > 0 for depth in depths.values()) * rows * width * vocab_size,
    }
    for stack, depth in depths.items():
        for part, count in _feed_forward(model, moe, stack, depth, rows, config.ffn_width).items():
            parts[part] += count
    return parts


def recognition(
    model: ModelConfig, moe: MoEConfig, decode: DecodeConfig, mel_bins: int, vocab_size: int
) -> dict[str, float]:
    """FLOPs per second of audio, by part and in total, of an utterance of `SECONDS` that the decoders rescore."""
    feature_frames, tokens = 100 * SECONDS, TOKENS_PER_SECOND * SECONDS
    frames = frame_lengths(feature_frames, model.encoder.subsampling)
    parts = encoder(model, moe, feature_frames, mel_bins, Chunking(decode.chunk, decode.left))
    parts["CTC head"] = ctc_head(model, vocab_size, frames)
    parts["encoder and CTC"] = sum(parts.values())
    rescored = sum(rescoring(model, moe, vocab_size, frames, decode.beam, tokens).values())
    parts[f"rescoring {decode.beam} hypotheses of {tokens} tokens"] = rescored
    parts["in total"] = parts["encoder and CTC"] + rescored
    return {part: 2 * count / SECONDS for part, count in parts.items()}


def training(model: ModelConfig, moe: MoEConfig, mel_bins: int, vocab_size: int) -> float:
    """FLOPs per second of audio of an optimiser step, whose backward pass counts as two forward ones."""
    feature_frames, tokens = 100 * SECONDS, TOKENS_PER_SECOND * SECONDS
    frames = frame_lengths(feature_frames, model.encoder.subsampling)
    forward = ctc_head(model, vocab_size, frames) + sum(encoder(model, moe, feature_frames, mel_bins).values())
    forward += sum(rescoring(model, moe, vocab_size, frames, 1, tokens).values())  # decoders read the reference
    return 3 * 2 * forward / SECONDS


def _feed_forward(model: ModelConfig, moe: MoEConfig, stack: str, sites: int, rows: int, hidden: int) -> MultiplyAdds:
    """Of the feed-forward layers of a stack, of which some are MoE layers with linear routers.

    Experts of different widths count as if every one were chosen equally often.
    """
    mixed, width = sum(site.stack == stack for site in moe_sites(model, moe.placement)), model.encoder.width
    widths = moe.expert_widths or [moe.expert_width or hidden] * moe.num_experts
    chosen = moe.top_k * sum(widths) // moe.num_experts
    shared = moe.shared_experts * (moe.expert_width or hidden)
    return {
        "feed-forward": 2 * rows * width * ((sites - mixed) * hidden + mixed * (chosen + shared)),
        "router": mixed * rows * width * moe.num_experts,
    }
