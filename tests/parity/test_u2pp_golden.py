"""Golden numbers of a trained dense and a trained MoE model, made by the implementation they come from."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from moe_asr.config.model import (
    DecoderConfig,
    EncoderConfig,
    LossConfig,
    ModelConfig,
    MoEConfig,
    Placement,
    RouterConfig,
)
from moe_asr.decoding.ctc_greedy import ctc_greedy
from moe_asr.models.batch import Batch
from moe_asr.models.u2pp import U2pp, build_model, label_smoothing_loss, teacher_forcing
from moe_asr.tensors import Chunking

GOLDEN = Path(__file__).parents[2] / "../shared/parity"
pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason="the golden numbers (../shared/parity) are not here")

SHAPES = {
    "dense": ({"width": 48, "ffn_width": 96, "kernel": 8}, 96, MoEConfig()),
    "moe": ({"width": 64, "ffn_width": 48, "kernel": 15}, 48, MoEConfig(Placement.both, num_experts=8, top_k=2)),
}
CONTEXTS = [(4, -1), (4, 2), (8, -1), (8, 2), (16, -1), (16, 2)]

RENAMED = [
    (r"encoder\.global_cmvn", "encoder.cmvn"),
    (r"encoder\.embed\.conv\.0", "encoder.subsampling.conv1"),
    (r"encoder\.embed\.conv\.2", "encoder.subsampling.conv2"),
    (r"encoder\.embed\.out\.0", "encoder.subsampling.project"),
    (r"encoder\.encoders", "encoder.layers"),
    (r"decoder\.left_decoder", "decoders.left_to_right"),
    (r"decoder\.right_decoder", "decoders.right_to_left"),
    (r"\.decoders\.(\d)", r".layers.\1"),
    (r"ctc\.ctc_lo", "ctc.output"),
    (r"\.embed\.0", ".embedding"),
    (r"output_layer", "output"),
    (r"after_norm|norm_final", "norm"),
    (r"norm_mha", "norm_attention"),
    (r"norm_conv\b", "norm_convolution"),
    (r"norm_ff_macaron", "norm_ffn_in"),
    (r"norm_ff\b", "norm_ffn_out"),
    (r"norm1", "norm_self"),
    (r"norm2", "norm_cross"),
    (r"norm3", "norm_ffn"),
    (r"feed_forward_macaron", "ffn_in"),
    (r"feed_forward", "ffn_out"),
    (r"w_1", "w_in"),
    (r"w_2", "w_out"),
    (r"conv_module", "convolution"),
    (r"pointwise_conv1", "pointwise_in"),
    (r"pointwise_conv2", "pointwise_out"),
    (r"depthwise_conv", "depthwise"),
    (r"pos_bias_u", "content_bias"),
    (r"pos_bias_v", "position_bias"),
    (r"linear_pos", "position"),
    (r"linear_out", "out"),
    (r"src_attn", "cross_attention"),
    (r"(encoder\.layers\.\d+)\.self_attn", r"\1.attention"),
    (r"self_attn", "self_attention"),
]


def places(names: list[str]) -> dict[str, tuple[str, int | slice | None]]:
    """Foreign tensor name -> our tensor, and which part of it: a third, a half, one expert, or the whole (None).

    Only MoE layers have gates; routers are numbered in network order: encoder, left to right, right to left.
    """
    gates = [n for n in names if n.endswith("gate.weight")]
    order = {"encoder": 0, "decoder.left_decoder": 1, "decoder.right_decoder": 2}
    gates.sort(
        key=lambda n: (
            next(v for k, v in order.items() if n.startswith(k)),
            int(re.search(r"coders\.(\d+)", n)[1]),
            "macaron" not in n,
        )
    )
    mapped = {}
    for name in names:
        if name in gates:
            mapped[name] = (f"routers.routers.{gates.index(name)}.project.weight", None)
            continue
        ours = name
        for pattern, replacement in RENAMED:
            ours = re.sub(pattern, replacement, ours)
        part: int | slice | None = None
        if found := re.search(r"\.experts\.(\d+)\.(w_in|w_out)\.(weight|bias)", ours):
            kind = {"weight": "w", "bias": "b"}[found[3]] + found[2][1:]
            ours, part = ours[: found.start()] + f".experts.{kind}", int(found[1])
        elif found := re.search(r"linear_(q|k|v)\.", ours):
            if "cross_attention" not in ours:
                ours, part = ours.replace(found[0], "qkv."), slice("qkv".index(found[1]), 3)
            elif found[1] != "q":
                ours, part = ours.replace(found[0], "kv."), slice("kv".index(found[1]), 2)
            else:
                ours = ours.replace(found[0], "q.")
        mapped[name] = (ours, part)
    return mapped


def part_of(tensor: Tensor, part: int | slice | None) -> Tensor:
    if isinstance(part, slice):
        return tensor.chunk(part.stop)[part.start]
    return tensor if part is None else tensor[part]


def load_golden(kind: str) -> tuple[U2pp, Batch, dict[str, np.ndarray], dict]:
    shape, hidden, moe = SHAPES[kind]
    model = build_model(
        ModelConfig(encoder=EncoderConfig(layers=3, heads=4, **shape), decoder=DecoderConfig(2, 2, 4, hidden)),
        moe,
        RouterConfig(),
        LossConfig(),
        vocab_size=40,
        mel_bins=80,
    ).eval()
    foreign = torch.load(GOLDEN / kind / "checkpoint.pt", weights_only=True)
    mapping = places(list(foreign))
    own, filled = model.state_dict(), dict.fromkeys(model.state_dict(), 0)
    for name, value in foreign.items():
        ours, part = mapping[name]
        target = part_of(own[ours], part)
        filled[ours] += value.numel()
        target.copy_(value.reshape(target.shape))
    assert filled == {name: tensor.numel() for name, tensor in own.items()}
    inputs = np.load(GOLDEN / kind / "inputs.npz")
    batch = Batch(
        tuple("abcd"),
        torch.from_numpy(inputs["feats"]),
        torch.from_numpy(inputs["feats_lengths"]).long(),
        torch.from_numpy(inputs["target"]),
        torch.from_numpy(inputs["target_lengths"]).long(),
        5.81,
    )
    return model, batch, dict(np.load(GOLDEN / kind / "outputs.npz")), mapping


@pytest.fixture(scope="module", params=["dense", "moe"])
def golden(request: pytest.FixtureRequest) -> tuple[U2pp, Batch, dict[str, np.ndarray], dict]:
    return load_golden(request.param)


def worst(ours: Tensor, theirs: np.ndarray, lengths: Tensor | None = None) -> float:
    difference = (ours.detach() - torch.from_numpy(theirs)).abs()
    if lengths is None:
        return float(difference.max())
    return max(float(row[:length].max()) for row, length in zip(difference, lengths.tolist(), strict=True))


def test_every_foreign_tensor_has_a_place(golden):
    _, _, expected, mapping = golden
    assert set(expected["grad_names"].tolist()) == {name for name in mapping if "cmvn" not in name}


@torch.inference_mode()
def test_encoder_and_ctc(golden):
    model, batch, expected, _ = golden
    output = model.encode(batch.features, batch.feature_lengths)
    assert output.frame_lengths.tolist() == [58, 41, 28, 13] == expected["enc_mask"].sum((1, 2)).tolist()
    assert worst(output.frames, expected["enc_full"], output.frame_lengths) < 1e-5
    log_probs = model.ctc_log_probs(output.frames)
    assert worst(log_probs, expected["ctc_logp_full"], output.frame_lengths) < 5e-5
    for size, left in CONTEXTS:
        chunked = model.encode(batch.features, batch.feature_lengths, Chunking(size, None if left < 0 else left))
        assert worst(chunked.frames, expected[f"enc_chunk{size}_left{left}"], output.frame_lengths) < 1e-5
    chunked = model.encode(batch.features, batch.feature_lengths, Chunking(8))
    logs = model.ctc_log_probs(chunked.frames)
    assert worst(logs, expected["ctc_logp_chunk8_left-1"], output.frame_lengths) < 5e-5
    for context, values in (("full", log_probs), ("chunk8", logs)):
        for i, hypothesis in enumerate(ctc_greedy(values, output.frame_lengths)):
            tokens = expected[f"dec_{context}/ctc_greedy_search/tokens"][i]
            assert list(hypothesis.tokens) == tokens[tokens >= 0].tolist()


@pytest.mark.parametrize(("size", "left"), CONTEXTS)
@torch.inference_mode()
def test_streaming(golden, size, left):
    model, batch, expected, _ = golden
    streams = [0, 3]
    state = model.encoder.start(2, Chunking(size, None if left < 0 else left))
    features, lengths = batch.features[streams], batch.feature_lengths[streams]
    frames: list[list[Tensor]] = [[], []]
    for first in range(0, 250, 50):
        now = (lengths - first).clamp(0, 50)
        finish = (lengths > first) & (lengths <= first + 50)
        output, state = model.encoder.step(features[:, first : first + 50], now, state, model.routers, finish)
        for i in range(2):
            frames[i].append(output.frames[i, : output.frame_lengths[i]])
    whole, other = (torch.cat(rows) for rows in frames)
    assert worst(other, expected[f"stream3_chunk{size}_left{left}/enc"][0]) < 1e-5
    assert worst(whole, expected[f"enc_chunk{size}_left{left}"][0]) < 1e-5


@torch.inference_mode()
def test_decoders(golden):
    model, batch, expected, _ = golden
    encoded = model.encode(batch.features, batch.feature_lengths)
    for name, inputs_name, outputs_name, logits_name, reverse in (
        ("left_to_right", "ys_in", "ys_out", "dec_l2r_logits", False),
        ("right_to_left", "r_ys_in", "r_ys_out", "dec_r2l_logits", True),
    ):
        inputs, targets = teacher_forcing(batch.tokens, batch.token_lengths, 2, reverse)
        assert inputs.tolist() == expected[inputs_name].tolist()
        assert targets.tolist() == expected[outputs_name].tolist()
        decoder, lengths = model.decoders[name], batch.token_lengths + 1
        logits, _ = decoder(inputs, lengths, decoder.memory(encoded), routers=model.routers)
        assert worst(logits, expected[logits_name], lengths) < 5e-5
        if not reverse:
            normalized = label_smoothing_loss(logits, targets, 0.1) / lengths.sum()
            assert float(normalized) == pytest.approx(float(expected["full/loss_att_l2r_lennorm"]), rel=1e-5)


def test_routing(golden):
    model, batch, expected, mapping = golden
    with torch.inference_mode():
        _, trace = model(batch)
    gates = {
        mapping[name.removeprefix("gate_logits/") + ".gate.weight"][0]: name for name in expected if "gate" in name
    }
    assert len(gates) == len(trace) == (10 if model.routers.table else 0)
    for number, site in enumerate(trace):
        theirs = expected[gates[f"routers.routers.{number}.project.weight"]].reshape(site.routing.logits.shape)
        assert np.abs(site.routing.logits.numpy() - theirs)[site.valid.numpy()].max() < 2e-5
        chosen = np.sort(np.argsort(-theirs, -1)[..., :2], -1)
        assert (np.sort(site.routing.expert_ids.numpy(), -1) == chosen)[site.valid.numpy()].all()


def test_losses_and_gradients(golden):
    model, batch, expected, mapping = golden
    model.zero_grad()
    losses, _ = model(batch)
    losses.total.backward()
    for ours, theirs in (
        ("ctc", "loss_ctc"),
        ("att", "loss_att"),
        ("att_l2r", "loss_att_l2r"),
        ("att_r2l", "loss_att_r2l"),
    ):
        assert losses.parts[ours].item() == pytest.approx(float(expected[f"full/{theirs}"]), rel=1e-5, abs=1e-4)
    assert losses.total.item() == pytest.approx(float(expected["full/loss"]), rel=1e-5)
    parameters = dict(model.named_parameters())
    for name, norm in zip(expected["grad_names"].tolist(), expected["grad_norms"], strict=True):
        ours, part = mapping[name]
        gradient = parameters[ours].grad
        assert gradient is not None
        # Keys' biases cancel in the softmax: their gradients are rounding noise.
        assert float(part_of(gradient, part).norm()) == pytest.approx(norm, rel=1e-4, abs=1e-5), name
    total = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert float(total) == pytest.approx(float(expected["grad_total_norm"]), rel=1e-5)
    with torch.inference_mode():
        losses, _ = model(batch, Chunking(8))
    for ours, theirs in (("ctc", "loss_ctc"), ("att", "loss_att")):
        assert losses.parts[ours].item() == pytest.approx(float(expected[f"chunk8/{theirs}"]), rel=1e-5, abs=1e-4)
