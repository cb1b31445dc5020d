"""Pronunciations of any text, as espeak-ng would speak it: phone targets for recordings that come without a lexicon."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from moe_asr.data.synthetic import espeak
from moe_asr.data.synthetic.render import follow_parent
from moe_asr.errors import InputError


def phonemize(texts: Sequence[str], accent: str) -> list[str]:
    """IPA phones of each text, separated by spaces; `accent` is espeak-ng's name, such as "en-us".

    espeak-ng runs in processes of its own. Raises InputError if it is not installed or has no such accent.
    """
    if not espeak.available():
        raise InputError("phones= needs espeak-ng: install it with `pip install 'moe-asr[synthetic]'`.")
    with ProcessPoolExecutor(None, multiprocessing.get_context("spawn"), follow_parent) as pool:
        try:
            return list(pool.map(partial(_phones, accent), texts, chunksize=64))
        except RuntimeError as error:
            raise InputError(f"phones={accent} is no accent of espeak-ng; write phones=en-us, for example.") from error


def _phones(accent: str, text: str) -> str:
    voice = espeak.EspeakVoice("pronunciation", accent, accent, pitch=50, spread=50, rate=175)
    return " ".join(phone.symbol for phone in voice.speak(text, seed=0).phones)
