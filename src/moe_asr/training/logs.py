"""Where numbers go: metrics.csv always, W&B offline or online, and progress for the eye."""

import shutil
import sys
import time
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from moe_asr.config.program import LoggerConfig, LoggerMode
from moe_asr.errors import InputError
from moe_asr.measure.expert_use import Alarm, Loads, heat_map
from moe_asr.runs.directory import AppendLog, RunDirectory, read_metrics


class Log(Logger):
    """What training writes to; not every log has a place for everything."""

    def alert(self, alarm: Alarm) -> None:
        """Something has gone wrong that a person should look at."""

    def log_loads(self, loads: Loads, step: int) -> None:
        """The load of every expert, as a picture."""

    def catch_up(self, metrics: Path) -> None:
        """Tells what metrics.csv knew when the run was interrupted, where it is not known."""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Every log was given the configuration at its start, or lies beside it."""


class MetricsCsv(Log):
    """metrics.csv in long form (step, metric, value): any metric fits, and a resumed run cuts it back exactly."""

    def __init__(self, log: AppendLog) -> None:
        super().__init__()
        self.log = log

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.log.write_rows((step, name, repr(float(value))) for name, value in sorted(metrics.items()))


def wandb_run(mode: LoggerMode, option: str, **about: Any) -> Any:
    """A W&B run that prints nothing; option: what the user sets its mode by.

    Raises InputError where it shall be online and there is no account, or no way to it.
    """
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    if mode is LoggerMode.online and not wandb.api.api_key:
        raise InputError(f"{option}=online needs a W&B account: run `wandb login`, or write {option}=offline.")
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True)
    try:
        return wandb.init(mode=mode.value, settings=settings, **about)
    except wandb.Error as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"W&B cannot be used ({reason}): write {option}=offline, and `wandb sync` sends the run later."
        ) from error


class WandbRun(Log):
    """One W&B run per run directory, by whose hash it is known, so that a resumed run goes on in it.

    Offline, a resumed run is told anew: of a killed one W&B keeps a part, or an empty file at which `wandb sync` stops.
    """

    def __init__(self, config: LoggerConfig, run: RunDirectory, name: str | None, resolved: dict[str, Any]) -> None:
        super().__init__()
        self.anew = config.mode is LoggerMode.offline
        for part in (run.path / "wandb").glob("offline-run-*") if self.anew else ():
            shutil.rmtree(part)
        self.run = wandb_run(
            config.mode,
            "logger.mode",
            project=config.project,
            group=config.group,
            tags=config.tags,
            name=name or run.path.name,
            id=run.path.name,
            dir=run.path,
            config=resolved,
            resume="allow" if config.mode is LoggerMode.online else None,
        )

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return str(self.run.id)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.run.log(dict(metrics), step=step)

    def catch_up(self, metrics: Path) -> None:
        if self.anew:
            for step, rows in groupby(read_metrics(metrics), key=lambda row: row[0]):
                self.log_metrics({name: value for _, name, value in rows}, step)

    def alert(self, alarm: Alarm) -> None:
        self.run.alert(title="Mixture of Experts", text=str(alarm))

    def log_loads(self, loads: Loads, step: int) -> None:
        import wandb

        if loads:
            self.run.log({"routing/heat_map": wandb.Html(heat_map(loads), inject=False)}, step=step)

    def summarize(self, results: Mapping[str, Any]) -> None:
        """What the run found, as W&B's summary: ``test/<set>/wer``, ``test/<set>/rtf``, parameters, ..."""
        flat = {key: value for key, value in results.items() if isinstance(value, int | float)}
        for part in ("dev", "test"):
            for name, result in results[part].items():
                numbers = {key: value for key, value in result.items() if isinstance(value, int | float)}
                flat |= {f"{part}/{name}/{key}": value for key, value in numbers.items()}
        self.run.summary.update(flat)


class ProgressDisplay:
    """A bar on a terminal; elsewhere a line at steps 1, 2, 5, 10, 20, 50, ... and at every validation."""

    def __init__(self, total_steps: int, done: int, show: bool) -> None:
        self.total, self.started, self.first = total_steps, time.monotonic(), done
        self.show = show
        self.bar = self._bar(done) if show and sys.stderr.isatty() else None

    def _bar(self, done: int) -> tuple[Progress, Any]:
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        progress = Progress(*columns, transient=True)
        progress.start()
        return progress, progress.add_task("", total=self.total, completed=done)

    def step(self, step: int, loss: float | None) -> None:
        text = f"loss {loss:.3f}" if loss is not None else ""
        if self.bar is not None:
            self.bar[0].update(self.bar[1], completed=step, description=text)
        elif self.show and str(step).rstrip("0") in ("1", "2", "5"):
            self.line(f"step {step}/{self.total}  {text}  {self.remaining(step)}")

    def remaining(self, step: int) -> str:
        if step <= self.first:
            return ""
        seconds = (time.monotonic() - self.started) / (step - self.first) * (self.total - step)
        return f"about {seconds / 60:.1f} min left"

    def line(self, text: str) -> None:
        if self.bar is not None:
            self.bar[0].console.print(text, highlight=False)
        elif self.show:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar[0].stop()
