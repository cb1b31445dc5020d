"""Fewer experts: what is not needed goes without a trace, what is merged is a weighted mean of alike units."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from moe_asr.config.model import (
    DecoderConfig,
    EncoderConfig,
    LossConfig,
    ModelConfig,
    MoEConfig,
    RouterConfig,
    RouterScore,
    Sharing,
)
from moe_asr.config.prune import Method
from moe_asr.models.batch import Batch
from moe_asr.models.pruning import composition, pruned
from moe_asr.models.u2pp import U2pp, build_model
from moe_asr.modules.moe.routers import TopKRouter
from moe_asr.modules.moe.routing import NOTHING, Routing
from moe_asr.modules.moe.statistics import routing_sums

MODEL = ModelConfig(
    encoder=EncoderConfig(layers=2, width=16, heads=2, ffn_width=24, kernel=5),
    decoder=DecoderConfig(1, 1, heads=2, ffn_width=24),
)
KINDS = {
    "per layer": (Sharing.per_layer, RouterConfig()),
    "one router for each stack": (Sharing.per_stack, RouterConfig()),
    "sigmoid with bias": (Sharing.per_layer, RouterConfig(score=RouterScore.sigmoid, balance_rate=0.1, scale=2.0)),
}


def build(moe: MoEConfig, router: RouterConfig) -> U2pp:
    torch.manual_seed(0)
    return build_model(MODEL, moe, router, LossConfig(), vocab_size=9, mel_bins=11).double().eval()


def loads(model: U2pp, batch: Batch) -> list[Tensor]:
    """For each router, over all its sites."""
    sums = routing_sums(model(batch)[1])
    numbers = torch.tensor([model.routers.table[site] for site in sums.sites])
    return [sums.load[numbers == number].sum(0) for number in range(len(model.routers.routers))]


def place(shares: Tensor) -> Tensor:
    """(E+1,) the new number of each old expert, the empty slot's -1 being the last; -9 for those that are gone."""
    places = torch.full((shares.shape[1] + 1,), -9)
    places[shares.argmax(1)] = torch.arange(len(shares))
    places[-1] = -1
    return places


@dataclass(frozen=True)
class Renumbered:
    """The decisions of a router, for the experts that are left."""

    router: TopKRouter
    shares: Tensor

    def __call__(self, *args: object) -> Routing:
        routing = self.router(*args)
        kept = self.shares.argmax(1)
        return replace(routing, logits=routing.logits[..., kept], expert_ids=place(self.shares)[routing.expert_ids])


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_experts_that_nothing_visits_go_without_a_trace(kind: str, method: Method, batch: Batch) -> None:
    sharing, router = KINDS[kind]
    moe = MoEConfig("both", sharing, num_experts=6, top_k=2)
    model = build(moe, router)
    for bank in model.routers.routers:  # of 0 and 2, and of 3 and 5, one has a logit above 0; 1 and 4 stay near it
        rows = bank.project.weight
        rows[2], rows[5], rows[1], rows[4] = -rows[0], -rows[3], 1e-6 * rows[1], 1e-6 * rows[4]
    if model.routers.bias is not None:
        model.routers.bias[:, [1, 4]] = -9.0
    used = loads(model, batch)
    assert all((load[[1, 4]] == 0).all() for load in used)
    rows = [bank.project.weight for bank in model.routers.routers]
    shares = [composition(load, own, 4, method) for load, own in zip(used, rows, strict=True)]
    less = build(replace(moe, num_experts=4), router)
    less.load_state_dict(pruned(model, shares))
    before, after = (m.encode(batch.features, batch.feature_lengths) for m in (model, less))
    assert (before.frames - after.frames).abs().max() < 1e-12  # a product with fewer rows is rounded otherwise
    assert model(batch)[0].total.item() == pytest.approx(less(batch)[0].total.item(), rel=1e-12)
    for one, other in zip(before.routing, after.routing, strict=True):
        places = place(shares[model.routers.table[one.site]])
        assert places[one.routing.expert_ids].equal(other.routing.expert_ids)
    table = model.routers.table
    decided = {site: Renumbered(model.routers.get(site), shares[table[site]]) for site in table}
    assert before.frames.equal(less.encode(batch.features, batch.feature_lengths, routers=decided).frames)
    count = {m: sum(p.numel() for name, p in m.named_parameters() if ".banks." in name) for m in (model, less)}
    assert count[less] == count[model] * 4 // 6


def test_the_most_used_are_kept_in_their_order_and_the_others_join_the_most_alike() -> None:
    load = torch.tensor([0.1, 0.4, 0.0, 0.3, 0.2])
    rows = torch.tensor([[0.0, 5.0], [1.0, 0.1], [9.0, 0.0], [0.1, 1.0], [3.0, 0.0]])
    assert composition(load, rows, 2, Method.drop).tolist() == [[0, 1, 0, 0, 0], [0, 0, 0, 1, 0]]
    merged = composition(load, rows, 2, Method.merge)
    assert merged[0].tolist() == pytest.approx([0, 2 / 3, 0, 0, 1 / 3])
    assert merged[1].tolist() == pytest.approx([1 / 4, 0, 0, 3 / 4, 0])
    idle = composition(torch.zeros(5), rows, 2, Method.merge)
    assert idle.tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]


@torch.no_grad()
def test_experts_alike_but_for_the_order_of_their_units_are_merged_into_the_same(batch: Batch) -> None:
    moe, router = MoEConfig("both", num_experts=4, top_k=4), RouterConfig()
    model = build(moe, router)
    for layer in (site for block in model.encoder.layers for site in (block.ffn_in, block.ffn_out)):
        (bank,) = layer.banks
        for expert in (1, 2, 3):
            order = torch.randperm(24)
            bank.w_in[expert], bank.b_in[expert] = bank.w_in[0][order], bank.b_in[0][order]
            bank.w_out[expert], bank.b_out[expert] = bank.w_out[0][:, order], bank.b_out[0]
    for bank in model.routers.routers:
        bank.project.weight[1:] = bank.project.weight[0]
    shares = [torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)] * 6
    less = build(MoEConfig("both", num_experts=2, top_k=2), router)
    less.load_state_dict(pruned(model, shares))
    layer, few = model.encoder.layers[0].ffn_in, less.encoder.layers[0].ffn_in
    x, valid, site = torch.randn(1, 7, 16).double(), torch.ones(1, 7, dtype=torch.bool), model.routers.sites[0]
    before = layer(x, valid, site, model.routers.get(site), NOTHING)[0]
    after = few(x, valid, site, less.routers.get(site), NOTHING)[0]
    assert (before - after).abs().max() < 1e-12
    assert not few.banks[0].w_in[0].equal(model.encoder.layers[0].ffn_in.banks[0].w_in.mean(0))
