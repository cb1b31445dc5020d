"""What the decoders do in a search: find texts of their own, or score those that CTC found."""

from collections.abc import Sequence
from math import exp

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from moe_asr.decoding.alignment import align
from moe_asr.decoding.hypotheses import Hypothesis
from moe_asr.errors import InputError
from moe_asr.models.decoder import Decoder
from moe_asr.models.encoder import EncoderOutput
from moe_asr.models.u2pp import AsrModel, teacher_forcing
from moe_asr.modules.moe.routing import NOTHING, Side
from moe_asr.modules.moe.sharing import Routers


def attention_search(
    model: AsrModel,
    encoded: EncoderOutput,
    log_probs: Tensor,
    beam: int,
    nbest: int,
    length_penalty: float = 0.0,
    routers: Routers | None = None,
    side: Side = NOTHING,
) -> list[list[Hypothesis]]:
    """The n-best of a beam search of the left-to-right decoder; an ended hypothesis keeps its score and its place.

    It stops as soon as no hypothesis that goes on can come among the n-best. A hypothesis has at most as many tokens as
    its utterance has frames, and is cut there. Scores are log
    probabilities of all tokens and the end, divided by tokens ** length_penalty; frames are where the CTC path, of
    log_probs (B,N,V), that fits the tokens best begins each. Raises InputError for a model without that decoder.
    """
    decoder = _decoder(model, "left_to_right", "write decode.mode=ctc_prefix_beam.")
    eos, B, device = model.sos_eos, len(encoded.frames), encoded.frames.device
    memory, state = decoder.memory(encoded), decoder.start(B * beam)
    first = beam * torch.arange(B, device=device).unsqueeze(1)
    tokens = torch.full((B * beam, 1), eos, device=device)
    gains = torch.zeros(B * beam, 1, dtype=torch.float64, device=device)  # log probability of each token
    scores = torch.where(torch.arange(beam, device=device) == 0, 0.0, -torch.inf).double().repeat(B, 1)
    for count in range(int(encoded.frame_lengths.max())):
        ended = (encoded.frame_lengths <= count).repeat_interleave(beam)
        if count:
            ended |= tokens[:, -1] == eos
        lengths = (tokens != eos).sum(1).view(B, beam)
        # A score falls with every token, so a final one lies between those at the present and at the longest length.
        now, longest = (scores / n.clamp(min=1) ** length_penalty for n in (lengths, encoded.frame_lengths.view(B, 1)))
        open_ = ~ended.view(B, beam)
        sure = now.masked_fill(open_, -torch.inf).topk(min(nbest, beam)).values[:, -1]
        hoped = now.maximum(longest).masked_fill(~open_, -torch.inf).amax(1)
        if bool(ended.all() | (sure > hoped).all()):
            break
        logits, state = decoder.step(tokens[:, -1], memory, state, routers or model.routers, side)
        gain = logits.double().log_softmax(-1).masked_fill(ended.unsqueeze(1), -torch.inf)
        gain[:, eos].masked_fill_(ended, 0.0)
        scores, best = (scores.view(-1, 1) + gain).view(B, -1).topk(beam)
        chosen, ids = (first + best // gain.shape[1]).flatten(), (best % gain.shape[1]).view(-1, 1)
        tokens = torch.cat([tokens[chosen], ids], 1)
        gains = torch.cat([gains[chosen], gain[chosen].gather(1, ids)], 1)
        state = tuple(cache[chosen] for cache in state)
    lengths = (tokens != eos).sum(1)
    final = scores / lengths.view(B, beam).clamp(min=1) ** length_penalty
    order = final.sort(descending=True, stable=True).indices[:, :nbest]
    rows = (first + order).flatten()
    tokens, lengths = tokens[rows, 1:], lengths[rows]
    found = [
        Hypothesis(
            tuple(row[:length]),
            score,
            tuple(begin for begin, _ in alignment.spans),
            exp(sum(gain) / (length + 1)),
            tuple(map(exp, gain[1 : length + 1])),
        )
        for row, length, score, gain, alignment in zip(
            tokens.tolist(),
            lengths.tolist(),
            final.gather(1, order).flatten().tolist(),
            gains[rows].tolist(),
            align(log_probs, encoded.frame_lengths, tokens, lengths, model.ctc.blank),
            strict=True,
        )
    ]
    size = order.shape[1]
    return [[h for h in found[i : i + size] if h.score > -torch.inf] for i in range(0, len(found), size)]


def attention_rescoring(
    model: AsrModel,
    encoded: EncoderOutput,
    nbest: Sequence[Sequence[Hypothesis]],
    ctc_weight: float,
    reverse_weight: float,
    routers: Routers | None = None,
    side: Side = NOTHING,
) -> list[list[Hypothesis]]:
    """The n-best of each utterance by ``(1-r) l2r + r r2l + c ctc`` (U2++, arXiv 2106.05642, section 2.3).

    l2r and r2l are the decoders' log probabilities of the tokens and the end, ctc is the score so far; equals keep
    their order. Token confidences are the means of both decoders. Raises InputError where a decoder is missing.
    """
    size, device = max(map(len, nbest)), encoded.frames.device
    grid = [h for found in nbest for h in [*found, *[Hypothesis((), 0.0, ())] * (size - len(found))]]
    lengths = torch.tensor([len(h.tokens) for h in grid], device=device)
    tokens = pad_sequence([torch.tensor(h.tokens, dtype=torch.long) for h in grid], batch_first=True).to(device)
    place = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
    shares = {"left_to_right": 1 - reverse_weight, "right_to_left": reverse_weight}
    shares = {name: share for name, share in shares.items() if share > 0}
    scores, certain = torch.zeros(len(grid), device=device).double(), torch.zeros_like(tokens, dtype=torch.float64)
    for name, share in shares.items():
        reverse = name == "right_to_left"
        decoder = _decoder(model, name, f"write decode.reverse_weight={float(not reverse)} or another decode.mode.")
        inputs, targets = teacher_forcing(tokens, lengths, model.sos_eos, reverse)
        logits, _ = decoder(inputs, lengths + 1, decoder.memory(encoded), None, routers or model.routers, side)
        gains = (logits.gather(2, targets.clamp(min=0).unsqueeze(2)).squeeze(2) - logits.logsumexp(2)).double()
        scores += share * gains.masked_fill(targets < 0, 0.0).sum(1)
        where = (lengths.unsqueeze(1) - 1 - place).clamp(min=0) if reverse else place
        certain += gains.gather(1, where).exp() / len(shares)
    anew = [
        Hypothesis(h.tokens, score + ctc_weight * h.score, h.frames, exp(score / (n + 1)), tuple(confidences[:n]))
        for h, n, score, confidences in zip(grid, lengths.tolist(), scores.tolist(), certain.tolist(), strict=True)
    ]
    rows = (anew[i * size : i * size + len(found)] for i, found in enumerate(nbest))
    return [sorted(row, key=lambda hypothesis: -hypothesis.score) for row in rows]


def _decoder(model: AsrModel, name: str, remedy: str) -> Decoder:
    if name not in model.decoders:
        raise InputError(f"this model has no {name.replace('_', '-')} decoder: {remedy}")
    return model.decoders[name]
