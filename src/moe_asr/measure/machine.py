"""What this machine can do at best: the limit beside every measured time."""

import ctypes
import gc
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F

from moe_asr.measure.timing import interleaved

SHAPES: tuple[tuple[int, int, int], ...] = ((256, 512, 2048), (384, 640, 2560), (384, 1024, 4096), (1024, 1024, 1024))
"""Rows, inputs and outputs of the matrix products that are tried."""
READ_BYTES = 2**28
GPU_SHAPES, GPU_READ_BYTES = ((4096, 4096, 4096), (8192, 8192, 8192)), 2**32
"""Large enough that starting the work takes no time beside it."""
PRECISIONS = {"fp32": 4, "bf16": 2, "int8": 1}
"""Bytes of a weight."""
T = TypeVar("T")


@dataclass(frozen=True)
class Peaks:
    """FLOP/s (int8: operations/s) of the best matrix product, and bytes/s of the best reading of memory.

    Of the threads together; per CPU second with one thread, else per wall second.
    """

    fp32: float
    bf16: float
    int8: float
    read: float

    def seconds(self, multiply_adds: float, weights: float = 0.0, precision: str = "fp32") -> float:
        """The least time for so many multiply-adds with so many weights read from memory."""
        return max(2 * multiply_adds / getattr(self, precision), weights * PRECISIONS[precision] / self.read)


@torch.inference_mode()
def measure_peaks(quick: bool = False, device: str | torch.device = "cpu") -> Peaks:
    """The best of short tries, taken in turns: some 5 s; with `quick` an instant, and less exact."""
    gpu = torch.device(device).type != "cpu"
    shapes, read_bytes = (GPU_SHAPES, GPU_READ_BYTES) if gpu else (SHAPES, READ_BYTES)
    rounds, shapes, read_bytes = (2, SHAPES[:1], READ_BYTES // 4) if quick else (12, shapes, read_bytes)
    products = {
        (precision, shape, kind): work
        for precision in PRECISIONS
        for shape in shapes
        for kind, work in enumerate(_products(precision, *shape, device))
    }
    speeds: dict[str, float] = dict.fromkeys(PRECISIONS, 0.0)
    for (precision, shape, _), times in interleaved(products, rounds, device).items():
        speeds[precision] = max(speeds[precision], 2 * prod(shape) / min(times))
    memory = torch.ones(read_bytes // 4, device=device)
    reads = interleaved({"amax": memory.amax, "sum": memory.sum}, rounds, device)
    return Peaks(**speeds, read=memory.nbytes / min(map(min, reads.values())))


def _products(
    precision: str, rows: int, inputs: int, outputs: int, device: str | torch.device = "cpu"
) -> list[Callable[[], object]]:
    """Ways to multiply (rows, inputs) by (inputs, outputs): as it is, or by oneDNN with weights laid out for it."""
    x, weight = torch.randn(rows, inputs, device=device), torch.randn(outputs, inputs, device=device)
    if precision == "int8":
        x8, weight8 = (tensor.mul(30).clamp(-127, 127).to(torch.int8) for tensor in (x, weight))
        return [lambda: torch._int_mm(x8, weight8.mT)]
    if precision == "bf16":
        x, weight = x.bfloat16(), weight.bfloat16()
    if not (x.is_cpu and torch.backends.mkldnn.is_available()):
        return [lambda: F.linear(x, weight)]
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return [
        lambda: F.linear(x, weight),
        lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""),
    ]


def growth(work: Callable[[], T], device: str | torch.device = "cpu") -> tuple[T, int, int]:
    """The result of `work`, and by how many bytes this process is larger after it, and was at most during it.

    Its memory on the device, if that is a GPU. 0 where the system is not Linux.
    """
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = work()
        return (
            result,
            torch.cuda.memory_allocated(device) - before,
            torch.cuda.max_memory_allocated(device) - before,
        )
    if not sys.platform.startswith("linux"):
        return work(), 0, 0
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    result = work()
    peak = _resident("VmHWM", tidy=False)
    return result, _resident("VmRSS") - before, peak - before


def _resident(name: str, tidy: bool = True) -> int:
    if tidy:  # what was freed is given back to the system, even if the process keeps such memory
        gc.collect()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0
