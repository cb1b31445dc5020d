"""Two processes are one: same losses, gradients, expert counts and data, also where a process or an expert idles."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from moe_asr.config.model import (
    DecoderConfig,
    EncoderConfig,
    LossConfig,
    ModelConfig,
    MoEConfig,
    RouterConfig,
    RouterLogits,
    RouterScore,
)
from moe_asr.errors import InputError, JobError
from moe_asr.models.batch import Batch
from moe_asr.models.u2pp import U2pp, build_model
from moe_asr.modules.moe.routing import Side
from moe_asr.modules.moe.statistics import routing_sums
from moe_asr.tensors import Chunking
from moe_asr.training.ranks import companions, gathered

AUXILIARY = LossConfig(balance=0.3, importance=0.2, z=0.1, entropy=0.05, sparsity=0.05, compute=0.1, compute_budget=0.4)
WIDTHS = MoEConfig("both", num_experts=6, expert_widths=[24, 24, 8, 24, 8, 0])
NOISY = RouterConfig(score=RouterScore.sigmoid, balance_rate=0.1, jitter=0.2)
CASES = {
    "every loss": (WIDTHS, NOISY, AUXILIARY),
    "CTC alone": (MoEConfig("both", num_experts=6), RouterConfig(), replace(AUXILIARY, ctc_weight=1.0)),
    "one decoder alone": (WIDTHS, NOISY, replace(AUXILIARY, ctc_weight=0.0, reverse_weight=0.0)),
    "a router without gradient": (WIDTHS, RouterConfig(logits=RouterLogits.position), AUXILIARY),
    "dense": (MoEConfig(), RouterConfig(), LossConfig()),
}
STEPS: list[tuple[list[int], list[int]]] = [([0, 1], [2]), ([1, 2], []), ([2], [0])]
"""The utterances of each process in each step."""
DEAD = 3


def make(case: str) -> U2pp:
    """In float64, without dropout; where routers have a bias, the expert DEAD gets nothing."""
    moe, router, loss = CASES[case]
    torch.manual_seed(0)
    none = {"dropout": 0.0, "position_dropout": 0.0}
    encoder = EncoderConfig(layers=2, width=16, heads=2, ffn_width=24, kernel=5, attention_dropout=0.0, **none)
    decoder = DecoderConfig(
        1, 1, heads=2, ffn_width=24, self_attention_dropout=0.0, cross_attention_dropout=0.0, **none
    )
    model = build_model(ModelConfig(encoder=encoder, decoder=decoder), moe, router, loss, vocab_size=9, mel_bins=11)
    for part in model.idle_parts():
        part.requires_grad_(False)
    if model.routers.bias is not None:
        model.routers.bias[:, DEAD] = -9.0
    return model.double()


def utterances(rows: Sequence[int]) -> Batch:
    """Some of three utterances of 24, 17 and 9 frames, padded as these need it."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.tensor([[3, 4, 4, 5, 8], [6, 3, 7, -1, -1], [5, -1, -1, -1, -1]])[rows]
    lengths, token_lengths = torch.tensor([101, 73, 40])[rows], torch.tensor([5, 3, 1])[rows]
    features = torch.randn(3, 101, 11, dtype=torch.float64, generator=generator)[rows]
    ids = tuple("abc"[row] for row in rows)
    return Batch(ids, features[:, : lengths.max()], lengths, tokens[:, : token_lengths.max()], token_lengths, 2.0)


class Loss(nn.Module):
    """What a process contributes to the mean over all utterances of a step."""

    def __init__(self, model: U2pp) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Sequence[int], of: int) -> tuple[Tensor, dict[str, float], Tensor | None]:
        if not rows:
            return self.model.idle_loss(), {}, None
        losses, trace = self.model(utterances(rows), Chunking(4, 1), Side(keys=torch.tensor(rows)))
        share, sums = len(rows) / of, routing_sums(trace)
        parts = {name: value.item() * share for name, value in losses.parts.items()}
        return losses.total * share, parts, None if sums is None else sums.counts.detach()


def descend(case: str, rank: int, ranks: int) -> list[dict[str, Any]]:
    """What happens to a process in each step of gradient descent."""
    model = make(case)
    loss = Loss(model) if ranks == 1 else DistributedDataParallel(Loss(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    seen = []
    for shares in STEPS:
        rows = sorted(shares[0] + shares[1]) if ranks == 1 else shares[rank]
        total, parts, counts = loss(rows, len(shares[0] + shares[1]))
        optimizer.zero_grad()
        (total * ranks).backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        seen.append({"parts": parts, "counts": counts, "gradients": gradients, "weights": weights})
    return seen


def descend_all() -> None:
    for case in CASES:
        gathered(descend(case, 1, 2))


@pytest.fixture(scope="module")
def two() -> dict[str, list[list[dict[str, Any]]]]:
    """Of each case what either process went through."""
    with companions(2, False, descend_all):
        return {case: gathered(descend(case, 0, 2)) for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_losses_gradients_and_counts_are_those_of_one_process(case: str, two) -> None:
    for alone, first, second in zip(descend(case, 0, 1), *two[case], strict=True):
        for name, value in alone["parts"].items():
            assert first["parts"].get(name, 0.0) + second["parts"].get(name, 0.0) == pytest.approx(value, rel=1e-10)
        for name, gradient in alone["gradients"].items():
            for found in (first, second):
                torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-10, atol=1e-12, msg=name)
        assert first["gradients"].keys() == second["gradients"].keys() == alone["gradients"].keys()
        assert all(torch.equal(first["weights"][name], value) for name, value in second["weights"].items())
        if alone["counts"] is not None:
            counts = [found["counts"] for found in (first, second) if found["counts"] is not None]
            assert torch.equal(sum(counts), alone["counts"])


def test_experts_were_idle_in_one_process_and_in_both(two) -> None:
    first, second = (found[0]["counts"] for found in two["every loss"])
    assert (first[:, DEAD] + second[:, DEAD] == 0).all()
    others = torch.arange(6) != DEAD
    assert ((first > 0) & (second == 0))[:, others].any(), "the short utterance should miss some expert"


def test_what_has_no_loss_is_not_trained() -> None:
    model = make("one decoder alone")
    idle = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name for name in dict(model.named_parameters()) if name.startswith(("decoders.right", "ctc."))} <= idle
    assert [f"routers.routers.{n}.project.weight" in idle for n in range(6)] == [False] * 5 + [True]
    assert not make("every loss").idle_parts()


def refuse() -> None:
    raise InputError("no such thing")


def fail() -> None:
    raise ValueError("something broke")


def test_what_a_companion_refuses_or_breaks_is_told_here() -> None:
    with pytest.raises(InputError, match="no such thing"), companions(2, False, refuse):
        gathered(1)
    with pytest.raises(RuntimeError) as caught, companions(2, False, fail):
        gathered(1)
    assert "something broke" in "".join(caught.value.__notes__)
    with pytest.raises(JobError, match="exit code 1"), companions(2, False, fail):
        pass
    assert gathered("alone") == ["alone"], "no group is left behind"


def test_one_process_has_no_companion() -> None:
    with companions(1, False, fail):
        assert gathered(3) == [3]
