"""What the voices say. Splits share no sentence: a hash of its words decides where a sentence belongs."""

import hashlib
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from numpy.random import Generator

from moe_asr.config.synthetic import Recipe, SyntheticConfig
from moe_asr.errors import InputError

SHARES = {"train": 0.7, "dev": 0.1, "seen": 0.1, "unseen": 0.1}
_TRIES = 1000  # all of them miss a split that has a tenth of the sentences once in 10^45 times


@dataclass(frozen=True)
class Sentence:
    """spoken: what the synthesizer reads. text: the target; None if the phones are."""

    spoken: str
    text: str | None


def split_of(words: str, seed: int) -> str:
    """The split that a sentence belongs to, a pure function of both arguments."""
    digest = hashlib.blake2b(f"{seed}\x1f{words}".encode(), digest_size=8).digest()
    position = int.from_bytes(digest, "big") / 2**64
    for split, share in SHARES.items():
        if position < share:
            return split
        position -= share
    return split


def sentences(config: SyntheticConfig, split: str, language: str, rng: Generator) -> Iterator[Sentence]:
    """Endless sentences of one voice, new to it as long as the recipe has new ones for this split.

    Raises InputError if the split has none.
    """
    draw, said = _DRAW[config.recipe], set[str]()
    while True:
        chosen = None
        for _ in range(_TRIES):
            sentence = draw(config, language, rng)
            if split_of(sentence.spoken, config.seed) == split:
                chosen = sentence
                if sentence.spoken not in said:
                    break
        if chosen is None:
            raise InputError(f"no sentence falls into the split {split!r}; raise max_digits or change seed.")
        said.add(chosen.spoken)
        yield chosen


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def _digits(config: SyntheticConfig, language: str, rng: Generator) -> Sentence:
    length = rng.integers(config.min_digits, config.max_digits + 1)
    words = " ".join(DIGITS[d] for d in rng.integers(10, size=length))
    return Sentence(words, words)


# A capital symbol is rewritten as one of its alternatives; the rest are words. Number agrees, and verbs take
# objects that make sense, so there is a language to learn.
GRAMMAR = """
S: STATEMENT|STATEMENT|STATEMENT JOIN STATEMENT|TIME STATEMENT|QUESTION|COMMAND|COMMAND|please COMMAND
JOIN: and|but|because|before|after
STATEMENT: ONE ACTS|ONE ACTS|MANY ACT|MANY ACT|ONE ACTS ADVERB|MANY ACT TIME
STATEMENT: ONE is STATE|MANY are STATE|ONE was STATE|MANY were STATE
QUESTION: where is THE_ONE|where are THE_MANY|when does ONE ACT|why do MANY ACT|can ONE ACT|who ACTS
QUESTION: how many PERSONS ACT|is ONE STATE|are MANY STATE
COMMAND: bring me the THING|open the DOOR|close the DOOR|DRIVE to the PLACE|call the PERSON TIME
COMMAND: do not EAT the FOOD|turn left at the PLACE|turn right at the PLACE|put the THING WHERE
ONE: THE_ONE|THE_ONE|she|he|my FAMILY|your FAMILY
MANY: THE_MANY|THE_MANY|we|they|you|NUMBER PERSONS
THE_ONE: the PERSON|the QUALITY PERSON|a KIND PERSON|the ANIMAL|the QUALITY ANIMAL
THE_MANY: the PERSONS|the QUALITY PERSONS|some ANIMALS|all ANIMALS
ACTS: EATS the FOOD|EATS TASTE FOOD|DRIVES to the PLACE|sees the THING WHERE|likes ANIMALS|sleeps WHERE
ACTS: likes the QUALITY THING|reads a KIND book|waits for the PERSON|wants to ACT|works at the PLACE
ACTS: gives the PERSON NUMBER THINGS
ACT: EAT the FOOD|EAT TASTE FOOD|DRIVE to the PLACE|see the THING WHERE|like ANIMALS|sleep WHERE
ACT: like the QUALITY THING|read a KIND book|wait for the PERSON|work at the PLACE
ACT: give the PERSON NUMBER THINGS
STATE: QUALITY|very QUALITY|not QUALITY|WHERE|at the PLACE|ready to ACT
EATS: eats|cooks
EAT: eat|cook
DRIVES: drives|walks|runs
DRIVE: drive|walk|run
PERSON: doctor|teacher|driver|farmer|child|woman|man|student
PERSONS: doctors|teachers|drivers|farmers|children|women|men|students
FAMILY: mother|father|brother|sister|friend
ANIMAL: dog|cat|horse|bird|mouse
ANIMALS: dogs|cats|horses|birds|mice
FOOD: bread|rice|soup|fish|cheese|apples
TASTE: hot|cold|fresh|sweet
THING: lamp|chair|box|letter|clock|bottle
THINGS: lamps|chairs|boxes|letters|clocks|bottles
DOOR: door|window
PLACE: market|school|station|river|garden|city|beach|bridge|hospital
WHERE: under the table|on the roof|in the kitchen|behind the house|near the PLACE|in the PLACE
QUALITY: old|KIND|happy|tired|quiet|strong|red
KIND: young|small|big|famous
NUMBER: two|three|four|five|ten|twenty
TIME: today|tomorrow|tonight|every morning|on monday|on friday|this evening
ADVERB: slowly|quickly|often|again|together
"""


def _read_grammar(rules: str) -> dict[str, list[list[str]]]:
    """symbol -> its alternatives, each a list of symbols and words."""
    grammar: dict[str, list[list[str]]] = {}
    for rule in rules.strip().splitlines():
        symbol, _, alternatives = rule.partition(": ")
        grammar.setdefault(symbol, []).extend(a.split() for a in alternatives.split("|"))
    return grammar


_ALTERNATIVES = _read_grammar(GRAMMAR)


def _grammar(config: SyntheticConfig, language: str, rng: Generator) -> Sentence:
    def expand(symbol: str) -> list[str]:
        if symbol not in _ALTERNATIVES:
            return [symbol]
        choices = _ALTERNATIVES[symbol]
        return [word for part in choices[rng.integers(len(choices))] for word in expand(part)]

    words = " ".join(expand("S"))
    return Sentence(words, words)


_MONTHS = {
    "en": "january february march april may june july august september october november december",
    "de": "januar februar märz april mai juni juli august september oktober november dezember",
    "es": "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
    "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
    "it": "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre",
    "pt": "janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro",
    "ru": "января февраля марта апреля мая июня июля августа сентября октября ноября декабря",
    "cmn": "1月 2月 3月 4月 5月 6月 7月 8月 9月 10月 11月 12月",
}
_DATES = {
    "en": "{month} {day}, {year}",
    "de": "{day}. {month} {year}",
    "es": "{day} de {month} de {year}",
    "fr": "le {day} {month} {year}",
    "it": "{day} {month} {year}",
    "pt": "{day} de {month} de {year}",
    "ru": "{day} {month} {year}",
    "cmn": "{year}年{month}{day}日",
}


def _multilingual(config: SyntheticConfig, language: str, rng: Generator) -> Sentence:
    kind = rng.integers(3)
    if kind == 0:
        spoken = str(rng.integers(10 ** rng.integers(1, 7)))  # every number of digits up to six is as likely
    elif kind == 1:
        month = _MONTHS[language].split()[rng.integers(12)]
        spoken = _DATES[language].format(day=rng.integers(1, 29), month=month, year=rng.integers(1700, 2100))
    else:
        hour, minute = rng.integers(24), rng.integers(60)
        spoken = f"{hour}点{minute}分" if language == "cmn" else f"{hour}:{minute:02d}"
    return Sentence(spoken, None)


_DRAW: dict[Recipe, Callable[[SyntheticConfig, str, Generator], Sentence]] = {
    Recipe.digits: _digits,
    Recipe.grammar: _grammar,
    Recipe.multilingual: _multilingual,
}


_SCRIPTS = {"cmn": "CJK", "ru": "CYRILLIC"}  # the others: LATIN
_PAUSES = ",.;:?!、。"
_SILENT = "\"()[]«»„“”‘’'…-–—‐¿¡《》「」『』"


def read_lines(path: Path, language: str) -> tuple[list[Sentence], list[tuple[int, str, str]]]:
    """The different sentences of a UTF-8 file, and (line number, reason, line) of each line left out.

    Blank lines are neither. Raises InputError if the file is missing, is not UTF-8, or has no sentence.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"text={path} cannot be read ({error.strerror}); give a UTF-8 file.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"text={path} is not UTF-8 (byte {error.start}); convert it first.") from None
    good: dict[str | None, Sentence] = {}
    bad: list[tuple[int, str, str]] = []
    for number, line in enumerate(lines, start=1):
        sentence = read_line(line, language)
        if isinstance(sentence, str):
            if line.strip():
                bad.append((number, sentence, line))
        elif good.setdefault(sentence.text, sentence) is not sentence:
            bad.append((number, "repeats an earlier line", line))
    if not good:
        example = f", e.g. line {bad[0][0]} {bad[0][1]}" if bad else ""
        raise InputError(f"text={path} has no line to speak in language={language}{example}.")
    return list(good.values()), bad


def read_line(line: str, language: str) -> Sentence | str:
    """The sentence of a line (target: lower case, letters and inner apostrophes), or why it has none.

    Only what is written as it is spoken is kept: "3 km" would be heard as words that the target lacks.
    """
    line = line.translate(dict.fromkeys(map(ord, "’‘ʼ＇"), "'"))
    line = unicodedata.normalize("NFKC", line).lower()
    script = _SCRIPTS.get(language, "LATIN")
    target, spoken = "", ""
    for i, c in enumerate(line):
        letter = unicodedata.category(c) in ("Ll", "Lo") and unicodedata.name(c, "").startswith(script)
        if letter or (c == "'" and line[i - 1 : i].isalpha() and line[i + 1 : i + 2].isalpha()):
            target, spoken = target + c, spoken + c
        elif c in _PAUSES:
            target, spoken = target + " ", spoken.rstrip() + c
        elif c in _SILENT or c.isspace():
            target, spoken = target + " ", spoken + " "
        else:
            return f"has {c!r}, which is not written as it is spoken in {language}"
    words = target.split()
    if not words:
        return "has no words"
    return Sentence(" ".join(spoken.split()), ("" if language == "cmn" else " ").join(words))
