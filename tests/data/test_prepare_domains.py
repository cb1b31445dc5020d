"""The suite of domains: new voices, new sentences, the same ones everywhere, changed as the card says."""

import json
from pathlib import Path

import numpy
import pytest

from moe_asr.config.prepare import Corpus, DomainsConfig, PrepareConfig
from moe_asr.config.synthetic import Engine, Recipe, SyntheticConfig
from moe_asr.data import prepare_domains
from moe_asr.data.manifest import describe, load_samples, read_card, read_split, word_ends
from moe_asr.data.prepare import prepare
from moe_asr.data.prepare_domains import DOMAINS, RATES, SURROUNDED
from moe_asr.data.synthetic import corpus, espeak
from moe_asr.data.synthetic.accents import FOREIGN, draw_accented
from moe_asr.data.synthetic.recipes import split_of
from moe_asr.errors import InputError
from moe_asr.randomness import numpy_rng

pytestmark = pytest.mark.skipif(not espeak.available(), reason="espeak-ng is not installed (the extra `synthetic`)")


def options(out: Path, **changed: object) -> PrepareConfig:
    values = {"utterances": 36, "voices": 2, **changed}
    return PrepareConfig(Corpus.domains, out=str(out), workers=1, domains=DomainsConfig(**values))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(options(tmp_path_factory.mktemp("suite") / "domains")).folder


def test_all_domains_say_the_same_new_sentences(suite: Path) -> None:
    card = read_card(suite)
    assert tuple(card.splits) == DOMAINS
    texts = {split: [describe(cut).text for cut in read_split(suite, split)] for split in DOMAINS}
    for split in set(DOMAINS) - {"long"}:
        assert texts[split] == texts["unseen"]
        assert card.splits[split].utterances == 36
    assert {split_of(text, 1) for text in texts["unseen"]} == {"unseen"}
    long = [describe(cut) for cut in read_split(suite, "long")]
    assert all(30 <= fact.seconds <= 120 and len(fact.sources) > 1 for fact in long)
    assert len(long) >= 2
    assert {name for fact in long for name in fact.sources} <= {cut.id for cut in read_split(suite, "unseen")}
    assert not prepare(options(suite)).made  # it is there already


def test_its_voices_are_in_no_training_corpus_of_its_seed(suite: Path) -> None:
    made = SyntheticConfig(recipe=Recipe.digits, engine=Engine.espeak, train_voices=300, test_voices=100)
    trained = {voice.kind for voice in corpus._voices(made)}  # type: ignore[attr-defined]
    spoken = {split: {c.supervisions[0].custom["voice"]["kind"] for c in read_split(suite, split)} for split in RATES}
    assert spoken["unseen"] == spoken["fast"] == spoken["slow"]
    assert len(spoken["unseen"]) == 2
    assert not spoken["unseen"] & trained
    assert {describe(cut).speaker for cut in read_split(suite, "accents")} == {"a000", "a001"}


def test_each_domain_is_what_its_name_says(suite: Path) -> None:
    samples = {split: [load_samples(cut) for cut in read_split(suite, split)] for split in DOMAINS}
    seconds = {split: sum(map(len, of_split)) / 16000 for split, of_split in samples.items()}
    assert seconds["fast"] < 0.8 * seconds["unseen"] < 0.8**2 * seconds["slow"]
    for split in SURROUNDED:
        for clean, changed in zip(samples["unseen"], samples[split], strict=True):
            assert len(clean) == len(changed)
            assert not numpy.allclose(clean, changed, atol=1e-3)
    spectra = {
        s: sum(numpy.abs(numpy.fft.rfft(row, 65536)) ** 2 for row in samples[s]) for s in ("unseen", "telephone")
    }
    above = {split: spectrum[18000:].sum() / spectrum.sum() for split, spectrum in spectra.items()}  # from 4.4 kHz on
    assert above["telephone"] < 0.05 * above["unseen"]
    for clean, noisy in zip(samples["unseen"], samples["noise"], strict=True):
        ratio = 10 * numpy.log10(numpy.mean(clean**2) / numpy.mean((noisy - clean) ** 2))
        assert -0.5 <= ratio <= 15.5


def test_times_of_words_stay_true_and_the_card_states_the_settings(suite: Path) -> None:
    for split in SURROUNDED:
        pairs = zip(read_split(suite, "unseen"), read_split(suite, split), strict=True)
        assert all(word_ends(clean) == word_ends(changed) is not None for clean, changed in pairs)
    stated = json.loads((suite / "corpus.json").read_text())["config"]
    assert stated["noise"] == {"noise_share": 1.0, "noise_db": SURROUNDED["noise"].noise_db}
    assert (stated["rates"], stated["seed"], stated["domains"]["recipe"]) == (RATES, 1, "digits")


def test_every_accent_says_every_sound_of_its_own(suite: Path) -> None:
    voices = draw_accented([f"a{i}" for i in range(40)], numpy_rng("test"))
    assert len({voice.kind for voice in voices}) == 40
    assert {voice.kind.partition("+")[0] for voice in voices} == set(FOREIGN)
    phones = {describe(cut).speaker: set() for cut in read_split(suite, "accents")}  # type: ignore[var-annotated]
    for cut in read_split(suite, "accents"):
        phones[describe(cut).speaker] |= set((describe(cut).phones or "").split())
        assert len((describe(cut).phones or "").split()) >= 2 * len(describe(cut).text.split())  # no word is lost
    assert "θ" not in "".join(phones["a000"] | phones["a001"])  # which neither Germans nor Spaniards say here


def test_real_digits_become_an_eleventh_domain(tmp_path: Path, real: Path) -> None:
    made = prepare(options(tmp_path / "with_real", fsdd=str(real), utterances=30, voices=1))
    assert "accents 30 (0." in str(made)  # no row of the suite is left out
    assert "fsdd 30 (0." in str(made)
    folder = made.folder
    cuts = read_split(folder, "fsdd")
    speakers = [describe(cut).speaker for cut in cuts]
    assert len(cuts) == 30
    assert {speakers.count(speaker) for speaker in speakers} == {10}
    strings = {
        cut.id: cut for split in read_card(real).splits if split.endswith("/test") for cut in read_split(real, split)
    }
    for cut in cuts[::7]:
        original = strings[cut.id.removeprefix("fsdd-")]
        assert describe(cut).text == describe(original).text
        assert numpy.allclose(load_samples(cut), load_samples(original), atol=1e-4)
        assert describe(cut).sources == describe(original).sources


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `prepare fsdd` makes of a folder of recordings named like those of that corpus."""
    import soundfile

    from moe_asr.config.prepare import FsddConfig

    folder = tmp_path_factory.mktemp("fsdd")
    for speaker in ("ann", "bob", "eve"):
        for digit in range(10):
            noise = numpy_rng("test", speaker, digit).normal(0, 0.1, 2400)
            soundfile.write(folder / f"{digit}_{speaker}_0.wav", noise, 8000)
    small = FsddConfig(train_strings=3, dev_strings=3, test_strings=10)
    return prepare(PrepareConfig(Corpus.fsdd, str(folder), str(folder / "out"), fsdd=small)).folder


def test_what_cannot_be_made_is_refused(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"domains\.recipe=text has no domains"):
        DomainsConfig(recipe=Recipe.text)
    with pytest.raises(InputError, match=r"domains\.fsdd are digits"):
        DomainsConfig(recipe=Recipe.grammar, fsdd="data/fsdd")
    with pytest.raises(InputError, match=r"must lie between 1 and domains\.utterances=10"):
        DomainsConfig(utterances=10, voices=11)
    with pytest.raises(InputError, match="would leave too few"):
        prepare(options(tmp_path / "many", voices=400, utterances=400))
    with pytest.raises(InputError, match=r"domains\.utterances=0 must be at least 1"):
        DomainsConfig(utterances=0)
    monkeypatch.setattr(prepare_domains, "in_processes", lambda *_: pytest.fail("it was not refused at once"))
    for other in (tmp_path, digits):
        with pytest.raises(InputError, match=f"fsdd={other} holds no prepared corpus of real digits"):
            prepare(options(tmp_path / "none", fsdd=str(other)))
    with pytest.raises(InputError, match="leave source=data out"):
        prepare(PrepareConfig(Corpus.domains, "data"))
    monkeypatch.setattr(espeak, "available", lambda: False)
    with pytest.raises(InputError, match="espeak-ng, which is not installed"):
        prepare(options(tmp_path / "none"))
    assert not list(tmp_path.iterdir())


def test_folders_are_named_by_recipe_and_missing_ones_name_their_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`moe-asr prepare domains recipe=grammar out="):
        read_card(tmp_path / "domains-grammar")
    assert PrepareConfig(Corpus.domains).folder == "data/domains"
    assert PrepareConfig(Corpus.domains, domains=DomainsConfig(recipe=Recipe.grammar)).folder == "data/domains-grammar"
