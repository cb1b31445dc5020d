"""Text <-> token ids: characters, words, phones, or word pieces learnt from the text."""

import base64
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import sentencepiece

from moe_asr.config.data import TokenizerConfig, TokenUnit
from moe_asr.errors import InputError

SPACE = "▁"
UNKNOWN = "⁇"
"""How an unknown token reads in decoded text: one character no transcript holds, so one error."""
SPECIALS = ("<blank>", "<unk>", "<sos/eos>")
_HAN = r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
_BETWEEN_HAN = re.compile(rf"(?<={_HAN})\s+(?={_HAN})")


def join_han(text: str) -> str:
    """Drops the spaces between Han characters: a corpus's word segmentation, not written language."""
    return _BETWEEN_HAN.sub("", text)


@dataclass(frozen=True)
class Tokenizer:
    """A symbol table and how text is cut into its symbols; `to_dict` goes into checkpoints.

    Ours start with blank 0, unk 1 and sos = eos = 2; an imported table names its own ids. "▁" stands for a
    space. Raises InputError for a table that contradicts itself.
    """

    unit: TokenUnit
    symbols: tuple[str, ...]
    """Symbol of each token id."""
    blank: int = 0
    unk: int = 1
    sos_eos: int = 2
    bpe_model: bytes = b""
    """A serialised sentencepiece model, for unit=bpe."""

    def __post_init__(self) -> None:
        if len(set(self.symbols)) < len(self.symbols):
            raise InputError("a token appears twice in the symbol table; give every token one id.")
        if not all(0 <= i < len(self.symbols) for i in (self.blank, self.unk, self.sos_eos)):
            raise InputError(
                f"blank={self.blank}, unk={self.unk} and sos_eos={self.sos_eos} must be ids of the table: "
                f"write numbers below {len(self.symbols)}."
            )
        if (self.unit is TokenUnit.bpe) != bool(self.bpe_model):
            raise InputError("a tokenizer with unit=bpe, and only such a one, needs a sentencepiece model.")

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; what the table lacks becomes `unk`. Never yields `blank` or `sos_eos`."""
        return [self._ids.get(piece, self.unk) for piece in self._pieces(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; `blank` and `sos_eos` are left out, `unk` reads "⁇".

        Gives back every text without unknowns exactly, but for Han text, which loses its spaces, and for
        words and phones, whose spaces become single ones. Raises KeyError for an id outside the table.
        """
        pieces = [self._surfaces[i] for i in ids if i not in (self.blank, self.sos_eos)]
        if self._spaced:
            return " ".join(pieces)
        text = "".join(pieces).replace(SPACE, " ")
        return text.removeprefix(" ") if self.unit is TokenUnit.bpe else text

    def unknown(self, text: str) -> set[str]:
        """What `encode` turns into `unk`: words, or phones, or else characters."""
        missing = [piece for piece in self._pieces(text) if piece not in self._ids]
        return set(missing if self._spaced else "".join(missing).replace(SPACE, " "))

    def to_dict(self) -> dict[str, Any]:
        """Plain strings, numbers and lists, fit for JSON and for `torch.load(weights_only=True)`."""
        bpe_model = base64.b64encode(self.bpe_model).decode()
        return asdict(self) | {"unit": self.unit.value, "symbols": list(self.symbols), "bpe_model": bpe_model}

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> "Tokenizer":
        bpe_model = base64.b64decode(fields["bpe_model"])
        typed = {"unit": TokenUnit(fields["unit"]), "symbols": tuple(fields["symbols"]), "bpe_model": bpe_model}
        return Tokenizer(**(fields | typed))

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {s: i for i, s in enumerate(self.symbols) if i not in (self.blank, self.sos_eos)}

    @cached_property
    def _surfaces(self) -> dict[int, str]:
        return {i: UNKNOWN if i == self.unk else symbol for i, symbol in enumerate(self.symbols)}

    @property
    def _spaced(self) -> bool:
        return self.unit in (TokenUnit.word, TokenUnit.phone)

    @cached_property
    def _bpe(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_proto=self.bpe_model)

    def _pieces(self, text: str) -> Sequence[str]:
        if self.unit is TokenUnit.bpe:
            pieces: list[str] = self._bpe.encode(join_han(text), out_type=str)
            return pieces
        return _split(text, self.unit)


def read_sentencepiece(file: str | Path) -> Tokenizer:
    """Word pieces of a model that any program trained: its pieces in their order, after special tokens of our own.

    Raises InputError for what is no sentencepiece model, or one that spells unknown characters as bytes.
    """
    try:
        model = Path(file).read_bytes()
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{file} is not a sentencepiece model that can be read; check the path.") from error
    ids = range(len(processor))
    if any(map(processor.is_byte, ids)):
        raise InputError(f"{file} spells characters as bytes; train it without byte_fallback.")
    pieces = [processor.id_to_piece(i) for i in ids if not (processor.is_control(i) or processor.is_unknown(i))]
    return Tokenizer(TokenUnit.bpe, (*SPECIALS, *(piece for piece in pieces if piece not in SPECIALS)), bpe_model=model)


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer of some training texts; depends on their content only, not (but for bpe) on their order.

    Raises InputError where the texts hold nothing, or do not suit `tokenizer.vocab_size`.
    """
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise InputError("the training texts are empty, so there is no token to learn; give some text.")
    if config.unit is TokenUnit.bpe:
        return _train_bpe(config.vocab_size, texts)
    found = {piece for text in texts for piece in _split(text, config.unit)} - set(SPECIALS)
    return Tokenizer(config.unit, (*SPECIALS, *sorted(found)))


def _split(text: str, unit: TokenUnit) -> Sequence[str]:
    return join_han(text).replace(" ", SPACE) if unit is TokenUnit.char else text.split()


def _train_bpe(vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    model = io.BytesIO()
    blank, unk, sos_eos = SPECIALS
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(join_han(text) for text in texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            # Every character gets a piece, no text is changed or left out: decoding gives it back exactly.
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            max_sentence_length=1 << 30,
            num_threads=1,
            minloglevel=3,
            # Its ids are ours.
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=-1,
            pad_piece=blank,
            unk_piece=unk,
            bos_piece=sos_eos,
        )
    except RuntimeError as error:
        bound = re.search(r"(<=|vs) (\d+)", str(error))
        if bound is None:
            raise
        side = "most" if bound[1] == "<=" else "least"
        raise InputError(
            f"tokenizer.vocab_size={vocab_size} does not suit the training texts: write at {side} {bound[2]}."
        ) from error
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    symbols = tuple(processor.id_to_piece(i) for i in range(len(processor)))
    return Tokenizer(TokenUnit.bpe, symbols, bpe_model=model.getvalue())
