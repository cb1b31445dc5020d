"""What was said and when, and how it is written down as subtitles."""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from moe_asr.config.data import TokenUnit
from moe_asr.decoding.hypotheses import Hypothesis
from moe_asr.features.tokenizer import SPACE, Tokenizer, join_han

FRAME_SECONDS = 0.04
"""An encoder frame after subsampling by 4."""
PAUSE = 0.8
"""Seconds without a token that end a subtitle."""
LONGEST_CUE = 6.0
"""Seconds after which a subtitle ends at the next word."""
LAST_TOKEN = 0.4
"""Seconds that a subtitle stays after its last token, unless the next one comes first."""


@dataclass(frozen=True)
class Transcript:
    """text; hypothesis (token ids, score, ...); seconds: when each token was emitted, if known; what was noticed.

    segments: the utterances that a stream was cut into, in order; none where nothing was to be cut. nbest: the best
    hypotheses, `hypothesis` first, where an utterance was decoded as a whole.
    """

    text: str
    hypothesis: Hypothesis
    seconds: tuple[float, ...]
    notes: tuple[str, ...] = ()
    segments: tuple["Segment", ...] = ()
    nbest: tuple[Hypothesis, ...] = ()


@dataclass(frozen=True)
class Segment:
    """One utterance of a stream, from `start` to `end` (s); its transcript's times and frames are the stream's."""

    start: float
    end: float
    transcript: Transcript


@dataclass(frozen=True)
class Timed:
    """A token or word and when CTC hears it: from the start of its first frame to the end of its last (s).

    confidence: the probability of a token in its best frame, and of the least certain token of a word.
    """

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class AlignedText:
    """A given text on its best CTC path, of log probability `score`; a token that is a space belongs to no word."""

    text: str
    score: float
    words: tuple[Timed, ...]
    tokens: tuple[Timed, ...]


@dataclass(frozen=True)
class Cue:
    """A subtitle: a text and when it is shown (s)."""

    start: float
    end: float
    text: str


def joined(segments: Sequence[Segment]) -> Transcript:
    """The transcript of a whole stream."""
    parts = [segment.transcript for segment in segments]
    if len(parts) == 1:
        return replace(parts[0], segments=tuple(segments))
    found = [part.hypothesis for part in parts]
    tokens, frames, peaks = (
        tuple(i for h in found for i in getattr(h, name)) for name in ("tokens", "frames", "token_confidences")
    )
    seconds = tuple(time for part in parts for time in part.seconds)
    if len(seconds) < len(tokens):  # CTC cannot align one of them
        frames, seconds = (), ()
    weights = [(len(h.tokens) + 1) / (len(tokens) + len(found)) for h in found]
    certain = prod((h.confidence or 0.0) ** weight for h, weight in zip(found, weights, strict=True))
    hypothesis = Hypothesis(tokens, sum(h.score for h in found), frames, certain, peaks)
    return Transcript(join_han(" ".join(part.text for part in parts)), hypothesis, seconds, segments=tuple(segments))


def cues(transcript: Transcript, tokenizer: Tokenizer, start: float = 0.0) -> Iterator[Cue]:
    """Subtitles of a transcript, cut where a word begins: after a pause, at the end of a segment, or when too long.

    start: when it is shown if its times are not known (s).
    """
    if transcript.segments:
        for segment in transcript.segments:
            yield from cues(segment.transcript, tokenizer, segment.start)
        return
    tokens = transcript.hypothesis.tokens
    seconds = transcript.seconds or (start,) * len(tokens)
    begins = [0]
    for i in range(1, len(tokens)):
        long = seconds[i] - seconds[begins[-1]] > LONGEST_CUE
        if (long or seconds[i] - seconds[i - 1] > PAUSE) and _begins_word(tokenizer, tokens[i - 1], tokens[i]):
            begins.append(i)
    for first, end in zip(begins, [*begins[1:], len(tokens)], strict=True):
        if text := tokenizer.decode(tokens[first:end]).strip():
            hidden = seconds[end] if end < len(tokens) else float("inf")
            yield Cue(seconds[first], min(seconds[end - 1] + LAST_TOKEN, hidden), text)


def words_of(tokens: Sequence[Timed], ids: Sequence[int], tokenizer: Tokenizer) -> tuple[Timed, ...]:
    """The words that the tokens `ids`, with their times, make."""
    begins = [i for i in range(len(ids)) if i == 0 or _begins_word(tokenizer, ids[i - 1], ids[i])]
    words = []
    for first, end in zip(begins, [*begins[1:], len(ids)], strict=True):
        if text := tokenizer.decode(ids[first:end]).strip():
            part = tokens[first:end]
            words.append(Timed(text, part[0].start, part[-1].end, min(token.confidence for token in part)))
    return tuple(words)


def _begins_word(tokenizer: Tokenizer, before: int, token: int) -> bool:
    if tokenizer.unit in (TokenUnit.word, TokenUnit.phone):
        return True
    symbol = tokenizer.symbols[token]
    # Scripts without case (Han, kana, Hangul) are written without spaces, or read as well when cut anywhere.
    return symbol.startswith(SPACE) or tokenizer.symbols[before] == SPACE or unicodedata.category(symbol[0]) == "Lo"


def subtitles(shown: Sequence[Cue], web: bool) -> str:
    """The cues as an SRT file, or for the web as WebVTT."""

    def clock(seconds: float) -> str:
        minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
        text = f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds / 1000:06.3f}"
        return text if web else text.replace(".", ",")

    blocks = [f"{number}\n{clock(c.start)} --> {clock(c.end)}\n{c.text}\n" for number, c in enumerate(shown, 1)]
    return "\n".join(["WEBVTT\n", *blocks] if web else blocks)
