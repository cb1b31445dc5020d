"""The final model is the exact mean of the checkpoints that were retained."""

from pathlib import Path

import pytest
import torch

from moe_asr.config.program import Keep
from moe_asr.runs.checkpoint import save_tensors
from moe_asr.training.averaging import Candidate, average, retain


def save(folder: Path, *states: dict[str, torch.Tensor]) -> list[Path]:
    files = [folder / f"{i}.pt" for i in range(len(states))]
    for file, state in zip(files, states, strict=True):
        save_tensors(file, state)
    return files


def test_the_mean_is_taken_in_float64(tmp_path: Path) -> None:
    values = [1e8, 1.0, -1e8]  # in float32 the 1 would be lost
    mean = average(save(tmp_path, *({"w": torch.tensor([v, 2 * v])} for v in values)))
    assert mean["w"].dtype == torch.float32
    assert mean["w"].tolist() == pytest.approx([1 / 3, 2 / 3], rel=1e-7)


def test_every_tensor_keeps_its_type_and_counters_come_from_the_first(tmp_path: Path) -> None:
    states = [
        {
            "half": torch.tensor([1.0 + n, -n], dtype=torch.bfloat16),
            "double": torch.tensor([n / 3], dtype=torch.float64),
            "count": torch.tensor(7 + n),
            "flag": torch.tensor([n == 0]),
        }
        for n in range(2)
    ]
    mean = average(save(tmp_path, *states))
    assert {name: value.dtype for name, value in mean.items()} == {n: v.dtype for n, v in states[0].items()}
    assert mean["half"].tolist() == [1.5, -0.5]
    assert mean["double"].tolist() == [(0 + 1 / 3) / 2]
    assert (mean["count"].item(), mean["flag"].item()) == (7, True)


def test_the_mean_of_one_is_itself_bit_by_bit(tmp_path: Path) -> None:
    state = {"w": torch.randn(50, generator=torch.Generator().manual_seed(0)), "n": torch.tensor([3])}
    mean = average(save(tmp_path, state))
    assert list(mean) == ["w", "n"]
    assert all(torch.equal(mean[name], state[name]) for name in state)


def test_order_does_not_matter(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    files = save(tmp_path, *({"w": torch.randn(99, generator=generator)} for _ in range(3)))
    assert torch.equal(average(files)["w"], average(files[::-1])["w"])


ERRORS = {10: 0.5, 20: 0.3, 30: 0.4, 40: 0.3, 50: 0.6}
CANDIDATES = [Candidate(step, error) for step, error in ERRORS.items()]


@pytest.mark.parametrize(
    ("keep", "count", "steps"),
    [
        (Keep.best, 1, [40]),  # of two equal ones the newer
        (Keep.best, 2, [40, 20]),
        (Keep.best, 4, [40, 20, 30, 10]),
        (Keep.last, 2, [50, 40]),
        (Keep.last, 9, [50, 40, 30, 20, 10]),
    ],
)
def test_the_best_or_the_last_are_retained(keep: Keep, count: int, steps: list[int]) -> None:
    assert [c.step for c in retain(CANDIDATES, keep, count)] == steps


@pytest.mark.parametrize("keep", Keep)
def test_retaining_step_by_step_is_retaining_at_once(keep: Keep) -> None:
    kept: list[Candidate] = []
    for candidate in CANDIDATES:
        kept = retain([*kept, candidate], keep, 3)
    assert kept == retain(CANDIDATES, keep, 3)


def test_files_sort_by_step() -> None:
    files = [Candidate(step, 0.0).file for step in (5, 10, 200, 100_000)]
    assert files == sorted(files)
    assert files[0] == "step=0000005.pt"
