"""Speed with its receipt: RTF is processing seconds per second of audio, pooled over batches."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy
import torch

T = TypeVar("T")


@dataclass(frozen=True)
class TimedBatch:
    """One timed batch; `audio_seconds` without padding."""

    wall_seconds: float
    cpu_seconds: float
    """Of this process, all threads together."""
    audio_seconds: float


@dataclass(frozen=True)
class SpeedReceipt:
    rtf: float
    """Sum of wall seconds over sum of audio seconds."""
    rtf_quartiles: tuple[float, float, float]
    """Of the batches."""
    wall_seconds: float
    cpu_seconds: float
    audio_seconds: float
    batches: int
    batch: int
    """Utterances decoded together."""
    warm_up: int
    """Batches run before, not counted."""
    threads: int
    device: str
    machine: str
    torch_version: str


def synchronize(device: str | torch.device) -> None:
    """Waits until a GPU has done what was asked of it; a CPU always has."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], T], audio_seconds: float, device: str | torch.device = "cpu") -> tuple[T, TimedBatch]:
    """Runs `work` once and times it to the end of its GPU work."""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    synchronize(device)
    return result, TimedBatch(time.perf_counter() - wall, time.process_time() - cpu, audio_seconds)


def speed_receipt(
    times: Sequence[TimedBatch], *, batch: int, warm_up: int, device: str | torch.device = "cpu"
) -> SpeedReceipt:
    """times: the counted batches only. ValueError without any audio."""
    audio = sum(t.audio_seconds for t in times)
    if not times or min(t.audio_seconds for t in times) <= 0:
        raise ValueError("a real-time factor needs batches with audio in each")
    wall = sum(t.wall_seconds for t in times)
    first, median, third = numpy.quantile([t.wall_seconds / t.audio_seconds for t in times], [0.25, 0.5, 0.75])
    return SpeedReceipt(
        rtf=wall / audio,
        rtf_quartiles=(float(first), float(median), float(third)),
        wall_seconds=wall,
        cpu_seconds=sum(t.cpu_seconds for t in times),
        audio_seconds=audio,
        batches=len(times),
        batch=batch,
        warm_up=warm_up,
        threads=torch.get_num_threads(),
        device=str(device),
        machine=machine(device),
        torch_version=torch.__version__,
    )


def machine(device: str | torch.device = "cpu") -> str:
    """Processor, usable cores, memory, and the GPU if `device` is one; no names of this computer."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    parts = [processor, f"{cores} cores"]
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        parts.append(f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB RAM")
    if torch.device(device).type == "cuda":
        parts.append(torch.cuda.get_device_name(device))
    return ", ".join(parts)
