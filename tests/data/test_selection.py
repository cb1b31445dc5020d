"""What cannot be trained on is listed with its reason, and nothing is lost."""

from itertools import pairwise

import pytest
import torch
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

from moe_asr.config.data import AugmentConfig, DataConfig, FeaturesConfig, TokenUnit
from moe_asr.config.model import Subsampling
from moe_asr.data.augmentation import change_speed
from moe_asr.data.manifest import Problem, describe
from moe_asr.data.selection import ctc_frames_needed, select_for_training, summary, target_text
from moe_asr.features.fbank import LogMel
from moe_asr.features.tokenizer import SPECIALS, Tokenizer
from moe_asr.modules.subsampling import frame_lengths

WORDS = Tokenizer(TokenUnit.word, (*SPECIALS, "one", "two"))
DATA = DataConfig(min_seconds=0.1, max_seconds=10.0, max_tokens=6)
PLAIN = AugmentConfig(speeds=[1.0])


def cut(name: str, samples: int, text: str | None, phones: str | None = None) -> MonoCut:
    seconds = samples / 16000
    recording = Recording(name, [AudioSource("file", [0], "nowhere.wav")], 16000, samples, seconds)
    custom = {"phones": phones} if phones else None
    segment = SupervisionSegment(name, name, 0.0, seconds, 0, text, custom=custom)
    return MonoCut(name, 0.0, seconds, 0, [segment], recording=recording)


def select(cuts: list[MonoCut], tokenizer: Tokenizer = WORDS, augment: AugmentConfig = PLAIN, data: DataConfig = DATA):  # type: ignore[no-untyped-def]
    return select_for_training(cuts, tokenizer, data, FeaturesConfig(), augment)


def test_each_reason_is_listed_and_nothing_is_lost() -> None:
    cuts = [
        cut("good", 16000, "one  two\n"),
        cut("silent", 16000, ""),
        cut("blank", 16000, " \t"),
        cut("none", 16000, None),
        cut("foreign", 16000, "one zwei drei"),
        cut("short", 1599, "one"),
        cut("long", 160001, "one"),
        cut("wordy", 160000, "one two one two one two one"),
        cut("fast", 3200, "one two one two"),
        cut("longest", 160000, "one two one two one two"),
    ]
    usable, tokens, problems = select(cuts)
    assert [c.id for c in usable] == ["good", "longest"]
    assert tokens == [[3, 4], [3, 4, 3, 4, 3, 4]]
    assert problems == [
        Problem("silent", "no text", ""),
        Problem("blank", "no text", ""),
        Problem("none", "no text", ""),
        Problem("foreign", "outside the tokenizer", "drei zwei"),
        Problem("short", "too short or too long", "0.10 s"),
        Problem("long", "too short or too long", "10.00 s"),
        Problem("wordy", "too many tokens", "7 tokens"),
        Problem("fast", "too short for CTC", "3 frames at the highest speed for 4"),
    ]
    assert len(usable) + len(problems) == len(cuts)
    assert summary(problems, len(cuts)) == (
        "8 of 10 utterances left out (3 no text, 2 too short or too long, 1 outside the tokenizer, "
        "1 too many tokens, 1 too short for CTC)"
    )


def test_no_utterances_at_all() -> None:
    assert select([]) == ([], [], [])


@pytest.mark.parametrize(
    ("tokens", "frames"), [([], 0), ([3], 1), ([3, 4], 2), ([3, 3], 3), ([3, 3, 3, 4], 6), ([3, 4, 3], 3)]
)
def test_a_blank_separates_repeated_tokens(tokens: list[int], frames: int) -> None:
    assert ctc_frames_needed(tokens) == frames
    # The shortest path, spelled out.
    path = [tokens[0]] if tokens else []
    for before, after in pairwise(tokens):
        path += [0, after] if before == after else [after]
    assert len(path) == frames


@pytest.mark.parametrize("text", ["one two one", "one one", "two two two two"])
def test_the_limit_of_ctc_is_exact(text: str) -> None:
    needed = ctc_frames_needed(WORDS.encode(text))
    samples = LogMel(FeaturesConfig()).samples_needed(4 * needed + 3)
    assert [len(select([cut("x", samples - 1, text)])[0]), len(select([cut("x", samples, text)])[0])] == [0, 1]


@pytest.mark.parametrize("speeds", [[0.9, 1.1], [0.8, 1.25], [1.0]])
@pytest.mark.parametrize("trim", [0, 7])
def test_what_is_usable_stays_so_at_every_speed_and_after_trimming(speeds: list[float], trim: int) -> None:
    augment = AugmentConfig(speeds=speeds, trim_frames=trim)
    log_mel, text = LogMel(FeaturesConfig()), "one two two one"
    needed = ctc_frames_needed(WORDS.encode(text))
    sizes = [n for n in range(2000, 8000, 13) if select([cut("x", n, text)], augment=augment)[0]]
    frames = []
    for speed in speeds:
        spoken = torch.tensor([len(change_speed(torch.zeros(n), speed)) for n in sizes])
        frames.append(frame_lengths(log_mel.feature_lengths(spoken) - trim, Subsampling.conv2d))
    fewest = torch.stack(frames).amin(0)
    assert len(sizes) > 100
    assert int(fewest.min()) == needed  # never fewer, and no stricter than it must be


def test_phone_targets() -> None:
    phones = Tokenizer(TokenUnit.phone, (*SPECIALS, "n", "w", "ʌ"))
    cuts = [cut("spoken", 16000, "one", "w ʌ n"), cut("unknown", 16000, "one"), cut("odd", 16000, "two", "t uː")]
    usable, tokens, problems = select(cuts, phones)
    assert [c.id for c in usable] == ["spoken"]
    assert tokens == [[4, 5, 3]]
    assert [(p.id, p.reason) for p in problems] == [("unknown", "no text"), ("odd", "outside the tokenizer")]
    assert [target_text(describe(c), TokenUnit.word) for c in cuts] == ["one", "one", "two"]
