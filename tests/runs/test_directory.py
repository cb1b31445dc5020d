"""The run directory: found again by its configuration, and whole at whatever moment a process dies."""

import copy
import fcntl
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_asr.config.compose import to_plain
from moe_asr.config.program import TrainConfig
from moe_asr.errors import InputError
from moe_asr.runs import directory
from moe_asr.runs.directory import (
    AppendLog,
    config_hash,
    environment,
    git_commit,
    link,
    only_process,
    open_run,
    read_results,
    write_atomically,
    write_json,
)

PLAIN = to_plain(TrainConfig())
NOT_HASHED = ("name", "runs", "logger", "launcher", "dry_run", "trainer.progress")


def leaves(plain: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in plain.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def changed(key: str) -> dict[str, Any]:
    plain = copy.deepcopy(PLAIN)
    *parents, last = key.split(".")
    node = plain
    for parent in parents:
        node = node[parent]
    node[last] = "something else"
    return plain


def config(tmp_path: Path, **options: Any) -> dict[str, Any]:
    return {**PLAIN, "runs": str(tmp_path / "runs"), **options}


def test_the_hash_knows_every_option_but_those_that_change_no_result() -> None:
    unchanged = {key for key in leaves(PLAIN) if config_hash(changed(key)) == config_hash(PLAIN)}
    assert unchanged == {key for key in leaves(PLAIN) if key.startswith(NOT_HASHED)}
    assert len(unchanged) == 12
    assert len({config_hash(changed(key)) for key in set(leaves(PLAIN)) - unchanged}) == len([*leaves(PLAIN)]) - 12


def test_the_hash_is_that_of_values_not_of_their_order() -> None:
    backwards = dict(reversed(PLAIN.items()))
    assert config_hash(backwards) == config_hash(PLAIN)
    assert re.fullmatch("[0-9a-f]{10}", config_hash(PLAIN))
    before = copy.deepcopy(PLAIN)
    config_hash(PLAIN)
    assert before == PLAIN


def test_damaged_results_are_named(tmp_path: Path) -> None:
    run = open_run(config(tmp_path))
    assert read_results(run) is None
    run.results.write_text('{"dev":')
    with pytest.raises(InputError, match=r"results\.json is damaged: remove it"):
        read_results(run)


def test_the_same_configuration_finds_its_directory_again(tmp_path: Path) -> None:
    first = open_run(config(tmp_path))
    (first.path / "witness").touch()
    again = open_run(config(tmp_path, name="nice"))
    assert (again.path / "witness").exists()
    link(tmp_path / "runs" / "nice", again.path)
    assert open_run(config(tmp_path, seed=2)).path != first.path
    assert (tmp_path / "runs" / "nice" / "witness").exists()
    assert not (tmp_path / "runs" / "nice").readlink().is_absolute()  # so that runs/ can be moved


def test_a_finished_run_takes_a_further_name(tmp_path: Path) -> None:
    run = open_run(config(tmp_path, name="first"))
    assert not (tmp_path / "runs" / "first").exists(), "a run in progress is named by the process that holds it"
    write_json(run.results, {})
    open_run(config(tmp_path, name="second"))
    assert (tmp_path / "runs" / "second").resolve() == run.path.resolve()


def test_a_link_is_replaced_but_a_real_folder_never(tmp_path: Path) -> None:
    for target in ("a", "b"):
        (tmp_path / target).mkdir()
        link(tmp_path / "name", tmp_path / target)
        assert (tmp_path / "name").resolve() == tmp_path / target
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "name"]
    (tmp_path / "b").rmdir()
    link(tmp_path / "name", tmp_path / "a")  # also when it pointed nowhere
    (tmp_path / "a" / "precious").touch()
    with pytest.raises(InputError, match=r"a exists and is not a link to a run; choose another name="):
        link(tmp_path / "a", tmp_path / "name")
    assert (tmp_path / "a" / "precious").exists()


def test_there_is_a_link_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    link(tmp_path / "name", tmp_path / "old")

    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            link(tmp_path / "name", tmp_path / "new")
    assert (tmp_path / "name").resolve() == tmp_path / "old"
    link(tmp_path / "name", tmp_path / "new")  # what the killed one left is no obstacle
    assert (tmp_path / "name").resolve() == tmp_path / "new"


def test_an_unwritable_place_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(InputError, match=r"cannot be written \(.*\); choose another folder with runs=FOLDER\."):
        open_run(config(tmp_path))


def test_a_directory_belongs_to_one_process(tmp_path: Path) -> None:
    run = open_run(config(tmp_path))
    program = f"""
from pathlib import Path
from moe_asr.errors import InputError
from moe_asr.runs.directory import RunDirectory, only_process
try:
    with only_process(RunDirectory(Path({str(run.path)!r}))):
        print("mine")
except InputError as error:
    print(error)
"""

    def another_process() -> str:
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    with only_process(run):
        assert "is being trained by another process; wait for it or stop it." in another_process()
    assert another_process() == "mine\n"


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 on forking with threads
def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    run = open_run(config(tmp_path))
    child = os.fork()
    if child == 0:
        fcntl.flock((run.path / ".lock").open("w"), fcntl.LOCK_EX)
        os.kill(os.getpid(), 9)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == 9
    with only_process(run):
        assert (run.path / ".lock").exists()


def test_a_failing_writer_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    write_json(file, {"wer": 0.5, "ü": [1]})
    assert json.loads(file.read_text()) == {"wer": 0.5, "ü": [1]}

    def fails(opened: Any) -> None:
        opened.write("half a fi")
        opened.flush()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, fails)
    assert json.loads(file.read_text()) == {"wer": 0.5, "ü": [1]}
    write_atomically(file, lambda opened: opened.write(b"\x00\xff"), "wb")
    assert file.read_bytes() == b"\x00\xff"
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_log_is_cut_back_to_where_it_was_known(tmp_path: Path) -> None:
    log = AppendLog(tmp_path / "log")
    log.write_rows([("step", "metric"), (1, "ä,b")])
    log.write_json({"id": "ü"})
    offset = log.offset()
    assert offset == len((tmp_path / "log").read_bytes())
    log.write_rows([(2, "lost")])
    log.close()
    again = AppendLog(tmp_path / "log", offset)
    assert again.offset() == offset
    again.write_rows([(3, "kept")])
    again.close()
    assert (tmp_path / "log").read_bytes() == 'step,metric\n1,"ä,b"\n{"id":"ü"}\n3,kept\n'.encode()
    AppendLog(tmp_path / "log").close()
    assert (tmp_path / "log").read_bytes() == b""


def test_the_environment_says_what_made_a_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    facts = json.loads(json.dumps(environment()))
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert torch.__version__.startswith(facts["versions"]["torch"].partition("+")[0])
    assert set(facts["versions"]) >= {"moe-asr", "torch", "torchaudio", "pytorch-lightning", "lhotse", "jiwer"}
    assert facts["commit"] is None or re.fullmatch("[0-9a-f]{40}(-dirty)?", facts["commit"])
    monkeypatch.setattr(directory, "__file__", str(tmp_path / "elsewhere.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None
