"""Corpora that lhotse can read from their original layout: one door for all of its recipes.

Scored with `normalizer=english`, rates on the English corpora are comparable: their transcripts stay as given.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from lhotse import CutSet, RecordingSet, SupervisionSet, recipes
from lhotse.cut import Cut
from lhotse.supervision import SupervisionSegment

from moe_asr.config.prepare import PrepareConfig
from moe_asr.data.manifest import Problem, load_samples
from moe_asr.data.prepare_audit import Audit
from moe_asr.errors import InputError

READ_ELSEWHERE = {
    "libriheavy": "its published manifests are lhotse cuts: write `prepare lhotse FOLDER name=cuts`",
    "wsj": "write `prepare kaldi DIR` of the data dir that Kaldi's recipe makes of it",
}
"""Corpora of the Omni-router study that lhotse has no recipe for."""
CUTS = "cuts"
"""The name for folders of lhotse's own manifests of cuts; a file `..._cuts_small.jsonl.gz` is the split `small`."""


def lhotse(config: PrepareConfig, audit: Audit, folder: Path) -> Mapping[str, Iterator[Cut]]:
    """A split for each part of the corpus, of one language where it has several; paths of audio become absolute.

    Raises InputError if there is no such recipe or option, or if the recipe does not find what it needs.
    """
    name, source = config.lhotse.name, Path(config.source).absolute()
    parts: dict[str, CutSet]
    if name == CUTS:
        files = sorted(source.rglob("*cuts*.jsonl.gz"))
        names = [file.name.removesuffix(".jsonl.gz").rpartition("cuts_")[2] for file in files]
        parts = {part: CutSet.from_file(file) for part, file in zip(names, files, strict=True)}
    else:
        manifests = _flat(_call(recipe_of(name), source, folder, config.lhotse.options))
        parts = {part: _cuts(part_of) for part, part_of in manifests.items()}
    if not parts:
        raise InputError(f"lhotse finds no part of {name} in {source}; check the place of the corpus.")
    return {part: _audited(cuts, source, audit) for part, cuts in parts.items()}


def recipe_of(name: str) -> Callable[..., Any]:
    """lhotse's own function. Raises InputError if there is none, saying how else the corpus is read where it can be."""
    found: Callable[..., Any] | None = getattr(recipes, f"prepare_{name}", None)
    if found is None:
        remedy = READ_ELSEWHERE.get(name, "see lhotse.recipes for their names, such as tedlium or ami")
        raise InputError(f"lhotse has no recipe named {name!r}: {remedy}.")
    return found


def _call(recipe: Callable[..., Any], source: Path, folder: Path, options: Mapping[str, Any]) -> Any:
    """The first argument of every recipe is the place of the corpus, whatever its name; some insist on writing."""
    parameters = inspect.signature(recipe).parameters
    place, *others = parameters
    if unknown := [key for key in options if key not in others]:
        raise InputError(f"{recipe.__name__} has no option {unknown[0]}; it has {', '.join(others)}.")
    known: dict[str, Any] = {"absolute_paths": True} if "absolute_paths" in others else {}
    if "output_dir" in others and parameters["output_dir"].default is inspect.Parameter.empty:
        known["output_dir"] = folder / "lhotse"
    try:
        return recipe(**{place: source, **known, **options})
    except Exception as error:  # recipes assert, and raise whatever their parsers do
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{recipe.__name__} cannot read {source}: {reason}.") from error


def _flat(manifests: Mapping[str, Any], prefix: str = "") -> dict[str, Mapping[str, Any]]:
    """Recipes give {part: manifests}, {language: {part: manifests}} or, where there is only one part, manifests."""
    if "recordings" in manifests:
        return {prefix.strip("-") or "train": manifests}
    return {k: v for name, inner in manifests.items() for k, v in _flat(inner, f"{prefix}-{name}").items()}


def _cuts(manifests: Mapping[str, Any]) -> CutSet:
    recordings: RecordingSet = manifests["recordings"]
    supervisions: SupervisionSet = manifests["supervisions"]
    whole = CutSet.from_manifests(recordings=recordings, supervisions=supervisions)
    return whole.trim_to_supervisions(keep_overlapping=False)


def _audited(cuts: CutSet, source: Path, audit: Audit) -> Iterator[Cut]:
    """The usable ones under the ids of their supervisions, read by several threads, a window of them at a time."""
    places: Iterator[Cut] = iter(cuts)
    seen: set[str] = set()
    with ThreadPoolExecutor(audit.workers) as pool:
        while window := [_placed(cut, source, audit.lower) for cut in islice(places, 256)]:
            for cut, wrong in zip(window, pool.map(lambda cut: _wrong(cut, audit.decode), window), strict=True):
                if wrong is None and cut.id in seen:
                    wrong = Problem(cut.id, "duplicate id", "there is another one in its split")
                if wrong is not None:
                    audit.problems.append(wrong)
                    continue
                seen.add(cut.id)
                yield cut


def _placed(cut: Cut, source: Path, lower: bool) -> Cut:
    def told(supervision: SupervisionSegment) -> SupervisionSegment:
        text = " ".join((supervision.text or "").split())
        supervision.text = text.lower() if lower else text
        return supervision

    cut = cut.with_id(cut.supervisions[0].id if cut.supervisions else cut.id).map_supervisions(told)
    return cut.with_recording_path_prefix(source)  # a path that is absolute stays as it is


def _wrong(cut: Cut, decode: bool) -> Problem | None:
    if not any(supervision.text for supervision in cut.supervisions):
        return Problem(cut.id, "empty text", "it has no transcript")
    for place in cut.recording.sources:
        if place.type == "file" and not Path(place.source).is_file():
            return Problem(cut.id, "missing audio", f"there is no file {place.source}")
    try:
        if decode:
            load_samples(cut)
    except InputError as error:
        return Problem(cut.id, "unreadable audio", str(error))
    return None
