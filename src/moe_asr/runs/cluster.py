"""The jobs of a sweep by submitit: as processes of this machine, or in the queue of a SLURM cluster.

What becomes of a job its run directory tells; here is only whether it is still running or to come.
"""

import getpass
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from submitit import AutoExecutor
from submitit.core.core import Job as Submitted
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import Checkpointable

from moe_asr.errors import InputError
from moe_asr.runs.directory import Status
from moe_asr.runs.sweep import Job, Sweep, supervise

POLL = 1.0
"""Seconds between two looks at what has ended."""
ASK = 10
"""Looks between two questions to the queue, which serves others too."""
SHARED = {"name", "timeout_min", "mem_gb", "nodes", "stderr_to_stdout"}
SHARED |= {"tasks_per_node", "cpus_per_task", "gpus_per_node"}
"""Options that submitit calls the same on every cluster."""


class Supervised(Checkpointable):
    """Trains a job; where the queue begins it again, after a time limit say, it goes on where it was."""

    def __call__(self, folder: str, name: str, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cancelled job has not failed
        supervise(folder, name)


def submit(
    sweep: Sweep, jobs: Sequence[Job], cluster: str, options: Mapping[str, Any], environment: Mapping[str, str]
) -> None:
    """Runs jobs, and returns when none of them is in the queue any more; an interruption takes them out of it.

    cluster: local or slurm. options: submitit's; those of one cluster go without its name. environment: variables of
    the jobs. Raises InputError for options that submitit or the cluster refuses.
    """
    named = {key if key in SHARED else f"{cluster}_{key}": value for key, value in options.items()}
    limit = {key: named.pop(key) for key in [f"{cluster}_max_num_timeout"] if key in named}
    names = [job.run.path.name for job in jobs]
    try:
        executor = AutoExecutor(sweep.path.absolute() / ".submitit" / "%j", cluster, **limit)
        executor.update_parameters(**{"name": sweep.path.name, **named})
        places = executor.map_array(Supervised(), [str(sweep.path)] * len(jobs), names, [dict(environment)] * len(jobs))
    except (AssertionError, NameError, TypeError, ValueError) as error:
        raise InputError(f"launcher.options cannot be used: {str(error).splitlines()[0]}") from error
    except (FailedJobError, FailedSubmissionError) as error:
        said = "; ".join(line.removeprefix("sbatch: error: ") for line in str(error).strip().splitlines())
        raise InputError(f"The cluster refuses the jobs ({said}): change launcher.options.") from error
    try:
        _wait(dict(zip(places, jobs, strict=True)), cluster)
    except BaseException:
        for place in places:
            place.cancel(check=False)
        raise


def _wait(left: dict[Submitted[None], Job], cluster: str) -> None:
    """Returns when all have ended, having told where to look for what became of those without a result or failure."""
    for look in range(sys.maxsize):
        queue = _queue() if cluster == "slurm" and look % ASK == 0 else None
        for place, job in list(left.items()):
            gone = queue is not None and place.job_id not in queue
            if place.done() if cluster == "local" else gone or place.paths.result_pickle.exists():
                del left[place]
                if job.status not in (Status.done, Status.failed, Status.running):
                    log = place.paths.stdout
                    why = f"see {log}" if log.exists() else "it had not begun"
                    print(f"ended before its time: {job.label}; {why}", file=sys.stderr)
        if not left:
            return
        time.sleep(POLL)


def _queue() -> set[str] | None:
    """The user's jobs that SLURM still has, as submitit names them; None if it does not answer."""
    command = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    return set(asked.stdout.split()) if asked.returncode == 0 else None
