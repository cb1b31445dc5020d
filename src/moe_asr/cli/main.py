"""The console script `moe-asr`: one grammar for every command, nothing heavy imported before it is needed."""

import errno
import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from moe_asr.errors import InputError, JobError


@dataclass(frozen=True)
class Command:
    usage: str
    does: str
    positionals: tuple[str, ...] = ()
    """Option that each plain word fills; a last one ending in ``...`` takes all the rest."""
    sweeps: bool = False


COMMANDS = {
    "prepare": Command(
        "CORPUS [SOURCE]",
        "a corpus on disk, or the synthetic one -> manifests (hours=2 = synthetic.hours=2)",
        ("corpus", "source"),
    ),
    "train": Command("", "train a model; -m runs a grid", sweeps=True),
    "evaluate": Command("RUN", "error rates with intervals, RTF and hypotheses of a trained model", ("run",)),
    "tune": Command("RUN", "the weights of a decode mode, chosen on dev and kept in the run", ("run",)),
    "transcribe": Command("RUN AUDIO...", "text of audio files", ("run", "audio...")),
    "benchmark": Command("rtf|profile|layer|decode|data", "speed of models, their parts, searches, data", ("kind",)),
    "align": Command("RUN AUDIO...", "when the words of a known text are said, as CTM or JSONL", ("run", "audio...")),
    "trace": Command("RUN", "which experts the routers choose for every frame of a corpus, as arrays", ("run",)),
    "explore": Command("RUN AUDIO", "audio, words and experts frame by frame, as a page", ("run", "audio")),
    "inspect": Command("[RUN]", "a run's model, or that of a configuration, as a table, without training it", ("run",)),
    "prune": Command("RUN OUT", "a run's num_experts=N most used experts; the rest dropped or merged", ("run", "out")),
    "import-checkpoint": Command(
        "wenet DIR OUT", "another project's trained model -> a run directory", ("source", "dir", "out")
    ),
    "report": Command("PATH...", "a sweep, or runs, as one page; also CSV and JSON", ("paths...",)),
    "compare": Command("A B...", "what a change was worth: methods over seeds, or two checkpoints", ("systems...",)),
    "score": Command("HYP REF", "error rates of any Kaldi text, CTM or JSONL pair", ("hypothesis", "reference")),
}


def usage() -> str:
    width = max(len(f"{name} {c.usage}") for name, c in COMMANDS.items())
    lines = [f"  {f'{name} {command.usage}':<{width}}  {command.does}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "moe-asr COMMAND [PATH...] [key=value...] [-m] [--help] [--debug]",
            "",
            *lines,
            "",
            "moe-asr COMMAND --help lists its options. Exit codes: 0 done, 1 a job failed, 2 wrong input, 130 Ctrl-C.",
        ]
    )


def command_help(name: str, schema: type) -> str:
    from moe_asr.config.compose import defaults, groups, groups_of, option_help

    command, (values, chosen) = COMMANDS[name], defaults(name, schema)
    own = {group: options for group, options in groups().items() if group in groups_of(schema)}
    lines = [f"moe-asr {name} {command.usage} [key=value...]", "", command.does, ""]
    if own:
        lines.append("Groups, each a set of values (* = chosen unless you say otherwise):")
        for group, options in own.items():
            marked = [option + "*" * (option == chosen.get(group)) for option in options]
            lines.append(f"  {group}={'|'.join(marked)}")
        lines.append("")
    lines.append("Options, with the values they have unless you say otherwise:")
    for key, _, doc in option_help(schema):
        value = "null" if values[key] is None else str(values[key]).replace("???", "")
        lines.append(f"  {f'{key}={value}':<46} {doc}".rstrip())
    return "\n".join(lines)


def is_path(word: str) -> bool:
    """Whether a word is a plain one: it has no "=", or names a file that has."""
    return "=" not in word or Path(word).exists()


def split_words(name: str, words: list[str]) -> tuple[list[str], dict[str, object]]:
    """Separates key=value words from plain ones, which fill the command's positional options in order."""
    plain = [word for word in words if is_path(word)]
    overrides = [word for word in words if not is_path(word)]
    values: dict[str, object] = {}
    for option in COMMANDS[name].positionals:
        if option.endswith("..."):
            if plain:
                values[option[:-3]] = plain
            plain = []
        elif plain:
            values[option] = plain.pop(0)
    if plain:
        raise InputError(f"'{plain[0]}' is one word too many; write: {form(name)}.")
    return overrides, values


def form(name: str) -> str:
    return " ".join(["moe-asr", name, *COMMANDS[name].usage.split(), "[key=value...]"])


def dispatch(words: list[str]) -> int:
    flags = [word for word in words if word.startswith("-") and word != "-" and not Path(word).exists()]
    words = [word for word in words if word not in flags]
    for flag in flags:
        if flag not in ("-m", "--multirun", "--help", "-h", "--debug"):
            raise InputError(f"There is no flag {flag}; options are written key=value (see moe-asr --help).")
    wants_help = bool({"--help", "-h"} & set(flags))
    if not words:
        print(usage())
        return 0 if wants_help else 2
    name, *rest = words
    if name not in COMMANDS:
        from moe_asr.config.compose import closest

        raise InputError(f"There is no command {name}{closest(name, list(COMMANDS))} See moe-asr --help.")
    command = importlib.import_module(f"moe_asr.cli.{name.replace('-', '_')}")
    if wants_help:
        print(command_help(name, command.CONFIG))
        return 0
    overrides, positionals = split_words(name, rest)
    for option in COMMANDS[name].positionals:
        said = option in positionals or any(override.startswith(f"{option}=") for override in overrides)
        if getattr(command.CONFIG, option, None) == "???" and not said:  # it has no default
            raise InputError(f"{option} is missing; write: {form(name)}.")
    if hasattr(command, "complete"):
        overrides = command.complete(overrides, positionals)
    multirun = bool({"-m", "--multirun"} & set(flags))
    if multirun and not COMMANDS[name].sweeps:
        raise InputError(f"moe-asr {name} runs one job at a time: leave out -m.")
    from moe_asr.config.compose import compose_config

    if multirun:
        command.sweep(overrides)
    else:
        command.run(compose_config(name, command.CONFIG, overrides, positionals))
    return 0


def main() -> None:
    words = sys.argv[1:]
    try:
        sys.exit(dispatch(words))
    except InputError as error:
        if "--debug" in words:
            raise
        print(f"moe-asr: {error}", file=sys.stderr)
        sys.exit(2)
    except JobError as error:
        if "--debug" in words:
            raise
        print(f"moe-asr: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if "--debug" in words or (error.filename is None and not full):
            raise
        if full:
            print(f"moe-asr: {error.strerror}: make room, and give the same command again.", file=sys.stderr)
            sys.exit(1)
        print(f"moe-asr: {error.filename} cannot be used ({error.strerror}); give another place.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        goes_on = (
            "; the same command goes on from the last recovery checkpoint, if there is one" if "train" in words else ""
        )
        print(f"moe-asr: interrupted{goes_on}.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
