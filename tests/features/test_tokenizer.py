"""Tokenizers: exact round trips, unknowns, storage, imported symbol tables."""

import json
import pickle
from itertools import pairwise

import pytest
import sentencepiece
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_asr.config.data import TokenizerConfig, TokenUnit
from moe_asr.errors import InputError
from moe_asr.features.tokenizer import SPECIALS, UNKNOWN, Tokenizer, join_han, read_sentencepiece, train_tokenizer

WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "seven",
    "eight",
    "nine",
    "oh",
    "naïve",
    "don't",
    "今天",
    "天气",
    "很好",
]
TEXTS = [" ".join(pair) for pair in pairwise(WORDS)] * 3
CONFIGS = {unit: TokenizerConfig(unit, vocab_size=50) for unit in TokenUnit}
TRAINED = {unit: train_tokenizer(config, TEXTS) for unit, config in CONFIGS.items()}
UNITS = pytest.mark.parametrize("unit", list(TokenUnit))


@UNITS
@given(words=st.lists(st.sampled_from(WORDS)))
def test_round_trip_is_exact(unit: TokenUnit, words: list[str]) -> None:
    tokenizer = TRAINED[unit]
    spaced = unit in (TokenUnit.word, TokenUnit.phone)
    text = " ".join(words) if spaced else join_han(" ".join(words))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not tokenizer.unknown(text)
    assert all(3 <= i < len(tokenizer) for i in ids)


@pytest.mark.parametrize("unit", [TokenUnit.char, TokenUnit.bpe])
@given(text=st.text(alphabet="zeronvtw "))
def test_any_string_of_known_characters_comes_back_exactly(unit: TokenUnit, text: str) -> None:
    assert TRAINED[unit].decode(TRAINED[unit].encode(text)) == text


def test_units_cut_as_they_say() -> None:
    assert [TRAINED[TokenUnit.char].symbols[i] for i in TRAINED[TokenUnit.char].encode("oh no")] == [*"oh▁no"]
    assert len(TRAINED[TokenUnit.word].encode(" one  two ")) == 2
    phones = train_tokenizer(CONFIGS[TokenUnit.phone], ["w ʌ n", "t uː"])
    assert phones.symbols[3:] == ("n", "t", "uː", "w", "ʌ")
    assert phones.decode(phones.encode("t uː")) == "t uː"
    bpe = TRAINED[TokenUnit.bpe]
    assert len(bpe) == 50
    assert len(bpe.encode("seven eight")) < len("seven eight")


def test_han_text_has_no_spaces() -> None:
    char = TRAINED[TokenUnit.char]
    assert char.encode("今天 天气 很 好") == char.encode("今天天气很好")
    assert len(char.encode("今天天气很好")) == 6
    assert char.decode(char.encode("今天 天气 one 很好 oh")) == "今天天气 one 很好 oh"


@UNITS
def test_specials_come_first_and_never_from_text(unit: TokenUnit) -> None:
    tokenizer = train_tokenizer(CONFIGS[unit], [*TEXTS, "<blank> <unk> <sos/eos>"])
    assert tokenizer.symbols[:3] == ("<blank>", "<unk>", "<sos/eos>")
    assert (tokenizer.blank, tokenizer.unk, tokenizer.sos_eos) == (0, 1, 2)
    assert not {0, 2} & set(tokenizer.encode("<blank> one <sos/eos>"))


@UNITS
def test_unknowns_are_named_and_shown(unit: TokenUnit) -> None:
    tokenizer = TRAINED[unit]
    spaced = unit in (TokenUnit.word, TokenUnit.phone)
    assert tokenizer.unknown("one qß") == ({"qß"} if spaced else {"q", "ß"})
    ids = tokenizer.encode("one qß")
    assert tokenizer.unk in ids
    assert tokenizer.decode([tokenizer.blank, *ids, tokenizer.sos_eos]).rstrip(UNKNOWN) == "one "
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_a_space_can_be_unknown() -> None:
    assert train_tokenizer(CONFIGS[TokenUnit.char], ["abc"]).unknown("a b") == {" "}


def test_ids_outside_the_table_are_refused() -> None:
    with pytest.raises(KeyError):
        TRAINED[TokenUnit.char].decode([-1])


@UNITS
def test_training_is_deterministic(unit: TokenUnit) -> None:
    assert train_tokenizer(CONFIGS[unit], iter(TEXTS)) == TRAINED[unit]
    assert train_tokenizer(CONFIGS[unit], [*TEXTS, "extra", "extra"]) != TRAINED[unit]
    if unit is not TokenUnit.bpe:
        assert train_tokenizer(CONFIGS[unit], TEXTS[::-1]) == TRAINED[unit]


@UNITS
def test_survives_storage(unit: TokenUnit, tmp_path) -> None:
    tokenizer = TRAINED[unit]
    torch.save(tokenizer.to_dict(), tmp_path / "tokenizer.pt")
    stored = torch.load(tmp_path / "tokenizer.pt", weights_only=True)
    for back in (
        Tokenizer.from_dict(stored),
        Tokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict()))),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert back == tokenizer
        assert back.encode("seven oh naïve") == tokenizer.encode("seven oh naïve")


def test_an_imported_table_has_its_own_special_ids() -> None:
    tokenizer = Tokenizer(TokenUnit.char, ("<unk>", "a", "b", "<blk>", "<s>"), blank=3, unk=0, sos_eos=4)
    assert tokenizer.encode("abc") == [1, 2, 0]
    assert tokenizer.decode([4, 1, 3, 2, 0, 4]) == f"ab{UNKNOWN}"
    assert Tokenizer.from_dict(tokenizer.to_dict()) == tokenizer


def test_impossible_tables_are_refused() -> None:
    table = ("<blank>", "<unk>", "<sos/eos>", "a")
    with pytest.raises(InputError, match="twice"):
        Tokenizer(TokenUnit.char, (*table, "a"))
    with pytest.raises(InputError, match="must be ids"):
        Tokenizer(TokenUnit.char, table, sos_eos=4)
    with pytest.raises(InputError, match="sentencepiece"):
        Tokenizer(TokenUnit.bpe, table)


def test_bad_training_input_says_what_to_write() -> None:
    for unit in TokenUnit:
        with pytest.raises(InputError, match="empty"):
            train_tokenizer(CONFIGS[unit], ["", "  "])
    with pytest.raises(InputError, match=r"vocab_size=4 .* at least \d+"):
        train_tokenizer(TokenizerConfig(TokenUnit.bpe, 4), TEXTS)
    with pytest.raises(InputError, match=r"vocab_size=9000 .* at most (\d+)") as refused:
        train_tokenizer(TokenizerConfig(TokenUnit.bpe, 9000), TEXTS)
    largest = int(str(refused.value).rstrip(".").rsplit(" ", 1)[1])
    assert len(train_tokenizer(TokenizerConfig(TokenUnit.bpe, largest), TEXTS)) == largest


def test_a_sentencepiece_model_from_elsewhere_becomes_a_tokenizer(tmp_path) -> None:
    own = train_tokenizer(TokenizerConfig(TokenUnit.bpe, 12), ["ab ba abba"])
    (tmp_path / "own.model").write_bytes(own.bpe_model)
    assert read_sentencepiece(tmp_path / "own.model") == own
    with (tmp_path / "x.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["ab ba abba"]), model_writer=file, vocab_size=8, minloglevel=3
        )
    other = read_sentencepiece(tmp_path / "x.model")
    assert other.symbols[:3] == SPECIALS
    assert not {"<s>", "</s>"} & set(other.symbols)
    assert len(other) == 8  # of its three special pieces, one is ours too
    ids = other.encode("abba ab")
    assert min(ids) > 2
    assert other.decode(ids) == "abba ab"
    assert Tokenizer.from_dict(other.to_dict()) == other
    assert other.unknown("abz") == {"z"}


def test_what_is_no_usable_sentencepiece_model_is_refused(tmp_path) -> None:
    (tmp_path / "text.model").write_text("hello")
    for name in ("text", "missing"):
        with pytest.raises(InputError, match=f"{name}.model is not a sentencepiece model that can be read"):
            read_sentencepiece(tmp_path / f"{name}.model")
    with (tmp_path / "bytes.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["ab ba abba"]),
            model_writer=file,
            vocab_size=264,
            byte_fallback=True,
            minloglevel=3,
        )
    with pytest.raises(InputError, match="spells characters as bytes; train it without"):
        read_sentencepiece(tmp_path / "bytes.model")
