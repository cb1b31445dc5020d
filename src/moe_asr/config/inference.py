"""How a trained model computes. No torch here."""

from enum import StrEnum


class InferencePrecision(StrEnum):
    """Of the weights on a CPU, and of what they are multiplied with."""

    fp32 = "fp32"
    bf16 = "bf16"
    int8 = "int8"
