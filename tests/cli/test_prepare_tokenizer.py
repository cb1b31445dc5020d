"""`prepare tokenizer`: word pieces that `train` would learn itself, as a file."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from moe_asr.config.data import TokenizerConfig, TokenUnit
from moe_asr.config.program import TrainConfig
from moe_asr.training.train import load_data

Cli = Callable[..., tuple[int, str, str]]


def test_the_file_holds_the_pieces_that_train_learns(cli: Cli, digits: Path, tiny: TrainConfig, tmp_path: Path) -> None:
    file = tmp_path / "new" / "pieces.model"
    words = ("prepare", "tokenizer", digits, "vocab_size=40", f"out={file}")
    code, out, err = cli(*words)
    assert (code, err) == (0, "")
    assert f"{file}: 40 tokens, learnt from 47 texts." in out
    learnt, given = (
        load_data(replace(tiny, tokenizer=TokenizerConfig(TokenUnit.bpe, 40, of)), None)[0] for of in (None, str(file))
    )
    assert len(given) == 40
    assert learnt == given
    assert cli(*words)[0] == 0  # nothing else to write
    assert cli(*words, "tokenizer.splits=[unseen]")[0] == 2
    assert file.read_bytes() == given.bpe_model
    assert cli(*words, "tokenizer.splits=[unseen]", "overwrite=true")[0] == 0
    assert file.read_bytes() != given.bpe_model


def test_what_cannot_be_a_tokenizer_is_refused(cli: Cli, digits: Path, tmp_path: Path) -> None:
    for words, sentence in (
        ((digits, "out=x.txt"), "out=x.txt becomes a sentencepiece model"),
        ((digits, "vocab_size=4"), "tokenizer.vocab_size=4 does not suit the training texts: write at least"),
        ((), "where is the corpus? Write `moe-asr prepare tokenizer source=DIR`."),
        ((tmp_path / "none",), "moe-asr prepare"),
        ((digits, "splits=[tests]"), "tests"),
    ):
        code, out, err = cli("prepare", "tokenizer", *words)
        assert (code, out) == (2, "")
        assert sentence in err
    assert not list(digits.parent.glob("*.model"))
