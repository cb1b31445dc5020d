"""What the prefix beam knows besides the audio: hotwords, and an n-gram language model over tokens."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import log
from pathlib import Path
from typing import Any, Protocol

from moe_asr.config.decode import DecodeConfig
from moe_asr.errors import InputError
from moe_asr.features.tokenizer import Tokenizer


class Context(Protocol):
    """Adds to the score of a text, token by token; a state is a plain value."""

    @property
    def start(self) -> Any: ...

    def extend(self, state: Any, token: int) -> tuple[Any, float]:
        """The state after one more token, and what that token adds."""
        ...

    def finish(self, state: Any) -> float:
        """What the end of the text adds."""
        ...


class Hotwords:
    """`bonus` for every token of a phrase; what an incomplete phrase got is taken back where the text leaves it.

    The text is read from left to right, as the longest phrases that it holds without overlap. A state is the beginning
    of a phrase that the text ends in.
    """

    start: tuple[int, ...] = ()

    def __init__(self, phrases: Iterable[Sequence[int]], bonus: float) -> None:
        self._phrases, self._bonus = {tuple(phrase) for phrase in phrases}, bonus
        self._beginnings = {phrase[:i] for phrase in self._phrases for i in range(1, len(phrase))}

    def extend(self, state: tuple[int, ...], token: int) -> tuple[tuple[int, ...], float]:
        path = (*state, token)
        if path in self._beginnings:
            return path, self._bonus
        if path in self._phrases:
            return (), self._bonus
        return self._fall_back(state, (token,)) if state else ((), 0.0)

    def finish(self, state: tuple[int, ...]) -> float:
        gained = 0.0
        while state:
            state, gain = self._fall_back(state, ())
            gained += gain
        return gained

    def _fall_back(self, state: tuple[int, ...], tail: tuple[int, ...]) -> tuple[tuple[int, ...], float]:
        """Keeps the longest phrase that the state begins with, or drops its first token, and reads the rest again."""
        kept = next((i for i in range(len(state), 0, -1) if state[:i] in self._phrases), 0)
        gained, again = self._bonus * (kept - len(state)), self.start
        for token in state[max(kept, 1) :] + tail:
            again, gain = self.extend(again, token)
            gained += gain
        return again, gained


class LanguageModel:
    """`weight` times the log probability of an n-gram model, and `token_bonus` for every token, shallowly fused.

    path: an ARPA or KenLM file whose words are the symbols of the tokenizer. Symbols it lacks count as its <unk>.
    Raises InputError without the `decode` extra, or where the file cannot be read.
    """

    def __init__(self, path: str, symbols: Sequence[str], weight: float, token_bonus: float) -> None:
        try:
            from flashlight.lib.text.decoder.kenlm import KenLM
            from flashlight.lib.text.dictionary import Dictionary
        except ImportError as error:
            raise InputError("decode.lm needs flashlight-text: pip install 'moe-asr[decode]'.") from error
        if not Path(path).is_file():
            raise InputError(f"decode.lm={path} is not a file; give an ARPA or KenLM model over tokens.")
        try:
            self._model = KenLM(path, Dictionary(list(symbols)))
        except RuntimeError as error:
            raise InputError(f"decode.lm={path} is neither ARPA nor KenLM: {str(error).splitlines()[-1]}.") from error
        self._weight, self._token_bonus = weight * log(10.0), token_bonus
        self.start = self._model.start(False)

    def extend(self, state: Any, token: int) -> tuple[Any, float]:
        state, score = self._model.score(state, token)
        return state, self._weight * score + self._token_bonus

    def finish(self, state: Any) -> float:
        return self._weight * float(self._model.finish(state)[1])


class Both:
    """Two contexts whose scores add up."""

    def __init__(self, one: Context, other: Context) -> None:
        self._parts, self.start = (one, other), (one.start, other.start)

    def extend(self, state: Any, token: int) -> tuple[Any, float]:
        (one, gain), (other, more) = (part.extend(s, token) for part, s in zip(self._parts, state, strict=True))
        return (one, other), gain + more

    def finish(self, state: Any) -> float:
        return sum(part.finish(s) for part, s in zip(self._parts, state, strict=True))


def make_context(config: DecodeConfig, tokenizer: Tokenizer) -> Context | None:
    """None where nothing is asked for. Raises InputError for a hotword that the tokenizer cannot write."""
    phrases = [*config.hotwords, *_lines(config.hotwords_file)]
    for phrase in phrases:
        if not phrase.strip() or tokenizer.unknown(phrase):
            raise InputError(
                f"the hotword '{phrase}' is empty or holds what the tokenizer does not know: leave it out."
            )
    hotwords = Hotwords(map(tokenizer.encode, phrases), config.hotword_bonus) if phrases else None
    if config.lm is None:
        return hotwords
    model = _load_lm(config.lm, tokenizer.symbols, config.lm_weight, config.token_bonus)
    return model if hotwords is None else Both(hotwords, model)


def _lines(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        return [line.strip() for line in Path(path).read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"decode.hotwords_file={path} cannot be read; give a text file with a phrase a line."
        ) from error


_load_lm = lru_cache(maxsize=1)(LanguageModel)
"""A model of gigabytes is read once, not once per batch."""
