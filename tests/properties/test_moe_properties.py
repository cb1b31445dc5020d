"""What holds for every placement, sharing and router: chunks, padding and batches change neither frames nor experts."""

from dataclasses import replace

import pytest
import torch

from moe_asr.config.model import (
    AUXILIARY,
    DecoderConfig,
    EncoderConfig,
    LossConfig,
    ModelConfig,
    MoEConfig,
    RouterConfig,
    RouterLogits,
    RouterScore,
    Sharing,
)
from moe_asr.models.batch import Batch
from moe_asr.models.u2pp import U2pp, build_model
from moe_asr.modules.moe.losses import auxiliary_losses
from moe_asr.modules.moe.routing import Side, concatenate
from moe_asr.modules.moe.statistics import routing_sums
from moe_asr.tensors import Chunking

MOE = {
    "everywhere": MoEConfig("both", num_experts=4),
    "macaron halves, one router": MoEConfig("encoder.ffn_in", Sharing.shared, num_experts=4),
    "every second layer, groups": MoEConfig("both.every2", Sharing.grouped, groups=2, num_experts=4),
    "a router for each slot": MoEConfig("both", Sharing.per_slot, num_experts=3, top_k=1),
    "a table": MoEConfig("encoder", Sharing.table, sharing_table=[0, 1, 1, 0], num_experts=4),
    "widths": MoEConfig("both", num_experts=4, expert_widths=[24, 0, 8, 24], shared_experts=1),
}
ROUTERS = {
    "normalised": RouterConfig(),
    "switch": RouterConfig(normalize=False),
    "sigmoid": RouterConfig(score=RouterScore.sigmoid, normalize=False, scale=2.0),
    "biased": RouterConfig(score=RouterScore.sigmoid, normalize=False, balance_rate=0.1),
    "frozen": RouterConfig(logits=RouterLogits.frozen, normalize=False),
    "position": RouterConfig(logits=RouterLogits.position),
    "noise": RouterConfig(normalize=False, jitter=0.5, gumbel=0.5),
}
SIDE = Side(keys=torch.tensor([11, 5, 8]))


def make_model(moe: MoEConfig, router: RouterConfig, loss: LossConfig | None = None) -> U2pp:
    torch.manual_seed(0)
    encoder = EncoderConfig(layers=2, width=16, heads=2, ffn_width=24, kernel=5)
    encoder = replace(encoder, dropout=0.0, position_dropout=0.0, attention_dropout=0.0)
    quiet = dict.fromkeys(["dropout", "position_dropout", "self_attention_dropout", "cross_attention_dropout"], 0.0)
    decoder = DecoderConfig(2, 2, heads=2, ffn_width=24, **quiet)
    config = ModelConfig(encoder=encoder, decoder=decoder)
    model = build_model(config, moe, router, loss or LossConfig(), vocab_size=9, mel_bins=11).double()
    if model.routers.bias is not None:
        model.routers.bias.normal_()
    return model.train(router.jitter > 0)


@pytest.fixture
def batch() -> Batch:
    """Three utterances of 24, 17 and 9 frames."""
    torch.manual_seed(1)
    tokens = torch.tensor([[3, 4, 4, 5, 8], [6, 3, 7, -1, -1], [5, -1, -1, -1, -1]])
    features = torch.randn(3, 101, 11, dtype=torch.float64)
    return Batch(("a", "b", "c"), features, torch.tensor([101, 73, 40]), tokens, torch.tensor([5, 3, 1]), 2.14)


def matrix(what: str):
    """Every router with experts everywhere, and every kind of layer with the plain router."""
    cases = [("everywhere", router) for router in ROUTERS] + [(moe, "switch") for moe in MOE if moe != "everywhere"]
    return pytest.mark.parametrize("kind", cases, ids=[f"{what}: {moe}, {router}" for moe, router in cases])


@matrix("streaming")
@torch.no_grad()
def test_a_stream_takes_the_masked_pass_to_the_same_experts(kind, batch):
    model = make_model(MOE[kind[0]], ROUTERS[kind[1]])
    chunking = Chunking(4, 2)
    masked = model.encode(batch.features, batch.feature_lengths, chunking, side=SIDE)
    state, outputs = model.encoder.start(3, chunking), []
    for first in range(0, 101, 23):
        piece = batch.features[:, first : first + 23]
        lengths = (batch.feature_lengths - first).clamp(0, piece.shape[1])
        finish = (batch.feature_lengths > first) & (batch.feature_lengths <= first + 23)
        output, state = model.encoder.step(piece, lengths, state, model.routers, finish, SIDE)
        outputs.append(output)
    for row, length in enumerate(masked.frame_lengths.tolist()):
        parts = [o.frames[row, : o.frame_lengths[row]] for o in outputs]
        assert (torch.cat(parts) - masked.frames[row, :length]).abs().max() < 1e-10
    for whole, piecewise in zip(masked.routing, concatenate(o.routing for o in outputs if o.routing), strict=True):
        for row in range(3):
            ours = piecewise.routing.expert_ids[row, piecewise.valid[row]]
            assert ours.equal(whole.routing.expert_ids[row, whole.valid[row]])


@matrix("batch")
@torch.no_grad()
def test_neither_padding_nor_company_changes_an_utterance(kind, batch):
    model = make_model(MOE[kind[0]], ROUTERS[kind[1]])
    together = model.encode(batch.features, batch.feature_lengths, side=SIDE)
    for row, length in enumerate(batch.feature_lengths.tolist()):
        alone = model.encode(
            batch.features[row : row + 1, :length], batch.feature_lengths[row : row + 1], side=SIDE.select([row])
        )
        n = int(alone.frame_lengths)
        assert (alone.frames[0] - together.frames[row, :n]).abs().max() < 1e-10
        for one, many in zip(alone.routing, together.routing, strict=True):
            assert one.routing.expert_ids[0].equal(many.routing.expert_ids[row, :n])
            assert many.routing.expert_ids[row, n:].eq(-1).all()


@matrix("loss")
def test_every_learned_router_learns_and_padding_changes_no_loss(kind, batch):
    weights = LossConfig(**dict.fromkeys(AUXILIARY, 0.1), compute_budget=0.1)
    model = make_model(MOE[kind[0]], ROUTERS[kind[1]], weights)
    losses, trace = model(batch, side=SIDE)
    losses.total.backward()
    for name, parameter in model.routers.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().max() > 0, name
    longer = replace(batch, features=torch.cat([batch.features, torch.full((3, 60, 11), 7.0)], 1))
    again, padded = model(longer, side=SIDE)
    assert again.total.item() == pytest.approx(losses.total.item(), rel=1e-10)
    costs = model.expert_costs
    one, two = (auxiliary_losses(routing_sums(t), weights, costs) for t in (trace, padded))
    assert {k: v.item() for k, v in one.items()} == pytest.approx({k: v.item() for k, v in two.items()})
