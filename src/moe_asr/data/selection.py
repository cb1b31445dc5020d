"""Which utterances can be trained on: everything left out is counted and listed by id, never dropped silently."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from lhotse.cut import Cut

from moe_asr.config.data import AugmentConfig, DataConfig, FeaturesConfig, TokenizerConfig, TokenUnit
from moe_asr.config.model import Subsampling
from moe_asr.data.manifest import Problem, Utterance, describe
from moe_asr.features.fbank import LogMel
from moe_asr.features.tokenizer import Tokenizer, train_tokenizer
from moe_asr.modules.subsampling import frame_lengths


def target_text(utterance: Utterance, unit: TokenUnit) -> str:
    """What a model learns and is scored on: the words of an utterance, or its phones."""
    text = utterance.phones if unit is TokenUnit.phone else utterance.text
    return " ".join((text or "").split())


def learn_tokenizer(config: TokenizerConfig, cuts: Iterable[Cut]) -> Tokenizer:
    """The tokens of what the utterances say; raises InputError as `train_tokenizer` does."""
    return train_tokenizer(config, [target_text(describe(cut), config.unit) for cut in cuts])


def ctc_frames_needed(tokens: Sequence[int]) -> int:
    """Frames the shortest CTC path of a token sequence takes: a blank must separate repeated tokens."""
    return len(tokens) + sum(a == b for a, b in pairwise(tokens))


def select_for_training(
    cuts: Sequence[Cut],
    tokenizer: Tokenizer,
    data: DataConfig,
    features: FeaturesConfig,
    augment: AugmentConfig,
    subsampling: Subsampling = Subsampling.conv2d,
) -> tuple[list[Cut], list[list[int]], list[Problem]]:
    """The usable utterances with their tokens, and the others with the reason each is left out.

    The limits hold for every speed that augmentation may draw, so a batch never meets an utterance it cannot use.
    """
    usable: list[Cut] = []
    tokens_of: list[list[int]] = []
    problems: list[Problem] = []
    samples = torch.tensor([int(cut.duration / max(augment.speeds) * features.sample_rate) for cut in cuts])
    features_left = LogMel(features).feature_lengths(samples) - augment.trim_frames
    frames = frame_lengths(features_left, subsampling).tolist()
    for cut, frames_at_least in zip(cuts, frames, strict=True):
        text = target_text(describe(cut), tokenizer.unit)
        tokens = tokenizer.encode(text)
        outside = tokenizer.unknown(text)
        if not tokens:
            problems.append(Problem(cut.id, "no text", ""))
        elif outside:
            problems.append(Problem(cut.id, "outside the tokenizer", " ".join(sorted(outside))))
        elif not data.min_seconds <= cut.duration <= data.max_seconds:
            problems.append(Problem(cut.id, "too short or too long", f"{cut.duration:.2f} s"))
        elif len(tokens) > data.max_tokens:
            problems.append(Problem(cut.id, "too many tokens", f"{len(tokens)} tokens"))
        elif frames_at_least < ctc_frames_needed(tokens):
            detail = f"{frames_at_least} frames at the highest speed for {ctc_frames_needed(tokens)}"
            problems.append(Problem(cut.id, "too short for CTC", detail))
        else:
            usable.append(cut)
            tokens_of.append(tokens)
    return usable, tokens_of, problems


def summary(problems: Sequence[Problem], total: int) -> str:
    """One line, e.g. "3 of 2000 utterances left out (2 no text, 1 too short for CTC)"."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(p.reason for p in problems).most_common())
    return f"{len(problems)} of {total} utterances left out ({reasons})"
