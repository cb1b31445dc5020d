"""A run may take its tokens from another run or a sentencepiece model."""

from dataclasses import replace
from pathlib import Path

import pytest

from moe_asr.config.data import TokenizerConfig, TokenUnit
from moe_asr.config.program import TrainConfig
from moe_asr.errors import InputError
from moe_asr.features.tokenizer import Tokenizer, train_tokenizer
from moe_asr.runs.checkpoint import load_checkpoint
from moe_asr.training.train import load_data


def loaded(config: TrainConfig, unit: TokenUnit, file: Path | None) -> Tokenizer:
    tokenizer = TokenizerConfig(unit, file=None if file is None else str(file))
    return load_data(replace(config, tokenizer=tokenizer), None)[0]


def test_the_tokenizer_of_a_run_or_of_a_sentencepiece_model(tiny: TrainConfig, untrained: Path, tmp_path: Path) -> None:
    theirs = load_checkpoint(untrained).tokenizer
    assert loaded(tiny, TokenUnit.word, untrained) == theirs != loaded(tiny, TokenUnit.word, None)
    pieces = train_tokenizer(
        TokenizerConfig(TokenUnit.bpe, 30), ["zero oh one two three four five six seven eight nine"]
    )
    (tmp_path / "a.model").write_bytes(pieces.bpe_model)
    assert loaded(tiny, TokenUnit.bpe, tmp_path / "a.model") == pieces
    for unit, file, name in ((TokenUnit.char, untrained, "word"), (TokenUnit.word, tmp_path / "a.model", "bpe")):
        with pytest.raises(InputError, match=f"was trained on {name} tokens: write tokenizer.unit={name} too"):
            loaded(tiny, unit, file)
