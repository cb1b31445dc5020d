"""Options of the embedded synthetic corpus. No torch here."""

from dataclasses import dataclass, field
from enum import StrEnum

from moe_asr.config.model import require


class Recipe(StrEnum):
    """What the voices say."""

    digits = "digits"
    """Strings of English digit words."""
    grammar = "grammar"
    """English sentences of a small grammar: about 170 words with a language to learn."""
    text = "text"
    """The lines of a UTF-8 file, a sentence each."""
    multilingual = "multilingual"
    """Numbers, dates and times spoken from numerals in several languages; the targets are IPA phones."""


class Engine(StrEnum):
    auto = "auto"
    """espeak when its extra is installed; without it the digits fall back to formant."""
    espeak = "espeak"
    """espeak-ng in worker processes, through the `synthetic` extra (GPL-3)."""
    formant = "formant"
    """The formant synthesizer of this program: digits only, no further dependency."""


LANGUAGES = ("en", "cmn", "de", "es", "fr", "it", "pt", "ru")


@dataclass
class SyntheticConfig:
    """One corpus: its splits train, dev, seen and unseen are a pure function of these values."""

    recipe: Recipe = Recipe.digits
    engine: Engine = Engine.auto
    hours: float = 0.75
    """Training audio."""
    train_voices: int = 100
    test_voices: int = 40
    """Voices of `unseen`, which speak nowhere else."""
    utterances_per_test_voice: int = 60
    seen_utterances: int = 600
    """Other sentences of the training voices."""
    dev_utterances: int = 300
    dev_voices: int = 20
    """Half of them training voices (as `seen`), half of them voices of their own (as `unseen`)."""
    min_digits: int = 1
    max_digits: int = 7
    text: str | None = None
    """The file of recipe=text."""
    language: str = "en"
    """The language of recipe=text."""
    languages: list[str] = field(default_factory=lambda: list(LANGUAGES))
    """The languages of recipe=multilingual; each voice speaks one."""
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ["train_voices", "test_voices", "utterances_per_test_voice", "seen_utterances", "dev_utterances"]:
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1.")
        require(self.hours > 0, f"hours={self.hours} of training audio must be above 0.")
        require(self.dev_voices >= 2, f"dev_voices={self.dev_voices} must be at least 2: a training voice and another.")
        require(
            self.dev_voices // 2 <= self.train_voices,
            f"half of dev_voices={self.dev_voices} are training voices, of which there are {self.train_voices}; "
            f"write dev_voices={2 * self.train_voices} or fewer.",
        )
        require(
            1 <= self.min_digits <= self.max_digits,
            f"min_digits={self.min_digits} must lie between 1 and max_digits={self.max_digits}.",
        )
        require(
            self.recipe is not Recipe.digits or self.max_digits >= 3,
            f"max_digits={self.max_digits} leaves too few strings for disjoint splits; write 3 or more.",
        )
        require(
            (self.recipe is Recipe.text) == (self.text is not None),
            "recipe=text and text=FILE belong together; give both, or neither.",
        )
        require(
            self.engine is not Engine.formant or self.recipe is Recipe.digits,
            f"engine=formant speaks digits only; write recipe=digits, or engine=espeak for recipe={self.recipe.value}.",
        )
        require(len(set(self.languages)) == len(self.languages) > 0, "languages must name each language once.")
        for language in [self.language, *self.languages]:
            require(language in LANGUAGES, f"language {language!r} is not known; choose from {', '.join(LANGUAGES)}.")
        spoken = len(self.languages) if self.recipe is Recipe.multilingual else 1
        require(
            spoken <= min(self.train_voices, self.test_voices),
            f"each of the {spoken} languages needs a voice in training and test; raise train_voices and test_voices.",
        )
