"""The YAML, symbol table and statistics of a WeNet directory -> our configuration, tokenizer and mean and variance.

What our models cannot be is refused by name, never ignored. Training data, augmentation and the optimiser are not
taken over: a run that goes on from the imported weights states its own.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from moe_asr.config.compose import to_typed
from moe_asr.config.data import TokenUnit
from moe_asr.config.program import TrainConfig
from moe_asr.errors import InputError
from moe_asr.features.cmvn import FeatureStatistics
from moe_asr.features.tokenizer import Tokenizer

_STACK = {
    "attention_heads": 4,
    "linear_units": 2048,
    "num_blocks": 6,
    "dropout_rate": 0.1,
    "positional_dropout_rate": 0.1,
    "normalize_before": (True,),
    "layer_norm_type": ("layer_norm",),
    "norm_eps": (1e-5,),
    "n_kv_head": (None,),
    "head_dim": (None,),
    "mlp_type": ("position_wise_feed_forward", "moe"),
    "n_expert": 8,
    "n_expert_activated": 2,
    "concat_after": (False,),
    **dict.fromkeys(("query_bias", "key_bias", "value_bias", "mlp_bias"), (True,)),
}
KNOWN: dict[str, dict[str, Any]] = {
    "": {
        "encoder": ("conformer",),
        "decoder": ("bitransformer", "transformer", None),
        "ctc": ("ctc",),
        "cmvn": (None, "global_cmvn"),
        "tokenizer": (None, "char", "bpe"),
        "model": ("asr_model", "asrmodel"),
        "dataset": ("asr",),
        "lfmmi_dir": ("", None),
        "input_dim": None,
        "output_dim": None,
        "vocab_size": None,
        "cmvn_file": None,
    },
    "encoder_conf": {
        **_STACK,
        "output_size": 256,
        "attention_dropout_rate": 0.0,
        "input_layer": ("conv2d",),
        "pos_enc_layer_type": ("rel_pos",),
        "selfattention_layer_type": ("rel_selfattn",),
        "macaron_style": (True,),
        "use_cnn_module": (True,),
        "cnn_module_kernel": 15,
        "cnn_module_norm": ("batch_norm", "layer_norm"),
        "causal": (False, True),
        "conv_bias": (True,),
        "positionwise_conv_kernel_size": (1,),
        "activation_type": ("swish", "relu", "gelu"),
        "static_chunk_size": (0,),
        "use_dynamic_chunk": False,
        "use_dynamic_left_chunk": False,
    },
    "decoder_conf": {
        **_STACK,
        "r_num_blocks": 0,
        "self_attention_dropout_rate": 0.0,
        "src_attention_dropout_rate": 0.0,
        "input_layer": ("embed",),
        "use_output_layer": (True,),
        "src_attention": (True,),
        "tie_word_embedding": (False,),
        "activation_type": ("relu", "swish", "gelu"),
    },
    "model_conf": {
        "ctc_weight": 0.5,
        "reverse_weight": 0.0,
        "lsm_weight": 0.0,
        "length_normalized_loss": False,
        "ignore_id": (-1,),
        "apply_non_blank_embedding": (False,),
    },
    "ctc_conf": {"ctc_blank_id": 0},
    "cmvn_conf": {"cmvn_file": "global_cmvn"},
    "tokenizer_conf": {
        "symbol_table_path": "units.txt",
        "bpe_path": None,
        "split_with_space": False,
        "connect_symbol": ("",),
        "non_lang_syms_path": (None,),
    },
    "tokenizer_conf.special_tokens": {"<blank>": None, "<unk>": None, "<sos>": None, "<eos>": None},
    "dataset_conf": {"feats_type": ("fbank",)},
    "dataset_conf.resample_conf": {"resample_rate": 16000},
    "dataset_conf.fbank_conf": {
        "num_mel_bins": 23,
        "frame_length": 25,
        "frame_shift": 10,
        "dither": 0.0,
        "window_type": ("povey", "hamming"),
    },
}
"""Every option of the YAML by section: a tuple lists the values that can be imported, WeNet's default first; anything
else is WeNet's default of what is taken over."""

_LAYERS = """layers=num_blocks heads=attention_heads ffn_width=linear_units activation=activation_type
    dropout=dropout_rate position_dropout=positional_dropout_rate"""
_ENCODER = """width=output_size kernel=cnn_module_kernel causal=causal conv_norm=cnn_module_norm
    attention_dropout=attention_dropout_rate"""
_DECODER = """self_attention_dropout=self_attention_dropout_rate
    cross_attention_dropout=src_attention_dropout_rate"""
"""Our options = WeNet's: of both stacks, and of one."""

IGNORED = re.compile(
    r"(encoder|decoder|ctc|cmvn|tokenizer|model|dataset)_conf|tokenizer_conf\.special_tokens"  # sections of their own
    r"|(encoder|decoder)_conf\.(gradient_checkpointing|use_sdpa)"  # speed
    r"|tokenizer_conf\.(is_multilingual|num_languages)"  # for tokenizers of other models
    r"|(cmvn_conf\.)?is_json_cmvn"  # the file itself tells
    r"|dataset_conf\.(fbank_conf|resample_conf|filter_conf|batch_conf|cycle|speed_perturb|spec_(aug|sub|trim)(_conf)?"
    r"|(list_)?shuffle(_conf)?|sort(_conf)?)"  # training data and its augmentation
    r"|(optim|scheduler)(_conf)?|grad_clip|accum_grad|max_epoch|log_interval|save_interval|dtype|use_amp|train_engine"
    r"|model_dir|save_states|init_infos|epoch|step|tag"  # how the training went
)
"""Options that change nothing about what a trained model does."""


def read_yaml(folder: Path) -> dict[str, Any]:
    """train.yaml or config.yaml, as plain data. Raises InputError where there is none."""
    file = beside(folder, "train.yaml", "config.yaml")
    try:
        plain = OmegaConf.to_container(OmegaConf.load(file))
    except Exception as error:  # of YAML, its encoding, or OmegaConf
        raise InputError(f"{file} is not readable YAML ({str(error).splitlines()[0]}).") from error
    if not isinstance(plain, dict):
        raise InputError(f"{file} holds no options; give the train.yaml that WeNet wrote.")
    return {str(key): value for key, value in plain.items()}


def beside(folder: Path, *names: str) -> Path:
    """The first of the files that the folder has; paths of the training machine count by their last part."""
    files = [folder / Path(name).name for name in names]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise InputError(f"{folder} has no {' or '.join(dict.fromkeys(file.name for file in files))}; put it there.")
    return found


def options(yaml: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """A section, WeNet's defaults included. Raises InputError for what is unknown or cannot be imported."""
    given: Any = yaml
    for part in filter(None, section.split(".")):
        given = given.get(part) or {}
        if not isinstance(given, Mapping):
            raise InputError(f"{section} must be a section of options, not {str(given)[:40]}.")
    known = KNOWN[section]
    for key, value in given.items():
        name = f"{section}.{key}".lstrip(".")
        if IGNORED.fullmatch(name):
            continue
        if key not in known:
            raise InputError(f"{name} is unknown to the importer; delete it if it does not change what the model does.")
        if isinstance(known[key], tuple) and value not in known[key]:
            possible = " or ".join("null" if v is None else str(v) for v in known[key])
            raise InputError(f"{name}={str(value)[:40]} cannot be imported: our models have only {key}={possible}.")
    return {**{key: v[0] if isinstance(v, tuple) else v for key, v in known.items()}, **given}


def read_config(folder: Path) -> tuple[TrainConfig, Tokenizer, Path | None]:
    """Configuration, tokenizer, and the file of the mean and variance where the model normalises by them.

    Raises InputError naming whatever cannot be imported.
    """
    yaml = read_yaml(folder)
    top, encoder, decoder = options(yaml), options(yaml, "encoder_conf"), options(yaml, "decoder_conf")
    loss, fbank = options(yaml, "model_conf"), options(yaml, "dataset_conf.fbank_conf")
    options(yaml, "dataset_conf")
    tokenizer = read_tokenizer(folder, yaml)
    for key in ("output_dim", "vocab_size"):
        if top[key] not in (None, len(tokenizer)):
            raise InputError(f"{key}={top[key]} contradicts the {len(tokenizer)} tokens of the symbol table.")
    if top["input_dim"] not in (None, fbank["num_mel_bins"]):
        raise InputError(f"input_dim={top['input_dim']} contradicts fbank_conf.num_mel_bins={fbank['num_mel_bins']}.")
    if encoder["use_dynamic_chunk"] and not encoder["causal"]:
        raise InputError(
            "encoder_conf.use_dynamic_chunk=True contradicts causal=False, which looks ahead: write false."
        )
    left, right = top["decoder"] is not None, top["decoder"] == "bitransformer"
    decoder_model = renamed(decoder, f"{_LAYERS} reverse_layers=r_num_blocks {_DECODER}")
    if not right:
        decoder_model["reverse_layers"] = 0
    if not left:
        decoder_model |= {"layers": 0, "heads": encoder["attention_heads"]}
    plain = {
        "model": {"encoder": renamed(encoder, f"{_LAYERS} {_ENCODER}"), "decoder": decoder_model},
        "moe": moe_options(encoder, decoder if left else None),
        "loss": renamed(
            loss,
            "ctc_weight=ctc_weight reverse_weight=reverse_weight label_smoothing=lsm_weight "
            "length_normalized=length_normalized_loss",
        ),
        "chunk": renamed(encoder, "dynamic=use_dynamic_chunk dynamic_left=use_dynamic_left_chunk"),
        "features": {
            "sample_rate": options(yaml, "dataset_conf.resample_conf")["resample_rate"],
            **renamed(
                fbank,
                "mel_bins=num_mel_bins frame_length_ms=frame_length frame_shift_ms=frame_shift window=window_type "
                "dither=dither",
            ),
        },
        "tokenizer": {"unit": tokenizer.unit.name, "vocab_size": len(tokenizer)},
        "data": {"error_unit": "char" if tokenizer.unit is TokenUnit.char else "word"},
    }
    # Directories of WeNet 1 and 2 state the file alone.
    cmvn = options(yaml, "cmvn_conf")["cmvn_file"] if top["cmvn"] else top["cmvn_file"]
    return to_typed(TrainConfig, plain), tokenizer, None if cmvn is None else folder / Path(str(cmvn)).name


def renamed(section: Mapping[str, Any], pairs: str) -> dict[str, Any]:
    """Options of a section under our names; `pairs` reads "ours=theirs ours=theirs"."""
    return {ours: section[theirs] for ours, theirs in (pair.split("=") for pair in pairs.split())}


def moe_options(encoder: Mapping[str, Any], decoder: Mapping[str, Any] | None) -> dict[str, Any]:
    """Which stacks have experts, and how many; a model of ours has as many at every site."""
    stacks = {"encoder": encoder} | ({} if decoder is None else {"decoder": decoder})
    sparse = {name: conf for name, conf in stacks.items() if conf["mlp_type"] == "moe"}
    shapes = {(conf["n_expert"], conf["n_expert_activated"]) for conf in sparse.values()}
    if not shapes:
        return {"placement": "none"}
    if len(shapes) > 1:
        raise InputError(
            "decoder_conf.n_expert and n_expert_activated differ from those of encoder_conf, "
            "which cannot be imported: our models have equally many experts at every site."
        )
    num_experts, top_k = shapes.pop()
    if top_k == 1 < num_experts:
        raise InputError("n_expert_activated=1 cannot be imported: its router has no gradient; 2 or more can.")
    return {"placement": "both" if len(sparse) == 2 else next(iter(sparse)), "num_experts": num_experts, "top_k": top_k}


def read_tokenizer(folder: Path, yaml: Mapping[str, Any]) -> Tokenizer:
    """The symbol table with its special tokens, and the sentencepiece model of `tokenizer: bpe`.

    A YAML without `tokenizer` (WeNet 1 and 2) means bpe where the directory has a *.model, else characters.
    """
    conf, kind = options(yaml, "tokenizer_conf"), options(yaml)["tokenizer"]
    models = sorted(file.name for file in folder.glob("*.model"))
    bpe = kind == "bpe" or (kind is None and bool(models))
    symbols = read_symbols(beside(folder, str(conf["symbol_table_path"]), "units.txt", "lang_char.txt", "words.txt"))
    special, blank = options(yaml, "tokenizer_conf.special_tokens"), options(yaml, "ctc_conf")["ctc_blank_id"]
    last = len(symbols) - 1
    sos, eos = (last if special[name] is None else special[name] for name in ("<sos>", "<eos>"))
    unk = symbols.index("<unk>") if special["<unk>"] is None and "<unk>" in symbols else special["<unk>"]
    if sos != eos:
        raise InputError(f"special_tokens <sos>={sos} and <eos>={eos} differ, which cannot be imported.")
    if special["<blank>"] not in (None, blank):
        raise InputError(f"special_tokens <blank>={special['<blank>']} contradicts ctc_conf.ctc_blank_id={blank}.")
    if unk is None:
        raise InputError("the symbol table has no <unk>; name its id in tokenizer_conf.special_tokens.")
    unit = TokenUnit.bpe if bpe else TokenUnit.word if conf["split_with_space"] else TokenUnit.char
    model = beside(folder, *filter(None, [conf["bpe_path"]]), *(models or ["*.model"])).read_bytes() if bpe else b""
    return Tokenizer(unit, symbols, blank, unk, sos, model)


def read_symbols(file: Path) -> tuple[str, ...]:
    """A line per token: the symbol and its id. Raises InputError unless the ids are 0, 1, 2, ..."""
    lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    rows = [line.strip("\r").rsplit(maxsplit=1) for line in lines]
    bad = next((row for row in rows if len(row) != 2 or not row[1].isdecimal()), None)
    if bad is not None:
        raise InputError(f"{file} has the line '{' '.join(bad)}' where a symbol and its id should be.")
    by_id = {int(number): symbol for symbol, number in rows}
    if sorted(by_id) != list(range(len(rows))):
        raise InputError(f"{file} must give {len(rows)} symbols the ids 0 to {len(rows) - 1}, each once.")
    return tuple(by_id[i] for i in range(len(rows)))


def read_cmvn(file: Path) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation (F,) from sums: JSON, or the text form of Kaldi's matrix (2,F+1)."""
    try:
        text = file.read_text(encoding="utf-8")
        if text.lstrip().startswith("{"):
            sums = json.loads(text)
            total, squares, frames = sums["mean_stat"], sums["var_stat"], sums["frame_num"]
        else:
            numbers = [float(word) for word in text.split()[1:-1]]
            size = len(numbers) // 2
            total, squares, frames = numbers[: size - 1], numbers[size : 2 * size - 1], numbers[size - 1]
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"{file} holds no feature statistics, neither as JSON nor as Kaldi text.") from error
    as_tensor = [torch.tensor(values, dtype=torch.float64) for values in (total, squares)]
    return FeatureStatistics(int(frames), *as_tensor).mean_istd()
