"""Where the time of a recognition goes, and how much of it the machine could not have saved."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moe_asr.config.benchmark import BenchmarkConfig
from moe_asr.config.data import FeaturesConfig
from moe_asr.config.decode import DecodeConfig
from moe_asr.decoding.attention import attention_rescoring
from moe_asr.decoding.ctc_greedy import ctc_greedy
from moe_asr.decoding.ctc_prefix_beam import CtcPrefixBeam
from moe_asr.measure import flops
from moe_asr.measure.machine import Peaks
from moe_asr.measure.timing import Spread, clock, spread
from moe_asr.models.encoder import EncoderOutput
from moe_asr.models.inference import prepare
from moe_asr.models.u2pp import AsrModel, U2pp, build_model
from moe_asr.modules.subsampling import FACTOR
from moe_asr.tensors import Chunking

SHARPNESS = 30.0
STAGES = ("CTC head", "CTC greedy", "CTC prefix beam", "rescoring")
PARTS = {
    "subsampling": "subsampling",
    "ffn_in": "feed-forward",
    "ffn_out": "feed-forward",
    "attention": "attention",
    "convolution": "convolution",
}
"""By the name of a module of the encoder or of its layers: the part that its time belongs to."""


@dataclass(frozen=True)
class Row:
    """A part of a recognition, or the whole of one."""

    part: str
    multiply_adds: int
    seconds: Spread
    of_greedy: float | None
    """Share of the time of the full pass with greedy search; None where that does without this part."""
    of_beam: float | None
    """Of the full pass with prefix beam, and rescoring where the model has decoders."""
    efficiency: float | None
    """Time of its multiply-adds at the machine's peak / its own; None where it has none that count."""


@dataclass(frozen=True)
class Profile:
    rows: tuple[Row, ...]
    audio_seconds: float
    frames: int
    hypotheses: int
    tokens: int
    """Of the longest hypothesis; all are computed as if they had as many."""


@torch.no_grad()
def profile(config: BenchmarkConfig, peaks: Peaks) -> Profile:
    """Times a randomly initialised model on random features of one utterance; log-mel and text are not included.

    Every round is one encoder pass, or a stream in chunks, with both ways to go on from it; a first one does not count.
    The first of `chunks` and `precisions` count.
    """
    chunking, precision = Chunking(config.chunks[0]), config.precisions[0]
    torch.manual_seed(config.seed)
    bins, feature_frames = FeaturesConfig().mel_bins, round(100 * config.seconds)
    features, lengths = torch.randn(1, feature_frames, bins), torch.tensor([feature_frames])
    model = build_model(
        config.model, config.moe, config.router, config.loss, vocab_size=config.vocab_size, mel_bins=bins
    ).eval()
    encoded = model.encode(features, lengths)
    make_speak(model, encoded, config.nonblank)
    beam = CtcPrefixBeam(config.beam, model.ctc.blank)
    nbest = beam(model.ctc_log_probs(encoded.frames), encoded.frame_lengths)
    frames, tokens = encoded.frames.shape[1], max(len(h.tokens) for h in nbest[0])

    prepare(model, precision, config.experts, release=True)
    with torch.inference_mode():  # not before: its tensors could not tell packed weights that they were changed
        rounds = [_round(model, features, lengths, chunking, beam) for _ in range(config.rounds + 1)][1:]
    counts = flops.encoder(config.model, config.moe, feature_frames, bins, chunking)
    counts["feed-forward"] += counts.pop("router")
    counts["CTC head"] = flops.ctc_head(config.model, config.vocab_size, frames)
    decoders = flops.rescoring(config.model, config.moe, config.vocab_size, frames, len(nbest[0]), tokens)
    counts["rescoring"] = sum(decoders.values())
    wholes = _wholes(list(rounds[0]))
    for whole, parts in wholes.items():
        counts[whole] = sum(counts.get(part, 0) for part in parts)
        for times in rounds:
            times[whole] = sum(times[part] for part in parts)
    spreads = {part: spread([times[part] for times in rounds]) for part in rounds[0]}

    def row(part: str) -> Row:
        count, time = counts.get(part, 0), spreads[part].median
        greedy, beam = (
            time / spreads[whole].median if part in (*parts, whole) else None for whole, parts in wholes.items()
        )
        return Row(
            part, count, spreads[part], greedy, beam, peaks.seconds(count, 0, precision) / time if count else None
        )

    return Profile(tuple(map(row, spreads)), feature_frames / 100, frames, len(nbest[0]), tokens)


def _wholes(parts: list[str]) -> dict[str, list[str]]:
    """The two ways through the model, each with its parts."""
    beam = [part for part in parts if part != "CTC greedy"]
    greedy = [part for part in parts if part not in ("CTC prefix beam", "rescoring")]
    return {"full pass, greedy": greedy, f"full pass, {beam[-1].removeprefix('CTC ')}": beam}


def make_speak(model: AsrModel, encoded: EncoderOutput, nonblank: float) -> None:
    """Gives an untrained CTC head the output of a trained one, so that searches have their usual work.

    Probabilities close to 1, by weights `SHARPNESS` times as large; a token other than blank is the best in a share
    `nonblank` of the frames, by the bias of blank.
    """
    for parameter in model.ctc.output.parameters():
        parameter.mul_(SHARPNESS)
    logits, blank = model.ctc.output(encoded.frames), model.ctc.blank
    rival = logits.index_fill(-1, torch.tensor(blank, device=logits.device), -torch.inf).amax(-1)
    model.ctc.output.bias[blank] += (rival - logits[..., blank]).quantile(1 - nonblank)


def _encode(model: AsrModel, features: Tensor, lengths: Tensor, chunking: Chunking) -> EncoderOutput:
    """At once, or as a stream whose feature frames come as its chunks need them."""
    if chunking.size is None:
        return model.encode(features, lengths)
    encoder, state, outputs = model.encoder, model.encoder.start(len(features), chunking), []
    parts = features.tensor_split(
        [*range(FACTOR * chunking.size + encoder.overlap, features.shape[1], FACTOR * chunking.size)], 1
    )
    for number, part in enumerate(parts):
        finish = torch.full_like(lengths, number == len(parts) - 1, dtype=torch.bool)
        output, state = encoder.step(part, torch.full_like(lengths, part.shape[1]), state, model.routers, finish)
        outputs.append(output)
    frames = torch.cat([output.frames for output in outputs], 1)
    return EncoderOutput(frames, torch.full_like(lengths, frames.shape[1]), ())


def _round(model: U2pp, features: Tensor, lengths: Tensor, chunking: Chunking, beam: CtcPrefixBeam) -> dict[str, float]:
    """Seconds of each part that the model has, in the order of the pass."""
    weights = DecodeConfig()
    reverse_weight = weights.reverse_weight if "right_to_left" in model.decoders else 0.0
    modules: dict[str, list[nn.Module]] = {part: [] for part in PARTS.values()}
    for parent in (model.encoder, *model.encoder.layers):
        for name, module in parent.named_children():
            if name in PARTS:
                modules[PARTS[name]].append(module)
    with _stopwatches({part: found for part, found in modules.items() if found}) as times:
        marks = [clock()]
        encoded = _encode(model, features, lengths, chunking)
        marks.append(clock())
    times["norms and other"] = marks[1] - marks[0] - sum(times.values())
    log_probs = model.ctc_log_probs(encoded.frames)
    marks.append(clock())
    ctc_greedy(log_probs, encoded.frame_lengths, model.ctc.blank)
    marks.append(clock())
    nbest = beam(log_probs, encoded.frame_lengths)
    marks.append(clock())
    if model.decoders:
        attention_rescoring(model, encoded, nbest, weights.ctc_weight, reverse_weight)
        marks.append(clock())
    return times | {stage: end - begin for stage, begin, end in zip(STAGES, marks[1:], marks[2:], strict=False)}


@contextmanager
def _stopwatches(parts: Mapping[str, Sequence[nn.Module]]) -> Iterator[dict[str, float]]:
    """Inside, adds up the seconds that modules run, by the name of their part."""
    times = dict.fromkeys(parts, 0.0)

    def watch(part: str, module: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        def before(*_: object) -> None:
            times[part] -= clock()

        def after(*_: object) -> None:
            times[part] += clock()

        return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]

    handles = [handle for part, modules in parts.items() for module in modules for handle in watch(part, module)]
    try:
        yield times
    finally:
        for handle in handles:
            handle.remove()
