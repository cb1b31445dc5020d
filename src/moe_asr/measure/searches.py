"""How fast texts are searched, whatever encoded the speech."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from moe_asr.config.benchmark import BenchmarkConfig
from moe_asr.config.data import FeaturesConfig
from moe_asr.config.decode import DecodeConfig
from moe_asr.decoding.attention import attention_rescoring, attention_search
from moe_asr.decoding.ctc_greedy import ctc_greedy
from moe_asr.decoding.ctc_prefix_beam import CtcPrefixBeam
from moe_asr.measure.profile import make_speak
from moe_asr.measure.timing import Spread, interleaved, spread
from moe_asr.models.encoder import EncoderOutput
from moe_asr.models.inference import prepare
from moe_asr.models.u2pp import build_model
from moe_asr.modules.subsampling import frame_lengths


@dataclass(frozen=True)
class Row:
    search: str
    vocab_size: int
    beam: int
    seconds: Spread
    """Of one utterance; rescoring and attention without what comes before them."""
    frames_per_second: float
    tokens: int
    """Of the longest hypothesis."""


@torch.no_grad()
def search_rows(config: BenchmarkConfig) -> list[Row]:
    """Every search of the model, whose CTC head says as much as `nonblank` asks of random frames.

    Attention, whose untrained decoder sees no end, is cut at as many tokens as CTC finds.
    """
    bins, weights = FeaturesConfig().mel_bins, DecodeConfig()
    count = int(frame_lengths(torch.tensor(round(100 * config.seconds)), config.model.encoder.subsampling))
    rows = []
    for size in config.searches.vocab_sizes:
        torch.manual_seed(config.seed)
        model = build_model(config.model, config.moe, config.router, config.loss, vocab_size=size, mel_bins=bins).eval()
        encoded = _encoded(torch.randn(1, count, config.model.encoder.width), count)
        make_speak(model, encoded, config.nonblank)
        prepare(model, release=True)
        log_probs, lengths, blank = model.ctc_log_probs(encoded.frames), encoded.frame_lengths, model.ctc.blank
        works: dict[tuple[str, int], Callable[[], object]] = {}
        works["ctc_greedy", 1] = partial(ctc_greedy, log_probs, lengths, blank)
        tokens = {("ctc_greedy", 1): len(ctc_greedy(log_probs, lengths, blank)[0].tokens)}
        reverse = weights.reverse_weight if "right_to_left" in model.decoders else 0.0
        for beam in config.searches.beams:
            search = CtcPrefixBeam(beam, blank)
            nbest = search(log_probs, lengths)
            longest = max(len(h.tokens) for h in nbest[0])
            works["ctc_prefix_beam", beam] = partial(search, log_probs, lengths)
            if model.decoders:
                cut = _encoded(encoded.frames, max(1, longest))
                works["attention", beam] = partial(attention_search, model, cut, log_probs, beam, beam)
                rescore = partial(attention_rescoring, model, encoded, nbest, weights.ctc_weight, reverse)
                works["attention_rescoring", beam] = rescore
            tokens |= {case: longest for case in works if case[1] == beam and case not in tokens}
        with torch.inference_mode():  # not before: its tensors could not tell packed weights that they were changed
            taken = interleaved(works, config.rounds)
        for case, times in taken.items():
            found = spread(times)
            rows.append(Row(case[0], size, case[1], found, count / found.median, tokens[case]))
    return rows


def _encoded(frames: Tensor, length: int) -> EncoderOutput:
    return EncoderOutput(frames, torch.tensor([length]), ())
