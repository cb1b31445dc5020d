"""How a trained model computes. No torch here."""

from enum import StrEnum

from moe_asr.config.model import require


class InferencePrecision(StrEnum):
    """Of the weights on a CPU, and of what they are multiplied with; routers always compute in float32."""

    fp32 = "fp32"
    bf16 = "bf16"
    int8 = "int8"


class ExpertBackend(StrEnum):
    auto = "auto"
    """fused on a CPU with a compiler, else packed on one that has the kernels, else sorted."""
    loop = "loop"
    sorted = "sorted"
    packed = "packed"
    """Laid out for the CPU once, at the price of a second copy in memory."""
    fused = "fused"
    """Like packed, but by a kernel of our own, which a C++ compiler makes when it is first needed."""


def check_computing(precision: InferencePrecision, experts: ExpertBackend) -> None:
    """Raises InputError for a pair that contradicts itself."""
    require(
        precision is InferencePrecision.fp32 or experts not in (ExpertBackend.loop, ExpertBackend.sorted),
        f"experts={experts} computes in fp32: write experts=auto or precision=fp32.",
    )
