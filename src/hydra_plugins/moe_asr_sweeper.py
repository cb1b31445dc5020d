"""Hydra's grids as a ledger: every point is checked before the first is trained, and none is trained twice."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from moe_asr.config.program import LauncherConfig
    from moe_asr.runs.sweep import Job, Sweep

    Launch = Callable[[list[Job]], None]

# Hydra imports this file whenever it composes anything: what costs time is imported where it is used.


@dataclass
class LedgerSweeperConf:
    _target_: str = "hydra_plugins.moe_asr_sweeper.LedgerSweeper"
    params: dict[str, str] | None = None
    """The axes of a grid and their values, such as {moe.placement: "none,both"}."""


ConfigStore.instance().store(group="hydra/sweeper", name="ledger", node=LedgerSweeperConf, provider="moe_asr")


class LedgerSweeper(BasicSweeper):
    """Every combination of values; `moe_asr.training.sweep` says what becomes of them."""

    def __init__(self, params: dict[str, str] | None = None) -> None:
        super().__init__(max_batch_size=None, params=params)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> None:
        from moe_asr.config.compose import to_typed
        from moe_asr.config.program import LauncherConfig
        from moe_asr.errors import InputError
        from moe_asr.training.forecast import forecast
        from moe_asr.training.sweep import OF_THE_SWEEP, environment_of, finish, plan

        assert self.config is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        said = parser.parse_overrides([*self._parse_config(), *arguments])
        own = [override for override in said if override.get_key_element().lstrip("+").startswith(OF_THE_SWEEP)]
        if swept := next((override for override in own if override.is_sweep_override()), None):
            raise InputError(f"{swept.input_line} is about the sweep as a whole: give one value.")
        (points,) = self.split_arguments([override for override in said if override not in own], None)
        launcher = to_typed(LauncherConfig, self.config.launcher)
        sweep, configs = plan(points, arguments, self.config.name, launcher)
        if self.config.dry_run:
            print(forecast(sweep.jobs, configs))
            return
        engine = self.submitit if launcher.name.startswith("submitit_") else self.hydra
        finish(sweep, engine(sweep, launcher, environment_of(launcher)), launcher)

    def submitit(self, sweep: "Sweep", launcher: "LauncherConfig", environment: dict[str, str]) -> "Launch":
        from moe_asr.errors import InputError

        try:
            from moe_asr.runs.cluster import submit
        except ModuleNotFoundError as error:
            raise absent(launcher.name) from error
        cluster, options = launcher.name.removeprefix("submitit_"), launcher.options
        if cluster == "slurm":
            options = {"array_parallelism": launcher.jobs, **options}
            if shutil.which("srun") is None:
                raise InputError(f"launcher={launcher.name} finds no srun here: give the command on a cluster.")
        return lambda jobs: submit(sweep, jobs, cluster, options, environment)

    def hydra(self, sweep: "Sweep", launcher: "LauncherConfig", environment: dict[str, str]) -> "Launch":
        assert self.config is not None
        assert self.hydra_context is not None
        with open_dict(self.config):
            self.config.hydra.sweep.dir = str(sweep.path)
            try:
                node = ConfigStore.instance().load(f"hydra/launcher/{launcher.name}.yaml").node
            except ConfigLoadError as error:
                raise absent(launcher.name) from error
            at_once = {"n_jobs": launcher.jobs} if launcher.name == "joblib" else {}
            self.config.hydra.launcher = OmegaConf.merge(node, at_once, launcher.options)
        engine = Plugins.instance().instantiate_launcher(
            hydra_context=self.hydra_context, task_function=self.task_function, config=self.config
        )
        shared = [f"++hydra.job.env_set.{name}={quoted(value)}" for name, value in environment.items()]
        shared.append(f"hydra.sweep.dir={quoted(str(sweep.path))}")
        launched = 0

        def launch(jobs: "list[Job]") -> None:
            nonlocal launched
            named = [[*job.overrides, *shared, f"hydra.job.name={quoted(job.run.path.name)}"] for job in jobs]
            for ended in engine.launch(named, initial_job_idx=launched):
                _ = ended.return_value  # raises what the task raised
            launched += len(jobs)

        return launch


def absent(launcher: str) -> Exception:
    from moe_asr.errors import InputError

    return InputError(f"launcher={launcher} is a plugin that is not installed: pip install 'moe-asr[launchers]'.")


def quoted(text: str) -> str:
    """A string in Hydra's grammar, whatever is in it."""
    return "'" + text.replace("'", "\\'") + "'"
