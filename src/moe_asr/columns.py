"""Tables for the terminal, and what their cells share with those of pages."""

from collections.abc import Sequence
from itertools import zip_longest


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as needed, those that hold numbers to the right; rows may end early."""
    columns = []
    for column in zip_longest(*rows, fillvalue=""):
        width, numbers = max(map(len, column)), any(map(_is_number, column))
        columns.append([cell.rjust(width) if numbers else cell.ljust(width) for cell in column])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def p_value(p: float | None, none: str) -> str:
    return none if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _is_number(cell: str) -> bool:
    """An interval, a time or a rate is one too."""
    return any(map(str.isdigit, cell)) and not any(map(str.isalpha, cell))
