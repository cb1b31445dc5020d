"""Named text normalisers. A rate is comparable only under one of them, so results record its name and hash.

none     the text as it is
basic    Unicode NFKC, lower case; invisible format characters dropped; punctuation (Unicode category P)
         becomes a space, except an apostrophe inside a word; white space collapsed. Accents, vowel signs and
         symbols stay
english  basic, and a short list of spellings of the same spoken words (`ENGLISH_SYMBOLS`, `ENGLISH_WORDS`):
         unambiguous contractions are written out, fillers dropped. Numbers are not spelled out, and 's and 'd
         stay, because their reading depends on the context
cjk      basic, and no white space beside a Han character or kana, where segmentation is the transcriber's
         taste; for the units char and mixed
"""

import difflib
import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass

from moe_asr.errors import InputError

CJK = "\u3005\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
"""Han characters and kana, as the inside of a regular expression's character class."""

Rules = tuple[tuple[str, str], ...]

ENGLISH_SYMBOLS: Rules = (
    (r"(?<=\d),(?=\d{3}(?!\d))", ""),  # 1,000
    (r"(?<=\d)\.(?=\d)", " point "),
    (r"%", " percent "),
    (r"&", " and "),
)
"""Before punctuation goes: signs that are spoken."""

ENGLISH_WORDS: Rules = (
    (r"\bwon't\b", "will not"),
    (r"\bshan't\b", "shall not"),
    (r"\bcan't\b|\bcannot\b", "can not"),
    (r"(?<=\w)n't\b", " not"),
    (r"\blet's\b", "let us"),
    (r"(?<=\w)'re\b", " are"),
    (r"(?<=\w)'ve\b", " have"),
    (r"(?<=\w)'ll\b", " will"),
    (r"\bi'm\b", "i am"),
    (r"\bmr\b", "mister"),
    (r"\bmrs\b", "missus"),
    (r"\bok\b", "okay"),
    (r"\bper cent\b", "percent"),
    (r"\b(u+h+|u+m+|h+m+|m{2,}|er+m?)\b", " "),
)
"""After punctuation went: spellings of one pronunciation or meaning, and fillers."""

_BASIC_VERSION = 1  # raise it with every change of `_fold` or `_strip_punctuation`: it is part of every hash
_APOSTROPHES = str.maketrans(dict.fromkeys("‘’ʼ`´＇", "'"))


def _fold(text: str) -> str:
    visible = "".join(c for c in text if unicodedata.category(c) != "Cf" or c in "\u200c\u200d")
    lowered = unicodedata.normalize("NFKC", visible.translate(_APOSTROPHES)).lower()
    return unicodedata.normalize("NFKC", lowered).translate(_APOSTROPHES)


def _strip_punctuation(text: str) -> str:
    def keep(i: int, c: str) -> bool:
        inside = c == "'" and text[i - 1 : i].isalnum() and text[i + 1 : i + 2].isalnum()
        return inside or not unicodedata.category(c).startswith("P")

    return "".join(c if keep(i, c) else " " for i, c in enumerate(text))


def _apply(rules: Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


@dataclass(frozen=True)
class Normalizer:
    name: str
    basic: bool = True
    symbols: Rules = ()
    words: Rules = ()

    def __call__(self, text: str) -> str:
        if not self.basic:
            return text
        text = _strip_punctuation(_apply(self.symbols, _fold(text)))
        return " ".join(_apply(self.words, " ".join(text.split())).split())

    @property
    def hash(self) -> str:
        """Changes when, and only when, the definition does."""
        definition = [self.name, self.basic and _BASIC_VERSION, self.symbols, self.words]
        return hashlib.blake2b(json.dumps(definition).encode(), digest_size=6).hexdigest()

    def receipt(self) -> dict[str, str]:
        return {"name": self.name, "hash": self.hash}


NORMALIZERS = {
    n.name: n
    for n in (
        Normalizer("none", basic=False),
        Normalizer("basic"),
        Normalizer("english", symbols=ENGLISH_SYMBOLS, words=ENGLISH_WORDS),
        Normalizer("cjk", words=((rf"(?<=[{CJK}])\s+|\s+(?=[{CJK}])", ""),)),
    )
}


def normalizer(name: str) -> Normalizer:
    """The normaliser of that name; InputError when there is none."""
    if name not in NORMALIZERS:
        close = difflib.get_close_matches(name, NORMALIZERS, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}? " if close else ""
        raise InputError(f"There is no normaliser '{name}': {hint}The choices are {', '.join(NORMALIZERS)}.")
    return NORMALIZERS[name]
