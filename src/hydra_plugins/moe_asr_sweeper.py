"""Hydra's grids as a ledger: every point is checked before the first is trained, and none is trained twice."""

import shutil
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

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
        from moe_asr.runs.sweep import Job
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
        if launcher.name == "submitit_slurm" and shutil.which("srun") is None:
            raise InputError("launcher=submitit_slurm finds no srun here: give the command on a machine of a cluster.")
        with open_dict(self.config):
            self.config.hydra.sweep.dir = str(sweep.path)
            try:
                node = ConfigStore.instance().load(f"hydra/launcher/{launcher.name}.yaml").node
            except ConfigLoadError as error:
                raise InputError(
                    f"launcher={launcher.name} is a plugin that is not installed: pip install 'moe-asr[launchers]'."
                ) from error
            self.config.hydra.launcher = OmegaConf.merge(node, PARALLEL[launcher.name](launcher.jobs), launcher.options)
        engine = Plugins.instance().instantiate_launcher(
            hydra_context=self.hydra_context, task_function=self.task_function, config=self.config
        )
        environment = environment_of(launcher).items()
        shared = [f"++hydra.job.env_set.{name}={quoted(value)}" for name, value in environment]
        shared.append(f"hydra.sweep.dir={quoted(str(sweep.path))}")
        launched = 0

        def launch(jobs: list[Job]) -> None:
            nonlocal launched
            named = [[*job.overrides, *shared, f"hydra.job.name={quoted(job.run.path.name)}"] for job in jobs]
            for ended in engine.launch(named, initial_job_idx=launched):
                _ = ended.return_value  # raises what the task raised
            launched += len(jobs)

        finish(sweep, launch, launcher)


PARALLEL: dict[str, Any] = {
    "basic": lambda jobs: {},
    "joblib": lambda jobs: {"n_jobs": jobs},
    "submitit_local": lambda jobs: {},  # it starts all at once that it is given
    "submitit_slurm": lambda jobs: {"array_parallelism": jobs},
}
"""How each launcher is told how many jobs may run at once."""


def quoted(text: str) -> str:
    """A string in Hydra's grammar, whatever is in it."""
    return "'" + text.replace("'", "\\'") + "'"
