"""Experts that compute the same, or nothing alike; and what each is worth to a model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe_asr.analysis.sensitivity import sensitivity
from moe_asr.analysis.similarity import cka, expert_similarity, output_similarity, weight_similarity
from moe_asr.config.model import MoEConfig
from moe_asr.data.manifest import load_samples, read_split
from moe_asr.errors import InputError
from moe_asr.modules.moe.experts import Experts
from moe_asr.runs.checkpoint import build
from moe_asr.runs.recognizer import Recognizer


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_experts() -> Experts:
    """4 experts: 1 is 0 with its hidden units in another order, 2 is 0 with the opposite output, 3 is another one."""
    torch.manual_seed(0)
    experts, order = Experts(4, 16, 32, F.relu, 0.0), torch.randperm(32)
    with torch.no_grad():
        for tensor in experts.parameters():
            tensor[1:3] = tensor[0]
        for name in ("w_in", "b_in"):
            getattr(experts, name)[1] = getattr(experts, name)[0][order]
        experts.w_out[1] = experts.w_out[0][:, order]
        experts.w_out[2] *= -1
        experts.b_out[2] *= -1
    return experts


def test_the_order_of_hidden_units_does_not_matter() -> None:
    experts = make_experts()
    weights, chance = weight_similarity(experts), weight_similarity(experts, shuffled=1)
    assert weights[0, 1].item() == pytest.approx(1.0)
    assert weights.diagonal().tolist() == pytest.approx([1.0] * 4)
    assert 0.1 < chance.max() < 0.5
    assert abs(weights[0, 3] - chance[0, 3]) < 0.05
    outputs = output_similarity(experts, drawn(2000, 16))
    assert outputs[0, :3].tolist() == pytest.approx([1.0] * 3, abs=1e-6)
    assert outputs[0, 3] < 0.9 < outputs[3, 3]


def test_cka_forgets_rotation_and_scale() -> None:
    x, noise = drawn(4000, 8), drawn(4000, 8, seed=1)
    rotation = torch.linalg.qr(drawn(8, 8, seed=2)).Q
    assert cka(x, 3 * x @ rotation + 5).item() == pytest.approx(1.0)
    assert cka(x, noise) < 0.01
    assert 0.4 < cka(x, torch.cat([x[:, :4], noise[:, :4]], 1)) < 0.6


def test_experts_are_compared_on_the_frames_that_reach_them(untrained: Path, digits: Path) -> None:
    recognizer = Recognizer.load(untrained)
    cuts = read_split(digits, "seen")[:3]
    found = expert_similarity(recognizer, [torch.from_numpy(load_samples(cut)) for cut in cuts])
    assert list(found) == ["encoder.00.ffn_in", "encoder.00.ffn_out"]
    for site in found.values():
        assert site.weights.shape == site.chance.shape == site.outputs.shape == (4, 4)
        assert site.outputs.diagonal().tolist() == pytest.approx([1.0] * 4)
        assert site.outputs[0, 1] < 1
    moe = MoEConfig("encoder", num_experts=3, expert_widths=[16, 16, 8], top_k=2)
    mixed = replace(recognizer.config, moe=moe)
    other = Recognizer.of(build(mixed, recognizer.tokenizer), recognizer.tokenizer, mixed)
    with pytest.raises(InputError, match=r"the experts of encoder.00.ffn_in differ in width"):
        expert_similarity(other, [drawn(16000)])


@pytest.mark.slow
def test_what_forced_routing_costs_is_compared_by_utterance(trained_moe: Path, digits: Path) -> None:
    recognizer, cuts = Recognizer.load(trained_moe), read_split(digits, "train")[:24]
    asked = ["random", "permuted_1"]
    found = sensitivity(recognizer, cuts, asked, ["encoder.0.ffn_in", "encoder"])
    assert [(way.choose, way.sites) for way in found] == [
        (how, where) for where in ("encoder.0.ffn_in", "encoder") for how in asked
    ]
    assert len({way.against_own.rate_a for way in found}) == 1
    for one, everywhere in zip(found[:2], found[2:], strict=True):
        assert one.against_own.rate_a < one.against_own.rate_b + 0.05
        assert everywhere.against_own.rate_b > max(one.against_own.rate_b, 0.2)
    with pytest.raises(InputError, match=r"experts are 0 to 3"):
        sensitivity(recognizer, cuts, ["without_7"])
