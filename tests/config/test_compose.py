"""The door of the configuration: everything that exists composes, everything else is refused with the right word."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from moe_asr.config import compose
from moe_asr.config.align import AlignConfig
from moe_asr.config.benchmark import BenchmarkConfig
from moe_asr.config.commands import EvaluateConfig, InspectConfig, TranscribeConfig
from moe_asr.config.compare import CompareConfig
from moe_asr.config.compose import compose_config, config_folder, groups, option_help, option_keys, to_plain, to_typed
from moe_asr.config.pages import ExploreConfig, ReportConfig
from moe_asr.config.prepare import PrepareConfig
from moe_asr.config.program import Keep, Precision, TrainConfig
from moe_asr.config.prune import PruneConfig
from moe_asr.config.routing import TraceConfig
from moe_asr.config.score import ScoreConfig
from moe_asr.config.tune import TuneConfig
from moe_asr.errors import InputError

COMMANDS: dict[str, type] = {
    "train": TrainConfig,
    "inspect": InspectConfig,
    "evaluate": EvaluateConfig,
    "transcribe": TranscribeConfig,
    "align": AlignConfig,
    "tune": TuneConfig,
    "prepare": PrepareConfig,
    "trace": TraceConfig,
    "explore": ExploreConfig,
    "report": ReportConfig,
    "benchmark": BenchmarkConfig,
    "score": ScoreConfig,
    "compare": CompareConfig,
    "prune": PruneConfig,
}


def train_config(*overrides: str) -> TrainConfig:
    return compose_config("train", TrainConfig, list(overrides))


def points(experiment: str) -> Iterator[list[str]]:
    """The overrides of every point of an experiment; a single one unless it is a grid."""
    file = config_folder() / "experiment" / f"{experiment}.yaml"
    grid = OmegaConf.select(OmegaConf.load(file), "hydra.sweeper.params") or {}
    said = OverridesParser.create().parse_overrides([f"{key}={choices}" for key, choices in grid.items()])
    for chosen in BasicSweeper.split_arguments(said, None)[0]:
        yield [f"experiment={experiment}", *chosen]


def leaves(plain: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in plain.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config folder of our own, with a grid in it."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "train.yaml").write_text("defaults: [train_schema, experiment: null, _self_]\n")
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "cpu.yaml").write_text("accelerator: cpu\n")
    grid = "# @package _global_\nhydra: {sweeper: {params: {seed: '1,2', moe.placement: 'none,both'}}}\n"
    (tmp_path / "experiment" / "grid.yaml").write_text(grid)
    monkeypatch.setattr(compose, "config_folder", lambda: tmp_path)
    monkeypatch.setitem(globals(), "config_folder", lambda: tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("group", "option"),
    [(group, option) for group, options in groups().items() if group != "experiment" for option in options],
)
def test_every_group_option_composes_and_its_values_arrive(group: str, option: str) -> None:
    written = OmegaConf.load(config_folder() / group / f"{option}.yaml")
    experts = [] if OmegaConf.select(written, "moe.placement") else ["moe.placement=both"]  # which any router needs
    plain = to_plain(train_config(f"{group}={option}", *experts))
    expected = OmegaConf.to_container(
        OmegaConf.create(written if group in written else {group: written}), resolve=False
    )
    for key, value in leaves(expected):
        if "${" not in str(value):
            assert OmegaConf.select(OmegaConf.create(plain), key) == value


@pytest.mark.parametrize("experiment", groups()["experiment"])
def test_every_point_of_every_experiment_composes(experiment: str) -> None:
    baseline = train_config()
    for overrides in points(experiment):
        config = train_config(*overrides)
        assert config != baseline
        assert config.logger.group == experiment
    assert len((config_folder() / "experiment" / f"{experiment}.yaml").read_text().splitlines()) <= 20


def test_a_grid_needs_m_and_its_points_compose(folder: Path) -> None:
    with pytest.raises(InputError, match=r"This is a grid \(seed=1,2 moe.placement=none,both\): add -m to run all"):
        train_config("experiment=grid")
    with pytest.raises(InputError, match=r"This is a grid \(moe.placement=none,both\)"):
        train_config("experiment=grid", "seed=1")
    configs = [train_config(*overrides) for overrides in points("grid")]
    assert [(c.seed, c.moe.placement) for c in configs] == [(1, "none"), (1, "both"), (2, "none"), (2, "both")]


def test_folds_name_the_splits() -> None:
    data = train_config("data=fsdd", "data.fold=george").data
    assert (data.train, data.dev, data.test) == (["george/train"], ["george/dev"], ["george/test"])


PAIRED = {  # options whose neighbours allow only some values
    "model.encoder.kernel": 17,
    "model.encoder.conv_norm": "layer_norm",
    "lefts": [2, None],
    "chunks": [8, None],
    "experts": "fused",
    "optim.betas": [0.8, 0.9],
    "model.encoder.cape_scale": 1.2,
    "model.encoder.positions": "cape",
    "model.encoder.attention_bias": False,
    "moe.placement": "both.every2",
    "moe.sharing": "table",
    "moe.sharing_table": [0, 1, 0, 1, 2],
    "moe.num_experts": 3,
    "num_experts": 3,
    "moe.top_k": 2,
    "moe.expert_width": None,
    "moe.expert_widths": [64, 32, 0],
    "moe.dropout": 0.2,
    "moe.activation": "relu",
    "match": "active",
    "match_to": "dense",
    "router.capacity_factor": 1.5,
    "data.hours": 0.5,
    "trainer.max_steps": 5,
    "synthetic.seed": 1,
    "corpus": "fsdd",
    "kind": "rtf",
    "question": "methods",
    "systems": [],
    "unit": "char",
    "power": 5.0,
    "routing": "replay",
    "figure": "latency.svg",
    "searches.vocab_sizes": [64, 500],
    "segments": True,
    "routing.choose": "replay",
    "synthetic.recipe": "text",
    "synthetic.languages": ["en", "de"],
    "synthetic.language": "de",
    "augment.reverb_seconds": [0.3, 0.6],
    "augment.babble_db": [0.0, 9.0],
    "augment.noise_db": [-5.0, 9.0],
    "domains.recipe": "digits",
    "compose.seconds": [2.0, 20.0],
    "compose.pause": [0.0, 0.5],
}
ONE_CHOICE = ("model.name", "synthetic.seed")


def another(key: str, value: Any, hint: Any) -> Any:
    """A valid value of an option that is not its default."""
    if key in PAIRED:
        return PAIRED[key]
    if isinstance(value, Enum):
        return next(member.name for member in type(value) if member is not value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.75 + 0.125
    if isinstance(value, dict):
        return {"encoder": 0.5}
    if isinstance(value, list) and issubclass(kind := get_args(hint)[0], Enum):
        return [next(iter(kind)).name]
    if isinstance(value, list):
        return [*value, {float: 0.5, int: 3, str: "word"}[get_args(hint)[0]]]
    if value is None:
        if bool in get_args(hint):
            return True
        return 7 if int in get_args(hint) else ["word"] if list[str] in get_args(hint) else "text"
    return "another"


def hint_of(schema: type, key: str) -> tuple[Any, Any]:
    """(default, type) of an option."""
    node, _, rest = key.partition(".")
    if rest:
        return hint_of(get_type_hints(schema)[node], rest)
    field = next(f for f in dataclasses.fields(schema) if f.name == node)
    factory = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory(), get_type_hints(schema)[node]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_can_be_overridden(command: str) -> None:
    schema = COMMANDS[command]
    values = {
        key: another(key, *hint_of(schema, key)) for key, _, _ in option_help(schema) if not key.endswith(ONE_CHOICE)
    }
    overrides = [f"{key}={'null' if v is None else json.dumps(v)}" for key, v in values.items()]
    # JSON's quotes around keys of dictionaries are not in Hydra's grammar.
    overrides = [text.replace('{"encoder": ', "{encoder: ") for text in overrides]
    plain = OmegaConf.create(to_plain(compose_config(command, schema, overrides)))
    assert {key: OmegaConf.select(plain, key) for key in values} == values


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["optim.lrr=1"], "There is no option optim.lrr; did you mean optim.lr?"),
        (["placment=encoder"], "There is no option placment; did you mean moe.placement?"),
        (["+modle.name=u2pp"], "There is no option modle.name; did you mean model.name?"),
        (["qqq=1"], "There is no option qqq."),
        (["modle=u2pp_tiny"], "There is no option modle; did you mean model?"),
        (["experimnt=demo"], "There is no option experimnt; did you mean experiment?"),
        (["optim=adamm"], "optim=adamm does not exist; did you mean adam? There are: adam, adamw."),
        (["optim=adam,adamm"], "optim=adamm does not exist; did you mean adam? There are: adam, adamw."),
        (["trainer.keep=bst"], "trainer.keep=bst is not known; did you mean best? It is one of best, last."),
        (["optim.name=7"], "optim.name=7 is not known. It is one of adam, adamw."),
        (["match=all"], "match=all is not known. It is one of total, active, flops."),
        (["optim.lr=fast"], "optim.lr=fast is not a number."),
        (["trainer.epochs=1.5"], "trainer.epochs=1.5 is not a whole number."),
        (["trainer.epochs=null"], "trainer.epochs=null is not a whole number."),
        (["trainer.progress=maybe"], "trainer.progress=maybe is not true or false."),
        (["decode.chunks=[a]"], "decode.chunks=a is not a whole number."),
        (["optim.betas=0.9"], "optim.betas is a list: write optim.betas=[...]."),
        (["seed"], "'seed' is not of the form key=value."),
        (
            ["runs=ü,ö"],
            "runs=ü,ö is a grid: add -m to run all of it, or write runs=[ü,ö] for a list or \"runs='ü,ö'\" for a text.",
        ),
        (
            ["data.test=[seen"],
            "data.test=[seen cannot be read: close its brackets, "
            "or write it in quotes within quotes, \"data.test='...'\".",
        ),
        (["trainer.epochs=0"], "trainer.epochs=0 must be at least 1."),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence_with_the_closest_right_word(overrides: list[str], sentence: str) -> None:
    with pytest.raises(InputError) as refused:
        train_config(*overrides)
    assert str(refused.value) == sentence


def test_any_letter_may_stand_in_a_text_alone_or_in_a_list() -> None:
    words = ["runs=~/läufe = mit Leer", "data.test=[北京, 上 海,'b,c',d]", "launcher.options={a: ü, b: 1}"]
    config = train_config(*words)
    assert (config.runs, config.data.test) == ("~/läufe = mit Leer", ["北京", "上 海", "b,c", "d"])
    assert config.launcher.options == {"a": "ü", "b": 1}


def test_contradictions_are_found_across_groups_and_overrides() -> None:
    with pytest.raises(InputError, match=r"write router\.normalize=false \(router=switch\) or moe\.top_k=2"):
        train_config("moe.placement=encoder", "moe.top_k=1")
    config = train_config("moe.placement=encoder", "moe.top_k=1", "router=switch")
    assert config.moe.placement == "encoder"


def test_a_missing_positional_option_is_named() -> None:
    with pytest.raises(InputError, match=r"^run is missing; see --help\.$"):
        compose_config("evaluate", EvaluateConfig, [])
    assert compose_config("evaluate", EvaluateConfig, [], {"run": "runs/x"}).run == "runs/x"


def test_a_command_without_groups_has_options_of_their_names() -> None:
    """`data` is a group of train, but a path of evaluate."""
    config = compose_config("evaluate", EvaluateConfig, ["run=runs/x", "data=data/other", "threads=2"])
    assert (config.data, config.threads) == ("data/other", 2)
    with pytest.raises(InputError, match=r"^modes=attn is not known; did you mean attention\? It is one"):
        compose_config("evaluate", EvaluateConfig, ["run=runs/x", "modes=[attn]"])
    with pytest.raises(InputError, match=r"^There is no option optim\.$"):
        compose_config("evaluate", EvaluateConfig, ["run=runs/x", "optim=adam"])


def test_free_form_options_take_a_dictionary() -> None:
    config = train_config("optim.lr_scale={encoder: 0.1, encoder.layers.0: 0.5}")
    assert config.optim.lr_scale == {"encoder": 0.1, "encoder.layers.0": 0.5}


def test_plain_values_and_typed_configs_are_the_same() -> None:
    config = train_config("trainer=gpu", "trainer.keep=last", "moe.placement=both", "optim.lr_scale={ctc: 2}", "name=x")
    plain = to_plain(config)
    assert (plain["trainer"]["precision"], plain["trainer"]["keep"], plain["moe"]["placement"]) == (
        "bf16",
        "last",
        "both",
    )
    again = to_typed(TrainConfig, json.loads(json.dumps(plain)))
    assert again == config
    assert (again.trainer.precision, again.trainer.keep) == (Precision.bf16, Keep.last)
    with pytest.raises(InputError, match=r"There is no option optim\.lrr; did you mean optim\.lr\?"):
        to_typed(TrainConfig, {"optim": {"lrr": 1}})


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_has_every_option_with_its_default_and_explanation(command: str) -> None:
    schema = COMMANDS[command]
    keys = list(option_keys(schema))
    rows = {key: (default, doc) for key, default, doc in option_help(schema)}
    assert set(rows) == {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}
    if command in ("train", "inspect"):
        assert rows["trainer.epochs"] == ("10", "")
        assert rows["optim.warmup_steps"] == ("500", "Optimiser steps of rising learning rate.")
        assert rows["moe.placement"][0] == "null"
        assert rows["name"] == (
            "null",
            "A readable link to the run directory; of a sweep, its directory in the folder `sweeps` of `runs`.",
        )


def test_the_configuration_knows_no_torch() -> None:
    modules = [f"moe_asr.config.{file.stem}" for file in Path(compose.__file__).parent.glob("*.py")]
    program = f"import sys, {', '.join(modules)}\nprint(*sorted({{'torch', 'lhotse', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
