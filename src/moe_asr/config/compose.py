"""From the command line to typed Python: YAML groups, overrides and schemas go in, a dataclass comes out.

After `compose_config` the program holds dataclasses only. Everything a user can misspell is refused here with one
sentence that names the closest right word.
"""

import dataclasses
import difflib
import enum
import operator
import re
import typing
from collections.abc import Iterator
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from moe_asr.errors import InputError

C = TypeVar("C")

KINDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false"}


def config_folder() -> Path:
    """The YAML files: inside an installed wheel, else beside `src` in a checkout."""
    package = Path(__file__).parents[1]
    return next(folder for folder in (package / "configs", package.parents[1] / "configs") if folder.is_dir())


def option_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a schema, nodes included: "optim", "optim.lr", ..."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        yield prefix + field.name
        if dataclasses.is_dataclass(hints[field.name]):
            yield from option_keys(typing.cast(type, hints[field.name]), f"{prefix}{field.name}.")


def groups() -> dict[str, list[str]]:
    """Config groups and their options, e.g. {"model": ["u2pp_tiny", ...]}."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(config_folder().iterdir())
        if folder.is_dir()
    }


def closest(word: str, candidates: list[str]) -> str:
    """``"; did you mean X?"`` or a full stop; a key is found by its last part too (``placment``: moe.placement)."""
    near = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    if not near:
        by_leaf = {key.rpartition(".")[2]: key for key in candidates}
        near = [by_leaf[leaf] for leaf in difflib.get_close_matches(word.rpartition(".")[2], list(by_leaf), 1, 0.7)]
    return f"; did you mean {near[0]}?" if near else "."


def groups_of(schema: type) -> dict[str, list[str]]:
    """The config groups that a command composes: the nodes of its schema, and where one trains, experiments too."""
    nodes = {key for key, hint in typing.get_type_hints(schema).items() if dataclasses.is_dataclass(hint)}
    known = groups()
    return {name: known[name] for name in known if name in nodes or (name == "experiment" and "trainer" in nodes)}


def spelt(value: str) -> str:
    """The value as Hydra can read it: texts with letters that its grammar lacks, such as ü, 北, ~ or =, in quotes."""
    ends = r"\[\]{},:" if "{" in value else r"\[\],"  # of a text in a list or dictionary
    lacking = r"[^\x00-\x7f]|[#~&;!^<>`=]"

    def quoted(text: re.Match[str]) -> str:
        return f"'{text[0].strip()}'" if text[0][0] not in "'\"" and re.search(lacking, text[0]) else text[0]

    return re.sub(rf"""'[^']*'|"[^"]*"|[^{ends}'"]+""", quoted, value)


def checked(override: str, schema: type) -> str:
    """The override as Hydra wants it; refuses one whose key or group option does not exist."""
    key, equals, value = override.lstrip("+~").partition("=")
    if not equals and not override.startswith("~"):
        raise InputError(f"'{override}' is not of the form key=value.")
    key = key.partition("@")[0]
    known, keys = groups_of(schema), list(option_keys(schema))
    if key in known:
        for option in value.split(","):
            if option not in known[key] and option not in ("null", ""):
                raise InputError(
                    f"{key}={option} does not exist{closest(option, known[key])} There are: {', '.join(known[key])}."
                )
        return override
    free_form = any(f"{key}.".startswith(f"{k}.") for k in keys if typing.get_origin(_hint(schema, k)) is dict)
    if key not in keys and not free_form and not key.startswith("hydra"):
        raise InputError(f"There is no option {key}{closest(key, [*keys, *known])}")
    override = override.partition("=")[0] + equals + spelt(value)
    return f"++{override.lstrip('+')}" if free_form and equals else override  # only ++ adds keys to a dictionary


def _hint(schema: type, key: str) -> Any:
    return reduce(lambda kind, part: typing.get_type_hints(kind)[part], key.split("."), typing.cast(Any, schema))


def to_typed(schema: type[C], values: DictConfig | dict[str, Any]) -> C:
    """Checks plain values against a dataclass and builds it (with its `__post_init__` checks)."""
    try:
        return typing.cast(C, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values)))
    except OmegaConfBaseException as error:
        raise InputError(explain(error, schema)) from error


def to_plain(config: Any) -> dict[str, Any]:
    """A typed config as plain dicts, lists, numbers and strings (enums by name): for YAML, checkpoints and hashing."""
    return typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True))


def explain(error: Exception, schema: type) -> str:
    """One sentence for what OmegaConf or Hydra found wrong."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    keys = list(option_keys(schema))
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key or str(cause).rpartition(' ')[2]} is missing; see --help."
    key = str(getattr(cause, "full_key", None) or getattr(error, "full_key", None) or "").partition("[")[0]
    text = (str(getattr(cause, "msg", None) or cause)).strip().splitlines()[0]
    if ("not in" in text and "Key" in text) or (key and key not in keys):
        return f"There is no option {key}{closest(key, keys)}"
    if override := getattr(cause, "override", None):  # its grammar
        quoted = f"{override.partition('=')[0]}='...'"
        return f'{override} cannot be read: close its brackets, or write it in quotes within quotes, "{quoted}".'
    if text.startswith("Ambiguous value"):
        grid = text.partition("'")[2].replace("'", "")
        key, _, values = grid.partition("=")
        other = f"{key}=[{values}] for a list or \"{key}='{values}'\" for a text"
        return f"{grid} is a grid: add -m to run all of it, or write {other}."
    if "ListConfig, list or tuple" in text:
        return f"{key} is a list: write {key}=[...]."
    if key in keys:
        hint = _hint(schema, key)
        hint = next(iter(typing.get_args(hint)), hint)  # of a list, its elements
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            names, given = [m.name for m in hint], text.partition("'")[2].partition("'")[0]
            return f"{key}={given} is not known{closest(given, names)} It is one of {', '.join(names)}."
        if (kind := KINDS.get(hint)) and text.count("'") >= 2:
            return f"{key}={'null' if 'not Optional' in text else text.split(chr(39))[1]} is not {kind}."
    return f"{key}: {text}" if key else text


def compose_config(command: str, schema: type[C], overrides: list[str], values: dict[str, Any] | None = None) -> C:
    """Composes `configs/<command>.yaml` with the overrides, then `values`, and returns it as a typed `schema`.

    Raises InputError for an unknown option, group choice or value, a grid without ``-m``, and contradictory options.
    """
    # What Hydra would take for a group of another command is a plain value here, e.g. the path `data` of evaluate.
    foreign = (groups().keys() - groups_of(schema)) & set(option_keys(schema))
    own = [override for override in overrides if override.partition("=")[0] in foreign]
    composed = _compose(command, schema, [checked(override, schema) for override in overrides if override not in own])
    said = {override.lstrip("+").partition("=")[0] for override in overrides}
    if axes := {key: value for key, value in (composed.hydra.sweeper.params or {}).items() if key not in said}:
        grid = " ".join(f"{key}={value}" for key, value in axes.items())
        raise InputError(f"This is a grid ({grid}): add -m to run all of it, or say which point of it.")
    plain = typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.from_dotlist(own)))
    return to_typed(schema, {**without_hydra(composed), **plain, **(values or {})})


def _compose(command: str, schema: type, overrides: list[str]) -> DictConfig:
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException

    ConfigStore.instance().store(name=f"{command}_schema", node=schema)
    try:
        with initialize_config_dir(str(config_folder().resolve()), version_base="1.3"):
            return compose(command, overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(explain(error, schema)) from error


def defaults(command: str, schema: type) -> tuple[dict[str, Any], dict[str, str]]:
    """The value of every option, by its dotted key, and the choice of every group, when nothing is said."""
    composed = _compose(command, schema, [])
    chosen = {group: str(option) for group, option in composed.hydra.runtime.choices.items() if option is not None}
    plain = without_hydra(composed)
    return {key: reduce(operator.getitem, key.split("."), plain) for key in option_keys(schema)}, chosen


def without_hydra(composed: DictConfig) -> dict[str, Any]:
    OmegaConf.set_struct(composed, False)
    composed.pop("hydra", None)
    try:
        return typing.cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True, enum_to_str=True))
    except OmegaConfBaseException as error:
        raise InputError(str(error).splitlines()[0]) from error


def multirun(command: str, schema: type, overrides: list[str], task: typing.Callable[[DictConfig], None]) -> None:
    """Gives a grid (``a=1,2 b=x,y``, or an experiment's own) to the command's sweeper.

    Hydra's launchers then call `task` with the configuration of each job, perhaps in another process.
    """
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    ConfigStore.instance().store(name=f"{command}_schema", node=schema)
    try:
        with initialize_config_dir(str(config_folder().resolve()), version_base="1.3"):
            hydra = typing.cast(Any, GlobalHydra.instance().hydra)
        hydra.multirun(command, task, [checked(override, schema) for override in overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(explain(error, schema)) from error


def option_help(schema: type, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, default, explanation) of every option, the explanation being the string below the field in its source."""
    import ast
    import inspect
    import textwrap

    classes = [base for base in reversed(schema.__mro__) if dataclasses.is_dataclass(base)]
    trees = [ast.parse(textwrap.dedent(inspect.getsource(base))).body[0] for base in classes]
    docs = {
        first.target.id: second.value.value
        for tree in trees
        for first, second in pairwise(typing.cast(ast.ClassDef, tree).body)
        if isinstance(first, ast.AnnAssign)
        and isinstance(first.target, ast.Name)
        and isinstance(second, ast.Expr)
        and isinstance(second.value, ast.Constant)
    }
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        hint = hints[field.name]
        factory = field.default_factory
        value = field.default if factory is dataclasses.MISSING else factory()
        if dataclasses.is_dataclass(hint):
            yield from option_help(typing.cast(type, hint), f"{prefix}{field.name}.")
            continue
        doc = " ".join(str(docs.get(field.name, "")).split())
        if isinstance(value, enum.Enum):
            doc = f"{doc} [{'|'.join(m.name for m in type(value))}]".strip()
            value = value.name
        yield prefix + field.name, "null" if value is None else str(value), doc
