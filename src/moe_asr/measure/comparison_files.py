"""From runs and files of hypotheses to the table of `moe-asr compare`; nothing is decoded anew."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy
from omegaconf import OmegaConf

from moe_asr.config.compare import CompareConfig, Question
from moe_asr.config.compose import to_plain, to_typed
from moe_asr.config.program import TrainConfig
from moe_asr.config.score import Unit
from moe_asr.errors import InputError
from moe_asr.measure.comparison import Array, Comparison, compare_checkpoints, compare_methods, holm, mapsswe
from moe_asr.measure.comparison_suite import Mean, compare_suites
from moe_asr.measure.domains import decoding_suffix
from moe_asr.measure.errors import edit_counts, paired_ids
from moe_asr.measure.normalize import normalizer
from moe_asr.measure.score_files import read_speakers, read_transcripts
from moe_asr.runs.directory import NOT_PART_OF_THE_RUN, Status
from moe_asr.runs.sweep import FILE, read_sweep

LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class System:
    """A run, an evaluation of one, or a file of hypotheses."""

    path: str
    sets: Mapping[str, Path]
    """Hypotheses by the name of their set."""
    dev: tuple[str, ...] = ()
    """Sets that are compared only if asked for."""
    seed: int | None = None
    settings: tuple[tuple[str, str], ...] = ()
    """Every other option, and how it was decoded."""
    normalizer: Mapping[str, str] | None = None
    unit: Unit = Unit.word
    suites: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The sets that are domains of one suite, by how their names tell the way of decoding ("", "_c16")."""


@dataclass(frozen=True)
class Group:
    name: str
    systems: tuple[System, ...]

    @property
    def seeds(self) -> list[int | None]:
        return [system.seed for system in self.systems]


def read_systems(words: Sequence[str]) -> list[System]:
    """Every run once, in order; a sweep stands for those of its runs that are done. InputError without results."""
    paths: dict[Path, str] = {}
    for word in words:
        if (Path(word) / FILE).is_file():
            jobs = read_sweep(word).jobs
            paths |= {job.run.path.resolve(): str(job.run.path) for job in jobs if job.status is Status.done}
        else:
            paths.setdefault(Path(word).resolve(), word)
    return [_read_system(path, word) for path, word in paths.items()]


def _read_system(folder: Path, word: str) -> System:
    if folder.is_file():
        return System(word, {"": folder})
    file = folder / "results.json"
    if not file.is_file():
        raise InputError(f"{word} has no results.json; finish the run, or give a folder of evaluate or hypotheses.")
    try:
        results = json.loads(file.read_text("utf8"))
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}); evaluate it again.") from None
    found = {part: results.get(part) or {} for part in ("test", "dev")}
    files = {
        name: folder / "hypotheses" / f"{_stem(name, result)}.jsonl"
        for part in found.values()
        for name, result in part.items()
    }
    if not files:
        raise InputError(f"{word} has no results of any set; evaluate it first.")
    one = next(result for part in found.values() for result in part.values())
    near = (folder / "config.yaml", folder.parents[1] / "config.yaml")  # of the run; of an evaluation inside one
    trained = results.get("trained") or next((OmegaConf.load(f) for f in near if f.is_file()), None)
    settings = _settings(trained) if trained else {}
    seed = settings.pop("seed", None)
    settings |= {key: results[key] for key in ("precision", "experts", "routing", "tuned") if results.get(key)}
    settings |= {f"decode.{key}": value for key, value in one["decode"].items()}
    kept = tuple(sorted((key, str(value)) for key, value in settings.items()))
    ways: dict[str, list[str]] = {}
    for name, result in found["test"].items() if "domains" in results else ():
        ways.setdefault(decoding_suffix(name, result), []).append(name)
    dev = tuple(name for name in found["dev"] if name not in found["test"])  # a set may be both
    return System(word, files, dev, seed, kept, one["normalizer"], Unit(one["unit"]), ways)


def _stem(name: str, result: Mapping[str, Any]) -> str:
    return str(result["split"]).replace("/", "-") + decoding_suffix(name, result) if "split" in result else name


def _settings(written: Any) -> dict[str, Any]:
    """The options of a run that make it what it is, flat; those that did not exist yet have their defaults."""
    try:
        plain = to_plain(to_typed(TrainConfig, written))
    except InputError:  # of another version: as it is
        plain = dict(OmegaConf.to_container(OmegaConf.create(written)))  # type: ignore[arg-type]
    return dict(_flat({key: value for key, value in plain.items() if key not in (*NOT_PART_OF_THE_RUN, "decode")}))


def _flat(node: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    return [
        leaf
        for key, value in node.items()
        for leaf in (_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)])
    ]


def grouped(systems: Sequence[System]) -> list[Group]:
    """Runs that differ in nothing but the seed, named by the options in which the groups differ; files one by one."""
    found: dict[object, list[System]] = {}
    for system in systems:
        found.setdefault(system.settings or system.path, []).append(system)
    settings = [dict(members[0].settings) for members in found.values()]
    keys = sorted({key for one in settings for key in one if len({other.get(key) for other in settings}) > 1})
    groups = []
    for members, one in zip(found.values(), settings, strict=True):
        name = " ".join(f"{key}={one[key]}" for key in keys if key in one) or members[0].path
        groups.append(Group(name, tuple(members)))
    return groups


def matched(groups: Sequence[Group], question: Question | None) -> tuple[Question, list[tuple[Group, Group]]]:
    """What is compared with what. Raises InputError where a claim about methods rests on one seed."""
    groups = list(groups)
    single = [group for group in groups if len(group.systems) == 1]
    if question is None:
        question = Question.checkpoints if len(groups) == 1 or len(single) == len(groups) else Question.methods
    if question is Question.checkpoints:
        groups = [
            Group(group.name if len(group.systems) == 1 else system.path, (system,))
            for group in groups
            for system in group.systems
        ]
    if len(groups) < 2:
        raise InputError("There is nothing to compare with; give at least two runs that differ in more than the seed.")
    if question is Question.methods:
        for group in groups:
            if len(group.systems) == 1:
                raise InputError(
                    f"{group.name} has one seed, and one seed is no evidence about a method: other seeds differ as "
                    "much as methods do. Give at least 2 of each, better 8, or write question=checkpoints."
                )
            if twice := [seed for seed, times in Counter(group.seeds).items() if times > 1 and seed is not None]:
                paths = " and ".join(system.path for system in group.systems if system.seed == twice[0])
                raise InputError(f"{group.name} has the seed {twice[0]} twice: {paths}; leave one out.")
    return question, [(groups[0], other) for other in groups[1:]]


def compare(config: CompareConfig) -> dict[str, Any]:
    """The table as plain values: question, warnings, groups, and a row for every pair and set.

    Raises InputError where utterances or references of a set differ, or for a claim about methods on one seed.
    """
    if config.a:
        groups = [Group("a", tuple(read_systems(config.a))), Group("b", tuple(read_systems(config.b)))]
    else:
        groups = grouped(read_systems(config.systems))
    question, pairs = matched(groups, config.question)
    systems = list(dict.fromkeys(system for pair in pairs for group in pair for system in group.systems))
    scoring, warnings = _scoring(systems, config)
    if question is Question.checkpoints:
        warnings.append("one run of each: this is about these checkpoints, and is no claim about methods")
        if systems[0].settings and len({system.settings for system in systems}) == 1:
            warnings.append("they differ in nothing but the seed, so this is what training again does")
    names, rows = _sets(systems, config.sets), []
    faced: dict[tuple[str, int], Faced] = {}
    for name in names:
        tested = {system: _tested(system.sets[name], scoring) for system in systems}
        for i, pair in enumerate(pairs):
            faced[name, i] = _faced(pair, tested)
            rows.append(_compared(question, pair, name, faced[name, i], scoring))
    for suffix, domains in _suites(systems, names).items():
        for mean in Mean:
            for i, pair in enumerate(pairs):
                of = {name: faced[name, i] for name in domains}
                rows.append(_compared_suite(question, pair, f"{mean} of domains{suffix}", of, mean))
    for key, target in (("p", "p_holm"), ("mapsswe_p", "mapsswe_p_holm")):
        for row, p in zip(rows, holm([row.get(key) for row in rows]), strict=True):
            row[target] = p
    for row in rows:
        row["verdict"] = _verdict(row)
    members = {group.name: [system.path for system in group.systems] for pair in pairs for group in pair}
    return {"question": question.value, "groups": members, "warnings": warnings, **asdict(scoring), "rows": rows}


@dataclass(frozen=True)
class Scoring:
    unit: Unit
    normalizer: str
    reference: str | None
    utt2spk: str | None


def _scoring(systems: Sequence[System], config: CompareConfig) -> tuple[Scoring, list[str]]:
    first, warnings = systems[0], []
    name = config.normalizer or (first.normalizer or {}).get("name", "none")
    normalizer(name)
    for other in systems:
        if other.normalizer and first.normalizer and other.normalizer != first.normalizer:
            of = f"{first.normalizer['name']} of {first.path} and {other.normalizer['name']} of {other.path}"
            warnings.append(f"the normalisers differ, {of}; all are scored anew by {name}")
            break
    if odd := next((s for s in systems if s.unit is not first.unit), None):
        unit = config.unit or first.unit
        warnings.append(f"{first.path} counts {first.unit}s and {odd.path} {odd.unit}s; all are scored by {unit}s")
    return Scoring(config.unit or first.unit, name, config.reference, config.utt2spk), warnings


def _sets(systems: Sequence[System], asked: Sequence[str] | None) -> list[str]:
    first = systems[0]
    names = list(asked or [name for name in first.sets if name not in first.dev])
    for system in systems:
        for name in [name for name in names if name not in system.sets]:
            if asked or not set(names) & set(system.sets):
                there = ", ".join(system.sets) or "none"
                raise InputError(f"{system.path} has no results of the set {name or first.path}; it has {there}.")
            names.remove(name)
    return names


@dataclass(frozen=True)
class Tested:
    """A system on a set, by utterance; texts are raw."""

    path: Path
    references: Mapping[str, str]
    hypotheses: Mapping[str, str]
    speakers: Mapping[str, str]
    counts: Mapping[str, tuple[int, int]]
    """Errors and reference tokens."""


def _tested(path: Path, scoring: Scoring) -> Tested:
    hypotheses = read_transcripts(path, "hypothesis")
    with path.open(encoding="utf8") as file:
        if not scoring.reference and '"reference"' not in file.readline():
            raise InputError(f"{path} does not say what was said; add reference=FILE.")
    said = read_transcripts(scoring.reference or path, "reference")
    ids, normal = paired_ids(said.texts, hypotheses.texts), normalizer(scoring.normalizer)
    right, found = ([normal(transcripts.texts[i]) for i in ids] for transcripts in (said, hypotheses))
    counts = {i: (c.errors, c.tokens) for i, c in zip(ids, edit_counts(right, found, scoring.unit), strict=True)}
    speakers = read_speakers(scoring.utt2spk) if scoring.utt2spk else said.speakers or hypotheses.speakers
    return Tested(path, said.texts, hypotheses.texts, speakers, counts)


@dataclass(frozen=True, eq=False)
class Faced:
    """Two groups on a set: by run (in the order of their seeds) and utterance."""

    sides: tuple[Sequence[Tested], Sequence[Tested]]
    ids: Sequence[str]
    speakers: Sequence[str] | None
    tokens: Array
    errors: tuple[Array, Array]
    paired: bool


def _faced(pair: tuple[Group, Group], tested: Mapping[System, Tested]) -> Faced:
    """Raises InputError where they were not tested on the same utterances."""
    sides = tuple([tested[system] for system in group.systems] for group in pair)
    base = sides[0][0]
    said, known, ids = base.references, base.speakers, list(base.references)
    for other in sides[0] + sides[1]:
        if different := next((i for i in (*said, *other.references) if said.get(i) != other.references.get(i)), None):
            one, two = (
                f"'{texts[different]}'" if different in texts else "nothing" for texts in (said, other.references)
            )
            raise InputError(
                f"{base.path} and {other.path} were not tested on the same: {different} is {one} in one, {two} in "
                "the other; evaluate both on one corpus."
            )
    if missing := next((i for i in ids if known and i not in known), None):
        raise InputError(f"The speaker of {missing} is not known; name the speaker of all utterances or of none.")
    seeds = [[-1 if seed is None else seed for seed in group.seeds] for group in pair]
    a, b = (
        numpy.array([[side[run].counts[i][0] for i in ids] for run in numpy.argsort(order, kind="stable")])
        for side, order in zip(sides, seeds, strict=True)
    )
    tokens = numpy.array([base.counts[i][1] for i in ids])
    paired = sorted(seeds[0]) == sorted(seeds[1]) and min(seeds[0]) >= 0
    return Faced((sides[0], sides[1]), ids, [known[i] for i in ids] if known else None, tokens, (a, b), paired)


def _row(pair: tuple[Group, Group], name: str, faced: Sequence[Faced]) -> dict[str, Any]:
    utterances, tokens = sum(len(one.ids) for one in faced), sum(int(one.tokens.sum()) for one in faced)
    return {"set": name, "a": pair[0].name, "b": pair[1].name, "utterances": utterances, "tokens": tokens}


def _compared(
    question: Question, pair: tuple[Group, Group], name: str, faced: Faced, scoring: Scoring
) -> dict[str, Any]:
    row = _row(pair, name, [faced])
    if question is Question.methods:
        return row | _plain(compare_methods(*faced.errors, faced.tokens, faced.speakers, faced.paired))
    normal, (a, b) = normalizer(scoring.normalizer), (side[0] for side in faced.sides)
    texts = [[normal(of[i]) for i in faced.ids] for of in (a.references, a.hypotheses, b.hypotheses)]
    segments = mapsswe(texts[0], texts[1], texts[2], scoring.unit)
    found = _plain(compare_checkpoints(faced.errors[0][0], faced.errors[1][0], faced.tokens, faced.speakers))
    return row | found | {f"mapsswe_{key}": value for key, value in asdict(segments).items()}


def _suites(systems: Sequence[System], names: Sequence[str]) -> dict[str, list[str]]:
    """Those sets, by way of decoding, of which a mean can be told: domains of one suite for all systems."""
    ways = {
        suffix: [name for name in domains if name in names and all(name in s.suites.get(suffix, ()) for s in systems)]
        for suffix, domains in systems[0].suites.items()
    }
    return {suffix: domains for suffix, domains in ways.items() if len(domains) > 1}


def _compared_suite(
    question: Question, pair: tuple[Group, Group], name: str, faced: Mapping[str, Faced], mean: Mean
) -> dict[str, Any]:
    several = list(faced.values())
    a, b = (numpy.concatenate([one.errors[side] for one in several], axis=1) for side in (0, 1))
    tokens = numpy.concatenate([one.tokens for one in several])
    speakers = [speaker for one in several for speaker in one.speakers or ()]
    domains = [name for name, one in faced.items() for _ in one.ids]
    paired = several[0].paired or question is Question.checkpoints
    known = speakers if len(speakers) == len(tokens) else None
    found = compare_suites(a, b, tokens, known, domains, mean, paired)
    return _row(pair, name, several) | {"domains": list(faced)} | _plain(found)


def _plain(found: Comparison) -> dict[str, Any]:
    intervals = {key: getattr(found, key) and list(getattr(found, key)) for key in ("relative_ci95", "difference_ci95")}
    return asdict(found) | intervals | {"difference": found.difference}


def _verdict(row: Mapping[str, Any]) -> str:
    """In words, after Holm's correction: of the test over speakers (and seeds), else of MAPSSWE."""
    p, where = row["p_holm"], ""
    if p is None and (p := row["mapsswe_p_holm"]) is not None:
        where = " on these recordings"
    if p is None:
        return "not tested"
    word = "better" if row["difference"] < 0 else "worse"
    return f"B {word}{where}" if p < LEVEL else f"unresolved{where}"
