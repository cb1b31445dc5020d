"""WeNet directories of many shapes become run directories; whatever cannot be the same is refused by name."""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import sentencepiece
import soundfile
import torch
import yaml
from torch import Tensor

import moe_asr
from moe_asr.cli.main import main
from moe_asr.config.data import TokenUnit, Window
from moe_asr.config.model import Activation, ConvNorm
from moe_asr.errors import InputError
from moe_asr.interop.wenet import import_wenet, wenet_names
from moe_asr.interop.wenet_config import read_cmvn

UNITS = ("<blank>", "<unk>", "▁", "a", "b", "c", "<sos/eos>")
BASE: dict[str, Any] = {
    "encoder": "conformer",
    "encoder_conf": {
        "output_size": 8,
        "attention_heads": 2,
        "linear_units": 12,
        "num_blocks": 2,
        "cnn_module_kernel": 4,
        "cnn_module_norm": "layer_norm",
        "causal": True,
        "use_dynamic_chunk": True,
    },
    "decoder": "bitransformer",
    "decoder_conf": {"attention_heads": 4, "linear_units": 10, "num_blocks": 1, "r_num_blocks": 2},
    "tokenizer": "char",
    "tokenizer_conf": {"symbol_table_path": "data/dict/units.txt", "special_tokens": {"<sos>": 6, "<eos>": 6}},
    "ctc_conf": {"ctc_blank_id": 0},
    "cmvn": "global_cmvn",
    "cmvn_conf": {"cmvn_file": "exp/global_cmvn", "is_json_cmvn": True},
    "model": "asr_model",
    "model_conf": {"ctc_weight": 0.3, "lsm_weight": 0.1, "reverse_weight": 0.3},
    "dataset_conf": {"fbank_conf": {"num_mel_bins": 20, "dither": 1.0}, "spec_aug": True},
    "optim": "adam",
}


def tensors_of(conf: dict[str, Any]) -> dict[str, Tensor]:
    """Random numbers under the names and in the shapes that WeNet gives them."""
    e, d = conf["encoder_conf"], conf["decoder_conf"]
    width, mels, vocab = e["output_size"], conf["dataset_conf"]["fbank_conf"]["num_mel_bins"], len(UNITS)
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, inner: int, *more: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, inner, *more), (out,)

    def norm(*names: str) -> None:
        shapes.update({f"{name}.{kind}": (width,) for name in names for kind in ("weight", "bias")})

    def feed_forward(name: str, c: dict[str, Any]) -> None:
        sparse = c.get("mlp_type") == "moe"
        if sparse:
            shapes[f"{name}.gate.weight"] = (c.get("n_expert", 8), width)
        for prefix in [f"{name}.experts.{i}" for i in range(c.get("n_expert", 8))] if sparse else [name]:
            linear(f"{prefix}.w_1", c["linear_units"], width)
            linear(f"{prefix}.w_2", width, c["linear_units"])

    shapes |= dict.fromkeys(("encoder.global_cmvn.mean", "encoder.global_cmvn.istd"), (mels,))
    linear("encoder.embed.conv.0", width, 1, 3, 3)
    linear("encoder.embed.conv.2", width, width, 3, 3)
    linear("encoder.embed.out.0", width, width * (((mels - 1) // 2 - 1) // 2))
    norm("encoder.after_norm")
    for i in range(e["num_blocks"]):
        layer = f"encoder.encoders.{i}"
        for letter in ("q", "k", "v", "out"):
            linear(f"{layer}.self_attn.linear_{letter}", width, width)
        shapes[f"{layer}.self_attn.linear_pos.weight"] = (width, width)
        for bias in ("u", "v"):
            shapes[f"{layer}.self_attn.pos_bias_{bias}"] = (e["attention_heads"], width // e["attention_heads"])
        feed_forward(f"{layer}.feed_forward", e)
        feed_forward(f"{layer}.feed_forward_macaron", e)
        linear(f"{layer}.conv_module.pointwise_conv1", 2 * width, width, 1)
        linear(f"{layer}.conv_module.depthwise_conv", width, 1, e["cnn_module_kernel"])
        linear(f"{layer}.conv_module.pointwise_conv2", width, width, 1)
        norm(*(f"{layer}.norm_{name}" for name in ("ff", "mha", "ff_macaron", "conv", "final")))
        norm(f"{layer}.conv_module.norm")
        if e["cnn_module_norm"] == "batch_norm":
            shapes |= dict.fromkeys((f"{layer}.conv_module.norm.running_{k}" for k in ("mean", "var")), (width,))
            shapes[f"{layer}.conv_module.norm.num_batches_tracked"] = ()
    stacks = {
        "bitransformer": {"decoder.left_decoder": "num_blocks", "decoder.right_decoder": "r_num_blocks"},
        "transformer": {"decoder": "num_blocks"},
        None: {},
    }[conf["decoder"]]
    for stack, depth in stacks.items():
        shapes[f"{stack}.embed.0.weight"] = (vocab, width)
        norm(f"{stack}.after_norm")
        linear(f"{stack}.output_layer", vocab, width)
        for i in range(d[depth]):
            for kind in ("self_attn", "src_attn"):
                for letter in ("q", "k", "v", "out"):
                    linear(f"{stack}.decoders.{i}.{kind}.linear_{letter}", width, width)
            feed_forward(f"{stack}.decoders.{i}.feed_forward", d)
            norm(*(f"{stack}.decoders.{i}.norm{k}" for k in (1, 2, 3)))
    linear("ctc.ctc_lo", vocab, width)
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with dotted keys set."""
    conf = copy.deepcopy(base)
    for key, value in changes.items():
        *path, last = key.split("/")
        node = conf
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return conf


@pytest.fixture
def directory(tmp_path: Path) -> Callable[..., Path]:
    """Writes a WeNet directory with some options changed, and with some tensors replaced (None: removed)."""

    def make(changes: dict[str, Any] | None = None, tensors: dict[str, Tensor | None] | None = None) -> Path:
        folder = tmp_path / "wenet"
        folder.mkdir(exist_ok=True)
        conf = merged(BASE, changes or {})
        (folder / "train.yaml").write_text(yaml.safe_dump(conf, allow_unicode=True), encoding="utf-8")
        units = "".join(f"{symbol} {i}\n" for i, symbol in enumerate(UNITS))
        (folder / "units.txt").write_text(units, encoding="utf-8")
        state = tensors_of(conf) | (tensors or {})
        torch.save({name: t for name, t in state.items() if t is not None}, folder / "final.pt")
        return folder

    return make


SHAPES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "batch norm, even and odd kernels": {
        "encoder_conf/cnn_module_norm": "batch_norm",
        "encoder_conf/cnn_module_kernel": 3,
    },
    "centred": {
        "encoder_conf/causal": False,
        "encoder_conf/cnn_module_kernel": 3,
        "encoder_conf/use_dynamic_chunk": False,
    },
    "other widths": {"encoder_conf/output_size": 12, "decoder_conf/linear_units": 7, "encoder_conf/num_blocks": 1},
    "other activations": {"encoder_conf/activation_type": "gelu", "decoder_conf/activation_type": "swish"},
    "left decoder only": {"decoder": "transformer", "model_conf/reverse_weight": 0.0},
    "no decoder": {"decoder": None, "model_conf/ctc_weight": 1.0},
    "experts everywhere": {
        f"{stack}_conf/{key}": value
        for stack in ("encoder", "decoder")
        for key, value in (("mlp_type", "moe"), ("n_expert", 11), ("n_expert_activated", 3))
    },
    "experts in the encoder": {"encoder_conf/mlp_type": "moe"},
    "experts in the decoders": {"decoder_conf/mlp_type": "moe", "decoder_conf/n_expert": 4},
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_imported_whole(directory: Callable[..., Path], tmp_path: Path, name: str) -> None:
    folder = directory(SHAPES[name])
    import_wenet(folder, tmp_path / "run")
    recognizer = moe_asr.load(tmp_path / "run")
    theirs = torch.load(folder / "final.pt")
    seen = set()
    for ours, tensor in recognizer.model.state_dict().items():
        names = wenet_names(recognizer.model)[ours]
        parts = tensor.unbind() if ".banks." in ours else tensor.chunk(len(names)) if tensor.ndim else (tensor,)
        for foreign, part in zip(names, parts, strict=True):
            assert torch.equal(part.flatten(), theirs[foreign].to(part.dtype).flatten()), foreign
            seen.add(foreign)
    assert seen == set(theirs)
    transcript = recognizer.transcribe(torch.randn(8000, generator=torch.Generator().manual_seed(1)) * 0.1)
    assert set(transcript.text) <= set("abc ⁇")


def test_options_become_ours(directory: Callable[..., Path], tmp_path: Path) -> None:
    changes = {
        **SHAPES["experts in the decoders"],
        "encoder_conf/dropout_rate": 0.2,
        "encoder_conf/use_dynamic_left_chunk": True,
        "encoder_conf/cnn_module_norm": "batch_norm",
        "dataset_conf/fbank_conf/window_type": "hamming",
        "dataset_conf/resample_conf": {"resample_rate": 8000},
        "model_conf/length_normalized_loss": True,
    }
    import_wenet(directory(changes), tmp_path / "run")
    recognizer = moe_asr.load(tmp_path / "run")
    config, tokenizer = recognizer.config, recognizer.tokenizer
    encoder, decoder = config.model.encoder, config.model.decoder
    assert (encoder.layers, encoder.width, encoder.heads, encoder.ffn_width, encoder.kernel) == (2, 8, 2, 12, 4)
    assert (encoder.conv_norm, encoder.activation, encoder.dropout) == (ConvNorm.batch_norm, Activation.swish, 0.2)
    assert (decoder.layers, decoder.reverse_layers, decoder.heads, decoder.ffn_width) == (1, 2, 4, 10)
    assert (config.moe.placement, config.moe.num_experts, config.moe.top_k) == ("decoder", 4, 2)
    assert (config.loss.ctc_weight, config.loss.label_smoothing, config.loss.length_normalized) == (0.3, 0.1, True)
    assert (config.chunk.dynamic, config.chunk.dynamic_left) == (True, True)
    features = config.features
    assert (features.mel_bins, features.sample_rate, features.window, features.dither) == (
        20,
        8000,
        Window.hamming,
        1.0,
    )
    assert (tokenizer.symbols, tokenizer.blank, tokenizer.unk, tokenizer.sos_eos) == (UNITS, 0, 1, 6)
    assert recognizer.model.sos_eos == 6
    receipt = (tmp_path / "run" / "environment.json").read_text()
    assert json.loads(receipt)["imported"]["checkpoint"] == "final.pt"
    assert str(tmp_path) not in receipt + (tmp_path / "run" / "config.yaml").read_text()


def test_computed_tables_and_unused_layers_are_left_out(directory: Callable[..., Path], tmp_path: Path) -> None:
    ignored = ("encoder.embed.pos_enc.pe", "decoder.left_decoder.embed.1.pe", "encoder.encoders.0.concat_linear.weight")
    import_wenet(directory(tensors=dict.fromkeys(ignored, torch.ones(3))), tmp_path / "run")
    assert moe_asr.load(tmp_path / "run").model.sos_eos == 6


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "conv2d6": ({"encoder_conf/input_layer": "conv2d6"}, "encoder_conf.input_layer=conv2d6"),
    "macaron": ({"encoder_conf/macaron_style": False}, "encoder_conf.macaron_style=False"),
    "abs_pos": ({"encoder_conf/pos_enc_layer_type": "abs_pos"}, "encoder_conf.pos_enc_layer_type=abs_pos"),
    "post-norm": ({"decoder_conf/normalize_before": False}, "decoder_conf.normalize_before=False"),
    "centred in chunks": ({"encoder_conf/causal": False}, "use_dynamic_chunk=True contradicts causal=False"),
    "encoder": ({"encoder": "e_branchformer"}, "encoder=e_branchformer"),
    "transducer": ({"model": "transducer"}, "model=transducer"),
    "predictor": ({"predictor_conf": {}}, "predictor_conf is unknown"),
    "tokenizer": ({"tokenizer": "whisper"}, "tokenizer=whisper"),
    "noises": ({"tokenizer_conf/non_lang_syms_path": "x"}, "tokenizer_conf.non_lang_syms_path=x"),
    "unknown encoder key": ({"encoder_conf/layer_drop": 0.1}, "encoder_conf.layer_drop is unknown"),
    "unknown decoder key": ({"decoder_conf/layer_drop": 0.1}, "decoder_conf.layer_drop is unknown"),
    "unknown model key": ({"model_conf/focal": 1}, "model_conf.focal is unknown"),
    "unknown feature key": ({"dataset_conf/fbank_conf/low_freq": 1}, "dataset_conf.fbank_conf.low_freq is unknown"),
    "mfcc": ({"dataset_conf/feats_type": "mfcc"}, "dataset_conf.feats_type=mfcc"),
    "section": ({"model_conf": 3}, "model_conf must be a section"),
    "one expert": (
        {"encoder_conf/mlp_type": "moe", "encoder_conf/n_expert_activated": 1},
        "n_expert_activated=1 cannot be imported",
    ),
    "experts differ": (
        {**SHAPES["experts in the encoder"], **SHAPES["experts in the decoders"]},
        "decoder_conf.n_expert",
    ),
    "sos and eos": ({"tokenizer_conf/special_tokens/<eos>": 5}, "<sos>=6 and <eos>=5"),
    "blank": ({"tokenizer_conf/special_tokens/<blank>": 1}, "<blank>=1 contradicts ctc_conf.ctc_blank_id=0"),
    "vocabulary": ({"output_dim": 9}, "output_dim=9 contradicts the 7 tokens"),
    "bins": ({"input_dim": 40}, "input_dim=40 contradicts"),
    "width": ({"encoder_conf/attention_heads": 3, "encoder_conf/num_blocks": 0}, "encoder.width=8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_the_same_is_refused_by_name(directory: Callable[..., Path], tmp_path: Path, name: str) -> None:
    changes, sentence = REFUSED[name]
    folder = directory()
    (folder / "train.yaml").write_text(yaml.safe_dump(merged(BASE, changes)), encoding="utf-8")
    with pytest.raises(InputError) as refused:
        import_wenet(folder, tmp_path / "run")
    assert sentence in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("ctc.ctc_lo.bias", None, "lacks ctc.ctc_lo.bias;"),
        ("encoder.encoders.0.adapter.weight", torch.ones(2), "beyond what its YAML says, encoder.encoders.0.adapter"),
        ("encoder.encoders.1.feed_forward.w_1.weight", torch.ones(8, 12), r"w_1.weight has the shape (8, 12)"),
        ("encoder.encoders.0.conv_module.pointwise_conv2.weight", torch.ones(8, 8), "the YAML says (8, 8, 1)"),
        ("decoder.right_decoder.decoders.1.src_attn.linear_v.bias", torch.ones(4), "the YAML says (8,)"),
    ],
)
def test_wrong_tensors_are_refused_by_name(
    directory: Callable[..., Path], tmp_path: Path, name: str, value: Tensor | None, sentence: str
) -> None:
    with pytest.raises(InputError) as refused:
        import_wenet(directory(tensors={name: value}), tmp_path / "run")
    assert sentence in str(refused.value)


def test_the_mean_and_variance_come_from_the_checkpoint_or_the_file(
    directory: Callable[..., Path], tmp_path: Path
) -> None:
    names = ("encoder.global_cmvn.mean", "encoder.global_cmvn.istd")
    folder = directory(tensors=dict.fromkeys(names))
    with pytest.raises(InputError, match="global_cmvn holds no feature statistics"):
        import_wenet(folder, tmp_path / "run")
    frames = torch.randn(50, 20, dtype=torch.float64)
    total, squares = frames.sum(0).tolist(), frames.square().sum(0).tolist()
    (folder / "global_cmvn").write_text(json.dumps({"mean_stat": total, "var_stat": squares, "frame_num": 50}))
    import_wenet(folder, tmp_path / "run")
    cmvn = moe_asr.load(tmp_path / "run").model.encoder.cmvn
    assert torch.allclose(cmvn.mean, frames.mean(0).float(), atol=1e-6)
    assert torch.allclose(cmvn.istd, 1 / frames.std(0, correction=0).float(), rtol=1e-5)
    text = f"[\n {' '.join(map(str, total))} 50\n {' '.join(map(str, squares))} 0 ]\n"
    (tmp_path / "kaldi").write_text(text)
    mean, istd = read_cmvn(tmp_path / "kaldi")
    assert torch.equal(mean, cmvn.mean)
    assert torch.equal(istd, cmvn.istd)


def test_a_model_without_normalisation_gets_none(directory: Callable[..., Path], tmp_path: Path) -> None:
    names = ("encoder.global_cmvn.mean", "encoder.global_cmvn.istd")
    import_wenet(directory({"cmvn": None}, dict.fromkeys(names)), tmp_path / "run")
    cmvn = moe_asr.load(tmp_path / "run").model.encoder.cmvn
    assert torch.equal(cmvn.mean, torch.zeros(20))
    assert torch.equal(cmvn.istd, torch.ones(20))


def test_word_pieces_bring_their_model(directory: Callable[..., Path], tmp_path: Path) -> None:
    changes = {"tokenizer": "bpe", "tokenizer_conf/bpe_path": "data/lang/train.model"}
    folder = directory(changes)
    with pytest.raises(InputError, match=r"has no train\.model"):
        import_wenet(folder, tmp_path / "run")
    with (folder / "train.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["ab ca", "c a b"]), model_writer=file, vocab_size=8, minloglevel=3
        )
    import_wenet(folder, tmp_path / "run")
    tokenizer = moe_asr.load(tmp_path / "run").tokenizer
    assert tokenizer.unit is TokenUnit.bpe
    assert tokenizer.decode([2, 3, 4, 2, 5]) == "ab c"
    (folder / "train.yaml").write_text(
        yaml.safe_dump({k: v for k, v in merged(BASE, {}).items() if k not in ("tokenizer", "tokenizer_conf")})
    )
    import_wenet(folder, tmp_path / "older")
    older = moe_asr.load(tmp_path / "older").tokenizer
    assert (older.unit, older.unk, older.sos_eos) == (TokenUnit.bpe, 1, 6)


@pytest.mark.parametrize(
    ("units", "sentence"),
    [
        ("<blank> 0\n<unk> 2\n", "the ids 0 to 1"),
        ("<blank> 0\n<unk>\n", "has the line '<unk>'"),
        ("a 0\nb 1\nc 2\n", "has no <unk>"),
    ],
)
def test_broken_symbol_tables_are_refused(
    directory: Callable[..., Path], tmp_path: Path, units: str, sentence: str
) -> None:
    folder = directory({"tokenizer_conf/special_tokens": {}})
    (folder / "units.txt").write_text(units)
    with pytest.raises(InputError, match=sentence):
        import_wenet(folder, tmp_path / "run")


def test_the_checkpoint_can_be_chosen(directory: Callable[..., Path], tmp_path: Path) -> None:
    folder = directory()
    weights = (folder / "final.pt").read_bytes()
    (folder / "final.pt").unlink()
    for name in ("avg_5.pt", "epoch_9.pt"):
        (folder / name).write_bytes(weights)
    with pytest.raises(InputError, match=r"avg_5\.pt, epoch_9\.pt with checkpoint=NAME"):
        import_wenet(folder, tmp_path / "run")
    import_wenet(folder, tmp_path / "run", "epoch_9.pt")
    with pytest.raises(InputError, match="holds a model already"):
        import_wenet(folder, tmp_path / "run", "avg_5.pt")
    (folder / "avg_5.pt").write_bytes(weights[:99])
    with pytest.raises(InputError, match="damaged"):
        import_wenet(folder, tmp_path / "again", "avg_5.pt")
    torch.save({"epoch": 3}, folder / "avg_5.pt")
    with pytest.raises(InputError, match="no plain dictionary of tensors"):
        import_wenet(folder, tmp_path / "again", "avg_5.pt")


def test_no_yaml_no_import(directory: Callable[..., Path], tmp_path: Path) -> None:
    folder = directory()
    (folder / "train.yaml").write_text("a: [")
    with pytest.raises(InputError, match="is not readable YAML"):
        import_wenet(folder, tmp_path / "run")
    (folder / "train.yaml").unlink()
    with pytest.raises(InputError, match=r"has no train\.yaml or config\.yaml"):
        import_wenet(folder, tmp_path / "run")


def test_the_command_imports_what_transcribe_reads(
    directory: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moe-asr", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    folder, run = directory(), tmp_path / "run"
    code, out, _ = command("import-checkpoint", "wenet", folder, run)
    assert code == 0
    assert "7 tokens (char)" in out
    audio = tmp_path / "noise.wav"
    soundfile.write(audio, numpy.random.default_rng(1).normal(0, 0.1, 16000), 16000)
    assert command("transcribe", run, audio)[0] == 0
    code, _, err = command("import-checkpoint", "wenet", folder / "missing", run)
    assert code == 2
    assert "is not a directory" in err
    code, _, err = command("import-checkpoint", "espnet", folder, run)
    assert code == 2
    assert "source=espnet is not known" in err
