"""What a stream shows, and when."""

from torch import Tensor

from moe_asr.config.data import TokenUnit
from moe_asr.config.decode import DecodeConfig
from moe_asr.measure.latency import Shown
from moe_asr.runs.recognizer import Recognizer

BLOCK_SECONDS = 0.01
"""How much audio is fed at a time; nothing is timed more finely."""


def watch(recognizer: Recognizer, samples: Tensor, decode: DecodeConfig, name: str = "") -> list[Shown]:
    """Streams samples (S,) and tells every text that is shown; full context shows one, when all has been heard.

    name: of the utterance, for forced routing.
    """
    rate, tokenizer = recognizer.config.features.sample_rate, recognizer.tokenizer
    end = len(samples) / rate
    if decode.chunk is None:
        words = tuple(recognizer.decode([samples], decode, [name])[0][0].text.split())
        return [Shown(end, words, len(words))]
    whole = tokenizer.unit in (TokenUnit.word, TokenUnit.phone)  # else the last word may go on
    session = recognizer.stream(decode.chunk, decode.left, decode, name=name)
    size = round(BLOCK_SECONDS * rate)
    shown: list[Shown] = []
    known: tuple[tuple[int, ...], int] = (), 0
    for heard in range(size, len(samples) + size, size):
        partial = session.push(samples[heard - size : heard])
        if (now := (partial.tokens, partial.stable)) != known:
            certain = len(tokenizer.decode(partial.tokens[: partial.stable]).split())
            words = tuple(partial.text.split())
            shown.append(Shown(min(heard / rate, end), words, certain if whole else max(0, certain - 1)))
            known = now
    words = tuple(session.finish().text.split())
    return [*shown, Shown(end, words, len(words))]
