"""Every way to find the text of encoded speech, behind one door."""

from torch import Tensor

from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.decoding.attention import attention_rescoring, attention_search
from moe_asr.decoding.context import make_context
from moe_asr.decoding.ctc_greedy import ctc_greedy
from moe_asr.decoding.ctc_prefix_beam import CtcPrefixBeam
from moe_asr.decoding.hypotheses import Hypothesis
from moe_asr.features.tokenizer import Tokenizer
from moe_asr.models.encoder import EncoderOutput
from moe_asr.models.u2pp import AsrModel
from moe_asr.modules.moe.routing import NOTHING, Side
from moe_asr.modules.moe.sharing import Routers


def search(
    model: AsrModel,
    encoded: EncoderOutput,
    config: DecodeConfig,
    tokenizer: Tokenizer,
    routers: Routers | None = None,
    side: Side = NOTHING,
) -> list[list[Hypothesis]]:
    """The n-best of each utterance, best first: at least one, at most `config.nbest`.

    routers: of the decoders, in place of the model's own, and what they are told.
    Raises InputError where the model lacks a decoder that the mode needs.
    """
    log_probs, lengths = ctc_log_probs(model, encoded.frames, config), encoded.frame_lengths
    match config.mode:
        case DecodeMode.ctc_greedy:
            found = [[hypothesis] for hypothesis in ctc_greedy(log_probs, lengths, model.ctc.blank)]
        case DecodeMode.ctc_prefix_beam:
            found = prefix_beam(model, config, tokenizer)(log_probs, lengths)
        case DecodeMode.attention:
            beam, nbest, penalty = config.beam, config.nbest, config.length_penalty
            found = attention_search(model, encoded, log_probs, beam, nbest, penalty, routers, side)
        case DecodeMode.attention_rescoring:
            found = prefix_beam(model, config, tokenizer)(log_probs, lengths)
            weights = config.ctc_weight, config.reverse_weight
            found = attention_rescoring(model, encoded, found, *weights, routers, side)
    return [hypotheses[: config.nbest] for hypotheses in found]


def ctc_log_probs(model: AsrModel, frames: Tensor, config: DecodeConfig) -> Tensor:
    """(B,N,d) -> (B,N,V), with `config.blank_penalty` taken off blank's logit."""
    log_probs = model.ctc_log_probs(frames)
    if config.blank_penalty == 0.0:
        return log_probs
    log_probs = log_probs.clone()
    log_probs[..., model.ctc.blank] -= config.blank_penalty
    return log_probs.log_softmax(-1)


def prefix_beam(model: AsrModel, config: DecodeConfig, tokenizer: Tokenizer) -> CtcPrefixBeam:
    """Raises InputError for hotwords or a language model that cannot be used."""
    return CtcPrefixBeam(config.beam, model.ctc.blank, make_context(config, tokenizer))
