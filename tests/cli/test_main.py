"""The door: fast help, one grammar, one sentence for what is wrong, and exit codes."""

import errno
import importlib
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_asr.cli import main as door
from moe_asr.cli.main import COMMANDS, split_words
from moe_asr.cli.prepare import complete
from moe_asr.config.compose import compose_config, option_help, to_plain
from moe_asr.config.program import TrainConfig
from moe_asr.errors import InputError
from moe_asr.runs.directory import open_run, write_json

Cli = Callable[..., tuple[int, str, str]]


def program(*words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "moe_asr.cli.main", *words], capture_output=True, text=True, cwd=folder
    )


def test_help_imports_nothing_heavy_and_takes_no_time() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "moe_asr.cli.main", "--help"]
    seconds = []
    for _ in range(3):  # other work on the machine only ever adds
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "moe_asr" in imported
    assert not imported & {"torch", "pytorch_lightning", "lhotse", "numpy", "wandb"}
    assert min(seconds) < 0.7
    assert done.stdout.startswith("moe-asr COMMAND [PATH...] [key=value...]")
    assert all(re.search(rf"^  {name} ", done.stdout, re.MULTILINE) for name in COMMANDS)


def test_exit_codes_of_the_real_program(tmp_path: Path) -> None:
    good, bare = program("train", "--help"), program()
    assert (good.returncode, good.stderr) == (0, "")
    assert (bare.returncode, bare.stderr) == (2, "")
    assert bare.stdout == program("--help").stdout
    wrong = program("train", "optim.lrr=1", folder=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "moe-asr: There is no option optim.lrr; did you mean optim.lr?\n"
    shown = program("train", "optim.lrr=1", "--debug", folder=tmp_path)
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr
    assert "InputError: There is no option optim.lrr" in shown.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(cli: Cli, name: str) -> None:
    for words in ((name, "--help"), (name, "-h", "and=more")):
        code, out, err = cli(*words)
        assert (code, err) == (0, "")
        assert out.startswith(f"moe-asr {name} ")
        schema = importlib.import_module(f"moe_asr.cli.{name.replace('-', '_')}").CONFIG
        shown = [line.split("=")[0].strip() for line in out.partition("\nOptions, ")[2].splitlines()[1:]]
        assert shown == [key for key, _, _ in option_help(schema)]


def test_the_help_of_train_names_its_groups(cli: Cli) -> None:
    out = cli("train", "--help")[1]
    assert "  optim=adam|adamw*\n" in out
    assert re.search(r"  experiment=\S*demo", out)
    assert "Groups" not in cli("evaluate", "--help")[1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "There is no command trian; did you mean train? See moe-asr --help."),
        (["xyz"], "There is no command xyz. See moe-asr --help."),
        (["train", "--lr", "3"], "There is no flag --lr; options are written key=value (see moe-asr --help)."),
        (["train", "-x"], "There is no flag -x; options are written key=value (see moe-asr --help)."),
        (["train", "fast"], "'fast' is one word too many; write: moe-asr train [key=value...]."),
        (["evaluate", "a", "b"], "'b' is one word too many; write: moe-asr evaluate RUN [key=value...]."),
        (["score", "a", "b", "c"], "'c' is one word too many; write: moe-asr score HYP REF [key=value...]."),
        (["evaluate", "a", "-m"], "moe-asr evaluate runs one job at a time: leave out -m."),
        (["evaluate"], "run is missing; write: moe-asr evaluate RUN [key=value...]."),
        (["prune", "a"], "out is missing; write: moe-asr prune RUN OUT [key=value...]."),
        (["transcribe", "nowhere"], "Which audio? Write: moe-asr transcribe RUN AUDIO..."),
        (
            ["transcribe", "nowhere", "a.wav"],
            "nowhere does not exist; give a run directory (see runs/) or a",
        ),
        (["transcribe", "a", "b", "format=str"], "format=str is not known; did you mean srt? It is one of text, json"),
        (["transcribe", "a", "b", "c", "format=srt"], "format=srt makes one file of one: give a single AUDIO."),
        (["transcribe", "a", "b", "stream=true"], "stream=true needs decode.chunk: write decode.chunk=16."),
        (["transcribe", "a", "b", "endpoint.longest=0"], "endpoint.longest=0.0 must be above 0 seconds."),
        (["evaluate", "nowhere", "normalizer=basik"], "There is no normaliser 'basik': did you mean basic?"),
        (["prepare", "fsddd"], "corpus=fsddd is not known; did you mean fsdd?"),
        (["prepare", "synthetic", "hourz=1"], "There is no option hourz; did you mean synthetic.hours?"),
        (["prepare", "synthetic", "hours=0"], "hours=0.0 of training audio must be above 0."),
        (["prepare", "fsdd", "hours=1"], "There is no option hours; did you mean synthetic.hours?"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_exit_code_2(cli: Cli, words: list[str], sentence: str) -> None:
    code, out, err = cli(*words)
    assert (code, out) == (2, "")
    assert err.startswith(f"moe-asr: {sentence}")
    assert err.count("\n") == 1


def test_debug_raises_what_was_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["moe-asr", "evaluate", "--debug"])
    with pytest.raises(InputError, match="run is missing"):
        door.main()


def test_an_interrupted_command_says_how_to_go_on(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(door, "dispatch", interrupted)
    code, _, err = cli("train")
    assert code == 130
    assert "the same command goes on" in err
    assert "Traceback" not in err


def test_a_full_disk_is_one_sentence(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def written(words: list[str]) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")  # as `write` does, which knows no name

    monkeypatch.setattr(door, "dispatch", written)
    code, out, err = cli("train")
    assert (code, out) == (1, "")
    assert err == "moe-asr: No space left on device: make room, and give the same command again.\n"


def test_plain_words_fill_positional_options_in_order() -> None:
    assert split_words("score", ["hyp", "unit=char", "ref"]) == (
        ["unit=char"],
        {"hypothesis": "hyp", "reference": "ref"},
    )
    assert split_words("transcribe", ["run", "a.wav", "b.wav"]) == ([], {"run": "run", "audio": ["a.wav", "b.wav"]})
    assert split_words("transcribe", ["run"]) == ([], {"run": "run"})
    assert split_words("train", ["a=b=c"]) == (["a=b=c"], {})


def test_the_options_of_a_corpus_need_no_prefix() -> None:
    words = ["hours=2", "recipe=grammar", "seed=3", "out=data/x", "synthetic.test_voices=2", "nonsense=1"]
    assert complete(words, {"corpus": "synthetic"}) == [
        "synthetic.hours=2",
        "synthetic.recipe=grammar",
        "seed=3",
        "out=data/x",
        "synthetic.test_voices=2",
        "nonsense=1",
    ]
    assert complete(["max_digits=4"], {"corpus": "fsdd"}) == ["fsdd.max_digits=4"]
    assert complete(["hours=2"], {"corpus": "fsdd"}) == ["hours=2"]
    assert complete(["hours=2"], {}) == ["hours=2"]
    assert complete(["fsdd=data/fsdd", "seed=2"], {"corpus": "domains"}) == ["domains.fsdd=data/fsdd", "seed=2"]
    assert complete(["fsdd.max_digits=4"], {"corpus": "domains"}) == ["fsdd.max_digits=4"]


def test_a_corpus_is_prepared_where_it_was_asked_for(cli: Cli, tmp_path: Path) -> None:
    small = (
        "engine=formant hours=0.001 train_voices=1 test_voices=1 dev_voices=2 utterances_per_test_voice=1 "
        "seen_utterances=1 dev_utterances=2 max_digits=3"
    )
    words = (
        "prepare",
        "synthetic",
        *small.split(),
        "seen_utterances=1",
        "dev_utterances=2",
        "workers=1",
        "max_digits=3",
    )
    code, out, err = cli(*words, f"out={tmp_path}/few")
    assert (code, err) == (0, "")
    assert re.search(rf"^{tmp_path}/few/unseen: 1 utterances, 0\.00 h, 1 voices$", out, re.MULTILINE)
    code, again, _ = cli(*words, f"out={tmp_path}/few")
    assert code == 0
    assert "already holds this corpus; nothing to do." in again
    code, _, err = cli(*words, f"out={tmp_path}/few", "seed=2")
    assert code == 2
    assert "overwrite=true" in err


def test_a_missing_corpus_names_the_command_that_makes_it(cli: Cli, tmp_path: Path) -> None:
    code, out, err = cli("train", f"data.path={tmp_path}/digits", f"runs={tmp_path}/runs", "logger.mode=disabled")
    assert (code, out) == (2, "")
    assert f"`moe-asr prepare synthetic recipe=digits out={tmp_path}/digits`" in err
    assert err.count("\n") == 1


def test_a_reader_that_stops_early_is_no_error(tmp_path: Path) -> None:
    shell = f"{sys.executable} -m moe_asr.cli.main train --help | head -1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.startswith("moe-asr train")
    assert done.stderr == ""


def test_a_name_that_is_given_again_says_which_run_it_was(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe_asr.measure.table.results_table", lambda results: "results")
    words = ["train", f"runs={tmp_path}", "name=mine"]
    runs = []
    for seed in (1, 2):
        run = open_run(to_plain(compose_config("train", TrainConfig, [f"runs={tmp_path}", f"seed={seed}"])))
        write_json(run.results, {})
        runs.append(run.path)
    said = [cli(*words, f"seed={seed}")[1].splitlines()[-1] for seed in (1, 1, 2)]
    linked = [f"run directory: {run}, linked as {tmp_path}/mine" for run in runs]
    assert said == [linked[0], linked[0], f"{linked[1]} (which was {runs[0].name})"]
