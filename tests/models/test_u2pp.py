import re
from collections import Counter
from dataclasses import replace

import pytest
import torch

from moe_asr.config.model import (
    ChunkConfig,
    DecoderConfig,
    EncoderConfig,
    LossConfig,
    ModelConfig,
    MoEConfig,
    RouterConfig,
    RouterScore,
    Sharing,
)
from moe_asr.config.placement import moe_sites, sharing_table
from moe_asr.errors import InputError
from moe_asr.models.ctc import ctc_feasible
from moe_asr.models.u2pp import (
    build_model,
    draw_chunking,
    label_smoothing_loss,
    parameter_counts,
    teacher_forcing,
)
from moe_asr.modules.moe.routing import Side
from moe_asr.tensors import Chunking

SWITCH = RouterConfig(normalize=False)
SIGMOID, SIGMOID_RAW = RouterConfig(score=RouterScore.sigmoid), RouterConfig(score=RouterScore.sigmoid, normalize=False)
KEYS = Side(keys=torch.tensor([11, 5, 8]))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("reverse", [0.0, 0.3, 1.0])
def test_total_is_the_weighted_sum_of_what_counts(make_model, batch, weight, reverse):
    loss = LossConfig(ctc_weight=weight, reverse_weight=reverse, balance=0.5)
    losses, trace = make_model("per_layer", loss=loss)(batch)
    parts = {name: part.item() for name, part in losses.parts.items()}
    expected = 0.5 * parts["balance"]
    if weight > 0:
        expected += weight * parts["ctc"]
    if weight < 1:
        attention = (1 - reverse) * parts.get("att_l2r", 0.0) + reverse * parts.get("att_r2l", 0.0)
        assert parts["att"] == pytest.approx(attention)
        expected += (1 - weight) * attention
    assert losses.total.item() == pytest.approx(expected)
    names = {"balance"} | ({"ctc"} if weight > 0 else set()) | ({"att"} if weight < 1 else set())
    names |= {"att_l2r"} if weight < 1 and reverse < 1 else set()
    names |= {"att_r2l"} if weight < 1 and reverse > 0 else set()
    assert set(parts) == names
    stacks = Counter(site.site.stack for site in trace)
    decoders = {"att_l2r": "left_to_right", "att_r2l": "right_to_left"}
    assert stacks == {"encoder": 4} | {decoders[name]: 1 for name in names & set(decoders)}


@pytest.mark.parametrize("kind", ["dense", "per_layer", "shared"])
def test_losses_do_not_depend_on_padding(make_model, batch, kind):
    model = make_model(kind, loss=LossConfig(balance=1.0))
    features = torch.nn.functional.pad(batch.features, (0, 0, 0, 101), value=3.0)
    tokens = torch.nn.functional.pad(batch.tokens, (0, 4), value=-1)
    one, _ = model(batch)
    two, _ = model(replace(batch, features=features, tokens=tokens))
    for name, part in one.parts.items():
        assert two.parts[name].item() == pytest.approx(part.item(), rel=1e-10)


def test_length_normalisation_divides_by_tokens(make_model, batch):
    by_utterance, _ = make_model(loss=LossConfig())(batch)
    by_token, _ = make_model(loss=LossConfig(length_normalized=True))(batch)
    ratio = by_token.parts["att"].item() / by_utterance.parts["att"].item()
    assert ratio == pytest.approx(3 / (5 + 3 + 1 + 3))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing_is_a_divergence(smoothing):
    torch.manual_seed(3)
    logits, targets = torch.randn(2, 3, 7).double(), torch.tensor([[0, 6, 3], [2, -1, -1]])
    expected = 0.0
    for b, u in ((0, 0), (0, 1), (0, 2), (1, 0)):
        q = torch.full((7,), smoothing / 6).double()
        q[targets[b, u]] = 1 - smoothing
        expected += float(torch.nn.functional.kl_div(logits[b, u].log_softmax(-1), q, reduction="sum"))
    assert float(label_smoothing_loss(logits, targets, smoothing)) == pytest.approx(expected)


def test_teacher_forcing():
    tokens, lengths = torch.tensor([[3, 4, 5], [6, -1, -1], [-1, -1, -1]]), torch.tensor([3, 1, 0])
    inputs, targets = teacher_forcing(tokens, lengths, 2, reverse=False)
    assert inputs.tolist() == [[2, 3, 4, 5], [2, 6, 2, 2], [2, 2, 2, 2]]
    assert targets.tolist() == [[3, 4, 5, 2], [6, 2, -1, -1], [2, -1, -1, -1]]
    inputs, targets = teacher_forcing(tokens, lengths, 8, reverse=True)
    assert inputs.tolist() == [[8, 5, 4, 3], [8, 6, 8, 8], [8, 8, 8, 8]]
    assert targets.tolist() == [[5, 4, 3, 8], [6, 8, -1, -1], [8, -1, -1, -1]]


def test_infeasible_utterances_are_refused(make_model, batch):
    tokens = torch.tensor([[3, 3, 4], [3, 4, 4], [5, 5, -1]])
    lengths = torch.tensor([3, 2, 2])
    assert ctc_feasible(tokens, lengths, torch.tensor([3, 2, 3])).tolist() == [False, True, True]
    assert ctc_feasible(tokens[:, :0], lengths * 0, torch.tensor([1, 0, 3])).tolist() == [True, False, True]
    short = replace(batch, feature_lengths=torch.tensor([101, 15, 40]))  # 3 frames for 3 tokens: just enough
    assert make_model()(short)[0].total.isfinite()
    with pytest.raises(InputError, match=r"1 of 3 .*rows \[1\]"):
        make_model()(replace(batch, feature_lengths=torch.tensor([101, 14, 40])))


@pytest.mark.parametrize("sharing", list(Sharing))
@pytest.mark.parametrize(
    ("router", "top_k"), [(RouterConfig(), 2), (SWITCH, 1), (SWITCH, 2), (SIGMOID, 2), (SIGMOID_RAW, 1)]
)
def test_every_parameter_learns(make_model, batch, sharing, router, top_k):
    table = [0, 1, 1, 0, 2, 2] if sharing is Sharing.table else []
    moe = MoEConfig("both", sharing, sharing_table=table, num_experts=4, top_k=top_k)
    model = make_model(moe, router).train()
    model(batch, side=KEYS)[0].total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if "routers" in name:
            assert parameter.grad.abs().max() > 0, name


def test_shared_routers_are_per_layer_routers_with_equal_weights(make_model, batch):
    shared, per_layer = make_model("shared"), make_model("per_layer")
    weights = {name: tensor for name, tensor in shared.state_dict().items() if not name.startswith("routers")}
    per_layer.load_state_dict(weights, strict=False)
    for site, number in per_layer.routers.table.items():
        per_layer.routers.routers[number].load_state_dict(shared.routers.get(site).state_dict())
    one, two = shared(batch), per_layer(batch)
    assert one[0].total.equal(two[0].total)
    for left, right in zip(one[1], two[1], strict=True):
        assert left.routing.expert_ids.equal(right.routing.expert_ids)
    one[0].total.backward()
    two[0].total.backward()
    summed = sum(router.project.weight.grad for router in per_layer.routers.routers)
    assert (shared.routers.routers[0].project.weight.grad - summed).abs().max() < 1e-12


def test_one_expert_is_the_dense_model(make_model, batch):
    dense = make_model()
    single = make_model(MoEConfig("both", num_experts=1, top_k=1))
    weights = dense.state_dict()
    for name in single.state_dict():
        if ".banks.0." in name:
            base, short = name.split(".banks.0.")
            weights[name] = weights.pop(f"{base}.w_{short[2:]}.{'weight' if short[0] == 'w' else 'bias'}")[None]
        elif name.startswith("routers"):
            weights[name] = single.state_dict()[name]
    single.load_state_dict(weights)
    assert single(batch)[0].total.item() == pytest.approx(dense(batch)[0].total.item(), rel=1e-14)


@pytest.mark.parametrize("router", [SWITCH, RouterConfig(normalize=False, jitter=0.1, gumbel=0.5, capacity_factor=0.8)])
def test_activation_checkpointing_changes_no_gradient_and_keeps_less(make_model, batch, router):
    """With dropout and routing noise, and a loss on the routing itself."""
    found, kept = [], []
    for on in (False, True):
        model = make_model("shared", router, LossConfig(balance=1.0)).train()
        model.encoder.checkpointed = on
        torch.manual_seed(3)
        saved: dict[int, int] = {}

        def pack(tensor, saved=saved):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            losses, trace = model(batch, Chunking(4), KEYS)
        losses.total.backward()
        kept.append(sum(saved.values()))
        found.append(({n: p.grad for n, p in model.named_parameters()}, losses.total.item(), len(trace)))
    assert found[0][1:] == found[1][1:]
    assert found[0][0]["routers.routers.0.project.weight"].abs().max() > 0
    assert all(torch.equal(gradient, found[1][0][name]) for name, gradient in found[0][0].items())
    assert kept[1] < 0.7 * kept[0]


def test_decoders_route_what_they_read(make_model, batch):
    model = make_model("per_layer")
    encoded = model.encode(batch.features, batch.feature_lengths)
    tokens = [row[:n].tolist() for row, n in zip(batch.tokens, batch.token_lengths, strict=True)]
    trace = model.decoder_routing(encoded, tokens)
    expected = model(batch)[1][len(encoded.routing) :]
    assert [part.site for part in trace] == [part.site for part in expected]
    for part, other in zip(trace, expected, strict=True):
        assert part.valid.equal(other.valid)
        assert part.routing.expert_ids[part.valid].equal(other.routing.expert_ids[other.valid])
    assert [part.valid.sum().item() for part in model.decoder_routing(encoded, [[], [], []])] == [3, 3]
    assert make_model(MoEConfig("encoder", num_experts=4)).decoder_routing(encoded, tokens) == ()


def test_autocast_trains_experts_and_keeps_logits_in_float32(make_model, batch):
    model = make_model("per_layer", SWITCH, LossConfig(balance=0.01)).float().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    values = []
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            losses, trace = model(replace(batch, features=batch.features.float()), Chunking(4))
        losses.total.backward()
        optimizer.step()
        values.append(losses.total.item())
        assert {part.routing.logits.dtype for part in trace} == {torch.float32}
    assert values[2] < values[0] < float("inf")
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_model_overfits_one_batch(make_model, batch):
    model = make_model("shared", loss=LossConfig(balance=0.01)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        losses, _ = model(batch, Chunking(4))
        losses.total.backward()
        optimizer.step()
        values.append(losses.total.item())
    assert values[-1] < 0.5 * values[0]


def test_chunk_sizes_follow_the_published_draw():
    generator = torch.Generator().manual_seed(4)
    drawn = Counter(draw_chunking(100, ChunkConfig(), generator) for _ in range(4000))
    assert drawn[Chunking()] / 4000 == pytest.approx(49 / 99, abs=0.03)
    assert {c.size for c in drawn} == {None, *range(1, 26)}
    assert all(c.left is None for c in drawn)
    sizes = {draw_chunking(9, ChunkConfig(), generator).size for _ in range(300)}
    assert sizes == {None, 2, 3, 4, 5}
    lefts = {
        (c.size, c.left) for c in (draw_chunking(9, ChunkConfig(dynamic_left=True), generator) for _ in range(500))
    }
    assert lefts == {(None, None), (2, 0), (2, 1), (2, 2), (2, 3), (3, 0), (3, 1), (4, 0), (4, 1), (5, 0)}


@pytest.mark.parametrize("dynamic_left", [False, True])
def test_short_utterances_are_drawn_safely(dynamic_left):
    generator = torch.Generator().manual_seed(5)
    config = ChunkConfig(dynamic_left=dynamic_left)
    assert {draw_chunking(n, config, generator) for n in (0, 1) for _ in range(20)} == {Chunking()}
    assert {draw_chunking(2, config, generator) for _ in range(20)} == {Chunking(2)}
    assert {draw_chunking(50, ChunkConfig(dynamic=False), generator) for _ in range(20)} == {Chunking()}


def test_placement_and_sharing():
    model = ModelConfig(encoder=EncoderConfig(layers=2), decoder=DecoderConfig(layers=2, reverse_layers=1))
    assert moe_sites(model, "none") == moe_sites(model, None) == ()
    encoder, decoder = moe_sites(model, "encoder"), moe_sites(model, "decoder")
    assert [str(s) for s in encoder] == [f"encoder.0{i}.ffn_{slot}" for i in (0, 1) for slot in ("in", "out")]
    assert [str(s) for s in decoder] == [
        f"{n}.ffn_out" for n in ("left_to_right.00", "left_to_right.01", "right_to_left.00")
    ]
    both = moe_sites(model, "both")
    assert both == encoder + decoder
    assert sharing_table(both, MoEConfig()) == tuple(range(7))
    assert sharing_table(both, MoEConfig(sharing=Sharing.shared)) == (0,) * 7
    assert sharing_table(both, MoEConfig(sharing=Sharing.per_stack)) == (0, 0, 0, 0, 1, 1, 2)
    assert sharing_table(both, MoEConfig(sharing=Sharing.per_slot)) == (0, 1, 0, 1, 2, 2, 3)
    assert sharing_table(both, MoEConfig(sharing=Sharing.grouped, groups=3)) == (0, 0, 0, 1, 1, 2, 2)
    table = [5, 5, 2, 2, 5, 7, 7]
    assert sharing_table(both, MoEConfig(sharing=Sharing.table, sharing_table=table)) == (0, 0, 1, 1, 0, 2, 2)
    with pytest.raises(InputError, match="2 numbers for 7 MoE sites"):
        sharing_table(both, MoEConfig(sharing=Sharing.table, sharing_table=[0, 1]))
    with pytest.raises(InputError, match=r"moe\.groups=9 is more than the 7 MoE sites"):
        sharing_table(both, MoEConfig(sharing=Sharing.grouped, groups=9))
    assert sharing_table((), MoEConfig(sharing=Sharing.grouped)) == ()


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("encoder.ffn_in", ["e0i", "e1i", "e2i", "e3i"]),
        ("encoder.2", ["e2i", "e2o"]),
        ("encoder.1-2.ffn_out", ["e1o", "e2o"]),
        ("encoder.every2.ffn_out", ["e1o", "e3o"]),
        ("both.every2", ["e1i", "e1o", "e3i", "e3o", "l1o", "r1o"]),
        ("right_to_left+encoder.0.ffn_in", ["e0i", "r0o", "r1o"]),
        ("decoder.0", ["l0o", "r0o"]),
        ("encoder+encoder.3", ["e0i", "e0o", "e1i", "e1o", "e2i", "e2o", "e3i", "e3o"]),
    ],
)
def test_placements_are_patterns(placement, expected):
    model = ModelConfig(encoder=EncoderConfig(layers=4), decoder=DecoderConfig(layers=2, reverse_layers=2))
    assert [f"{s.stack[0]}{s.layer}{s.slot[4]}" for s in moe_sites(model, placement)] == expected


@pytest.mark.parametrize(
    ("placement", "sentence"),
    [
        ("encodr", "'encodr', which is not STACK"),
        ("encoder.ffn", "'encoder.ffn', which is not STACK"),
        ("encoder+", "the term ''"),
        ("encoder.7", "names 'encoder.7', which this model has not"),
        ("decoder.ffn_in", "names 'decoder.ffn_in', which this model has not"),
        ("encoder.every9", "names 'encoder.every9'"),
        ("encoder.every0", "names 'encoder.every0'"),
    ],
)
def test_a_placement_that_chooses_nothing_is_refused(placement, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        moe_sites(ModelConfig(encoder=EncoderConfig(layers=4)), placement)


def test_a_state_dict_holds_each_router_once(make_model):
    routers = [name for name in make_model("shared").state_dict() if "router" in name]
    assert routers == ["routers.routers.0.project.weight"]


@pytest.mark.parametrize(
    ("moe", "total", "active"),
    [(MoEConfig(), 225.7, 225.7), (MoEConfig("both", num_experts=8, top_k=2), 1052.4, 344.0)],
    ids=["dense", "moe"],
)
def test_parameter_counts_of_the_published_shapes(moe, total, active):
    encoder = EncoderConfig(layers=15, width=640, heads=10, ffn_width=2560, kernel=15)
    config = ModelConfig(encoder=encoder, decoder=DecoderConfig(3, 3, 10, 2560))
    with torch.device("meta"):
        model = build_model(config, moe, RouterConfig(), LossConfig(), vocab_size=8404, mel_bins=80)
    counted = parameter_counts(model)
    assert counted[0] / 1e6 == pytest.approx(total, abs=0.05)
    assert counted[1] / 1e6 == pytest.approx(active, abs=0.5)


def test_a_batch_moves_as_a_whole(batch):
    moved = batch.to("meta")
    assert {t.device.type for t in (moved.features, moved.feature_lengths, moved.tokens, moved.token_lengths)} == {
        "meta"
    }
    assert moved.ids == batch.ids
