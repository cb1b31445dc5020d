"""English with foreign accents: the phones of American English, said with those of another language."""

from dataclasses import dataclass, replace
from itertools import groupby

from numpy.random import Generator

from moe_asr.data.synthetic.espeak import VARIANTS, EspeakVoice
from moe_asr.data.synthetic.render import Phone, Speech

# Characters of IPA -> espeak-ng's names of phonemes that all languages below have. Length and vowel quality go.
_PLAIN = {letter: letter for letter in "abdefhijklmnoprstuvwz"} | {"ɚ": "er"}
_PLAIN |= dict(zip("ɹɾŋɡʃʒθðæɑɒɔɛɜəɐɪʊʌᵻ", "rtNgSZTDaaooeeaaiuai", strict=True))
# What the accent makes of a sound that the language lacks.
FOREIGN = {
    "de": "T:s D:z w:v",
    "es": "T:t D:d z:s S:s v:b h:x",
    "fr": "T:s D:z h:",
    "hi": "T:t D:d w:v",
    "it": "T:t D:d h:",
    "pl": "T:f D:d w:v",
    "ru": "T:s D:z w:v h:x",
    "tr": "T:t D:d w:v",
}
_VOWELS = "aeiou"


@dataclass(frozen=True)
class AccentedVoice(EspeakVoice):
    """kind: language of `FOREIGN` + variant. Every word is stressed on its first vowel."""

    def speak(self, text: str, seed: int) -> Speech:
        """When its words are said is known only of texts of one word."""
        american = EspeakVoice(self.name, self.language, "en-us", self.pitch, self.spread, self.rate)
        words = groupby(american.speak(text, seed).phones, key=lambda phone: phone.word)
        spelt = " ".join(self._spell(list(phones)) for _, phones in words)
        spoken = super().speak(f"[[{spelt}]]", seed)
        return Speech(spoken.samples, tuple(replace(phone, word=0) for phone in spoken.phones))

    def _spell(self, phones: list[Phone]) -> str:
        instead = dict(pair.split(":") for pair in FOREIGN[self.kind.partition("+")[0]].split())
        plain = [_PLAIN[c] for phone in phones for c in phone.symbol if c in _PLAIN]
        letters = "".join(instead.get(letter, letter) for letter in plain)
        first = next((i for i, letter in enumerate(letters) if letter in _VOWELS), 0)
        return f"{letters[:first]}'{letters[first:]}"


def draw_accented(names: list[str], rng: Generator) -> list[AccentedVoice]:
    """Distinct voices; the accents take turns."""
    variants = rng.permutation(VARIANTS.split())
    languages = list(FOREIGN)

    def draw(i: int, name: str) -> AccentedVoice:
        kind = f"{languages[i % len(languages)]}+{variants[i // len(languages) % len(variants)]}"
        pitch, spread, rate = (int(rng.integers(*span)) for span in ((25, 76), (30, 71), (130, 216)))
        return AccentedVoice(name, "en", kind, pitch, spread, rate)

    return [draw(i, name) for i, name in enumerate(names)]
