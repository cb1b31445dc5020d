"""`moe-asr compare`: which runs belong together, what is refused, and what is printed of it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import yaml

from moe_asr.config.compose import compose_config, to_plain
from moe_asr.config.program import TrainConfig

Cli = Callable[..., tuple[int, str, str]]
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
NORMALIZER = {"name": "none", "hash": "0"}


def hypotheses(seed: int, wrong: float, speakers: int = 6, reference: str = " ".join(WORDS)) -> list[dict[str, str]]:
    """8 words of each utterance, each wrong with this probability; harder for some speakers, in some runs."""
    rng = numpy.random.default_rng(seed)
    lines = []
    for u in range(speakers * 10):
        hard = wrong * (0.5 + u % speakers / speakers) * (1 + 0.1 * seed)
        said = [word if rng.random() > hard else "no" for word in WORDS]
        lines.append(
            {"id": f"u{u}", "reference": reference, "hypothesis": " ".join(said), "speaker": f"s{u % speakers}"}
        )
    return lines


def write_lines(file: Path, lines: list[dict[str, str]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def finished(
    folder: Path, lines: list[dict[str, str]], *overrides: str, normalizer: dict[str, str] = NORMALIZER
) -> Path:
    """A run directory as training leaves it, with a dev set that is not compared."""
    for name in ("unseen", "dev"):
        write_lines(folder / "hypotheses" / f"{name}.jsonl", lines)
    plain = to_plain(compose_config("train", TrainConfig, list(overrides)))
    (folder / "config.yaml").write_text(yaml.safe_dump(plain))
    result = {"split": "unseen", "unit": "word", "normalizer": normalizer, "decode": plain["decode"]}
    results = {"test": {"unseen": result}, "dev": {"dev": {**result, "split": "dev"}}}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Four seeds without and with experts, which make a quarter of the errors."""
    methods = {"dense": (0.3, "none"), "moe": (0.075, "both")}
    return [
        finished(tmp_path / f"{name}-{seed}", hypotheses(seed, wrong), f"seed={seed}", f"moe.placement={placement}")
        for name, (wrong, placement) in methods.items()
        for seed in (1, 2, 3, 4)
    ]


def test_runs_that_differ_in_the_seed_alone_are_a_method(cli: Cli, runs: list[Path], tmp_path: Path) -> None:
    code, out, err = cli("compare", *runs, *reversed(runs), f"out={tmp_path}/found.json", "power=20")
    assert (code, err) == (0, "")
    assert "question: these two methods; WER, normaliser none" in out
    assert "  A  moe.placement=none  (4 runs)\n  B  moe.placement=both  (4 runs)\n" in out
    found = json.loads((tmp_path / "found.json").read_text())
    (row,) = found["rows"]
    assert (row["set"], row["seeds"], row["speakers"], row["tokens"]) == ("unseen", [4, 4], 6, 480)
    assert row["relative"] == pytest.approx(-0.75, abs=0.1)
    assert row["relative_ci95"][0] < row["relative"] < row["relative_ci95"][1] < 0
    assert row["difference_ci95"][1] == pytest.approx(row["relative_ci95"][1] * row["rate_a"])
    assert (row["verdict"], row["p_holm"]) == ("B better", row["p"])
    assert "over paired seeds x speakers" in row["method"]
    assert "to see 20 % with a power of 80 %, each speaker saying 10 utterances, 80 tokens" in out
    code, out, _ = cli("compare", *runs[:4], *runs[5:], "format=json")
    assert "over unpaired seeds x speakers" in json.loads(out)["rows"][0]["method"]


def test_a_dev_set_that_is_the_test_set_is_compared(cli: Cli, runs: list[Path]) -> None:
    for run in runs:
        results = json.loads((run / "results.json").read_text())
        (run / "results.json").write_text(json.dumps(results | {"test": results["dev"]}))
    _, out, _ = cli("compare", *runs, "format=json")
    assert [row["set"] for row in json.loads(out)["rows"]] == ["dev"]


def test_domains_of_a_suite_have_means(cli: Cli, runs: list[Path], tmp_path: Path) -> None:
    runs = [*runs[:2], *runs[4:6]]
    for number, run in enumerate(runs):
        results = json.loads((run / "results.json").read_text())
        one, wrong = results["test"].pop("unseen"), 0.3 if number < 2 else 0.15
        for name, scale in (("noise", 1.0), ("clean", 0.2)):
            for suffix in ("", "_c16"):
                write_lines(run / "hypotheses" / f"{name}{suffix}.jsonl", hypotheses(number % 2, wrong * scale))
                results["test"][name + suffix] = {**one, "split": name}
        (run / "results.json").write_text(json.dumps(results | {"domains": {}}))
    code, out, err = cli("compare", *runs, "power=20", f"out={tmp_path}/found.json")
    assert (code, err) == (0, "")
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    means = [f"{mean} of domains{suffix}" for suffix in ("", "_c16") for mean in ("mean", "geometric mean")]
    assert [row["set"] for row in rows] == ["noise", "noise_c16", "clean", "clean_c16", *means]
    noise, clean, plain, geometric = (rows[i] for i in (0, 2, 4, 5))
    assert (plain["domains"], plain["utterances"]) == (["noise", "clean"], noise["utterances"] + clean["utterances"])
    assert plain["rate_a"] == pytest.approx((noise["rate_a"] + clean["rate_a"]) / 2)
    assert geometric["rate_b"] == pytest.approx((noise["rate_b"] * clean["rate_b"]) ** 0.5)
    assert "paired seeds x speakers within domains" in plain["method"]
    assert all(f"\n{row['set']} " in out for row in rows)
    assert out.count("to see 20 %") == 4
    code, out, _ = cli("compare", runs[0], runs[2], "sets=[noise,clean]")
    assert "these 2 domains, these two checkpoints only" in out
    assert [line.partition("  ")[0] for line in out.splitlines()[5:9]] == ["noise", "clean", *means[:2]]


def test_one_seed_is_no_evidence_about_a_method(cli: Cli, runs: list[Path]) -> None:
    for words in ((*runs[:5],), (runs[0], runs[4], "question=methods")):
        code, _, err = cli("compare", *words)
        assert code == 2
        assert "has one seed, and one seed is no evidence about a method" in err
    code, out, _ = cli("compare", runs[0], runs[4])
    assert code == 0
    assert "question: these two checkpoints" in out
    assert "this is about these checkpoints, and is no claim about methods" in out
    assert "B better" in out
    code, out, _ = cli("compare", runs[0], runs[1])
    assert "they differ in nothing but the seed, so this is what training again does" in out
    code, out, _ = cli("compare", *runs[:3], runs[4], "question=checkpoints", "format=json")
    found = json.loads(out)
    assert [row["b"] for row in found["rows"]] == [*map(str, runs[1:3]), "moe.placement=both"]
    assert all(row["p_holm"] >= row["p"] for row in found["rows"])


def test_a_seed_counts_once(cli: Cli, runs: list[Path], tmp_path: Path) -> None:
    again = finished(tmp_path / "again", hypotheses(9, 0.1), "seed=2", "moe.placement=both", "name=again")
    code, _, err = cli("compare", *runs, again)
    assert code == 2
    assert f"has the seed 2 twice: {runs[5]} and {again}; leave one out" in err


def test_what_was_tested_on_something_else_is_refused(cli: Cli, runs: list[Path], tmp_path: Path) -> None:
    lines = hypotheses(1, 0.1)
    lines[3]["reference"] = "one"
    changed = finished(tmp_path / "changed", lines)
    code, _, err = cli("compare", runs[0], changed)
    assert code == 2
    assert f"u3 is '{' '.join(WORDS)}' in one, 'one' in the other; evaluate both on one corpus." in err
    fewer = finished(tmp_path / "fewer", hypotheses(1, 0.1)[:-1])
    code, _, err = cli("compare", runs[0], fewer)
    assert code == 2
    assert f"u59 is '{' '.join(WORDS)}' in one, nothing in the other" in err
    code, _, err = cli("compare", runs[0], runs[4], "sets=[seen]")
    assert (code, err) == (2, f"moe-asr: {runs[0]} has no results of the set seen; it has unseen, dev.\n")
    code, _, err = cli("compare", runs[0], tmp_path)
    assert (code, "has no results.json; finish the run" in err) == (2, True)
    (tmp_path / "results.json").write_text("{")
    code, _, err = cli("compare", runs[0], tmp_path)
    assert (code, err.startswith(f"moe-asr: {tmp_path}/results.json is damaged (")) == (2, True)
    assert cli("compare", runs[0])[0] == cli("compare")[0] == 2


def test_normalisers_that_differ_are_told(cli: Cli, runs: list[Path], tmp_path: Path) -> None:
    other = finished(tmp_path / "other", hypotheses(1, 0.1), normalizer={"name": "basic", "hash": "1"})
    code, out, _ = cli("compare", runs[0], other)
    assert code == 0
    assert f"note: the normalisers differ, none of {runs[0]} and basic of {other}; all are scored anew by none" in out


def test_files_of_other_toolkits(cli: Cli, tmp_path: Path) -> None:
    """Kaldi text and its utt2spk: as checkpoints one by one, as methods in lists, unpaired as seeds are not known."""
    files = []
    for seed in range(1, 5):
        lines = hypotheses(seed, 0.3 if seed < 3 else 0.1)
        files.append(tmp_path / f"hyp{seed}")
        files[-1].write_text("".join(f"{line['id']} {line['hypothesis']}\n" for line in lines))
    (tmp_path / "ref").write_text("".join(f"{line['id']} {line['reference']}\n" for line in lines))
    (tmp_path / "utt2spk").write_text("".join(f"{line['id']} {line['speaker']}\n" for line in lines))
    given = (f"reference={tmp_path}/ref", f"utt2spk={tmp_path}/utt2spk", "format=json")
    code, out, _ = cli("compare", files[0], files[2], *given)
    (row,) = json.loads(out)["rows"]
    assert (code, row["verdict"], row["speakers"]) == (0, "B better", 6)
    assert row["mapsswe_p"] < 0.001
    both = [f"{name}=[{','.join(map(str, half))}]" for name, half in (("a", files[:2]), ("b", files[2:]))]
    code, out, _ = cli("compare", *both, *given)
    (row,) = json.loads(out)["rows"]
    assert (code, row["seeds"]) == (0, [2, 2])
    assert "over unpaired seeds x speakers" in row["method"]
    code, out, _ = cli("compare", files[0], files[2], given[0])
    assert "B better on these recordings" in out
    assert "none: fewer than 5 known speakers" in out
    code, _, err = cli("compare", files[0], files[2])
    assert (code, err) == (2, f"moe-asr: {files[0]} does not say what was said; add reference=FILE.\n")


def test_power_and_simulation_need_no_run(cli: Cli) -> None:
    code, out, _ = cli("compare", "power=5")
    assert code == 0
    assert "a spread of 5 % between seeds and between speakers is assumed" in out
    assert "40 speakers, 2400 utterances" in out
    code, out, _ = cli("compare", "simulate=2")
    assert (code, out.splitlines()[-1].split()[0]) == (0, "lowest")
