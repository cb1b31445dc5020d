"""Equality with numbers that the reference implementation computed (WeNet, float32), of models imported from it.

"compact" travels with the project and always runs: a dense model and, as a layer of its own, a Mixture of Experts.
"dense" and "moe" are the full numbers of both models, compared where ../shared/parity is there.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import compact_golden
import numpy as np
import pytest
import torch
from torch import Tensor

import moe_asr
from moe_asr.config.model import RouterConfig
from moe_asr.config.placement import MoESite
from moe_asr.decoding.ctc_greedy import ctc_greedy
from moe_asr.interop.wenet import import_wenet, wenet_names
from moe_asr.models.batch import Batch
from moe_asr.models.u2pp import AsrModel, label_smoothing_loss, teacher_forcing
from moe_asr.modules.feed_forward import ACTIVATIONS
from moe_asr.modules.moe.experts import Experts
from moe_asr.modules.moe.layer import MoEFeedForward
from moe_asr.modules.moe.routers import TopKRouter
from moe_asr.modules.positions import sinusoids
from moe_asr.tensors import Chunking

GOLDEN = Path(__file__).parents[2] / "../shared/parity"
CONTEXTS = [(4, -1), (4, 2), (8, -1), (8, 2), (16, -1), (16, 2)]


@dataclass(frozen=True)
class Golden:
    model: AsrModel
    batch: Batch
    expected: Mapping[str, np.ndarray]
    names: Mapping[str, tuple[str, ...]]
    """Our tensor -> the reference's."""
    rounded: bool
    """Whether these are the compact numbers, whose weights are rounded."""


@pytest.fixture(scope="module", params=["compact", "dense", "moe"])
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "compact":
        inputs, expected = compact_golden.write_directory(folder)
        import_wenet(folder, folder / "run")
    elif not GOLDEN.exists():
        pytest.skip("the full golden numbers (../shared/parity) are not here")
    else:
        import_wenet(GOLDEN / request.param, folder / "run")
        inputs, expected = (dict(np.load(GOLDEN / request.param / f"{side}puts.npz")) for side in ("in", "out"))
    model = moe_asr.load(folder / "run").model
    batch = Batch(
        tuple("abcd"),
        torch.from_numpy(inputs["feats"]),
        torch.from_numpy(inputs["feats_lengths"]).long(),
        torch.from_numpy(inputs["target"]),
        torch.from_numpy(inputs["target_lengths"]).long(),
        5.81,
    )
    return Golden(model, batch, expected, wenet_names(model), request.param == "compact")


def worst(ours: Tensor, theirs: np.ndarray, lengths: Tensor | None = None) -> float:
    """The largest difference; with lengths (B,), on valid positions of as many utterances as theirs has."""
    rows = len(theirs) if lengths is not None else len(ours)
    assert ours[:rows].shape == theirs.shape
    difference = (ours[:rows].detach() - torch.from_numpy(theirs)).abs()
    if lengths is None:
        return float(difference.max())
    return max(float(row[:length].max()) for row, length in zip(difference, lengths[:rows].tolist(), strict=True))


def parts(tensor: Tensor, ours: str, names: tuple[str, ...]) -> tuple[Tensor, ...]:
    """One tensor of ours as the reference's."""
    return tensor.unbind() if ".banks." in ours else tensor.chunk(len(names))


def contexts(golden: Golden, pattern: str) -> list[tuple[str, Chunking]]:
    """The chunkings for which there are numbers, under their names."""
    named = [
        (pattern.format(f"chunk{size}_left{left}"), Chunking(size, left if left >= 0 else None))
        for size, left in CONTEXTS
    ]
    found = [(name, chunking) for name, chunking in named if name in golden.expected]
    assert len({chunking.size for _, chunking in found}) == 3
    return found


def test_every_foreign_tensor_has_a_place(golden: Golden) -> None:
    trained = {name for names in golden.names.values() for name in names if "cmvn" not in name}
    assert set(golden.expected["grad_names"].tolist()) == trained


@torch.inference_mode()
def test_encoder_and_ctc(golden: Golden) -> None:
    model, batch, expected = golden.model, golden.batch, golden.expected
    output = model.encode(batch.features, batch.feature_lengths)
    assert output.frame_lengths.tolist() == [58, 41, 28, 13] == expected["enc_mask"].sum((1, 2)).tolist()
    assert worst(output.frames, expected["enc_full"], output.frame_lengths) < 1e-5
    log_probs = model.ctc_log_probs(output.frames)
    assert worst(log_probs, expected["ctc_logp_full"], output.frame_lengths) < 5e-5
    hypotheses = ctc_greedy(log_probs, output.frame_lengths)
    for hypothesis, tokens in zip(hypotheses, expected["dec_full/ctc_greedy_search/tokens"], strict=True):
        assert list(hypothesis.tokens) == tokens[tokens >= 0].tolist()
    for name, chunking in contexts(golden, "enc_{}"):
        chunked = model.encode(batch.features, batch.feature_lengths, chunking)
        assert worst(chunked.frames, expected[name], output.frame_lengths) < 1e-5
        if (name := name.replace("enc", "ctc_logp")) in expected:
            logs = model.ctc_log_probs(chunked.frames)
            assert worst(logs, expected[name], output.frame_lengths) < 5e-5


@torch.inference_mode()
def test_streaming(golden: Golden) -> None:
    model, batch, expected = golden.model, golden.batch, golden.expected
    streams = [0, 3]
    features, lengths = batch.features[streams], batch.feature_lengths[streams]
    for name, chunking in contexts(golden, "stream3_{}/enc"):
        state = model.encoder.start(2, chunking)
        frames: list[list[Tensor]] = [[], []]
        for first in range(0, 250, 50):
            now = (lengths - first).clamp(0, 50)
            finish = (lengths > first) & (lengths <= first + 50)
            output, state = model.encoder.step(features[:, first : first + 50], now, state, model.routers, finish)
            for i in range(2):
                frames[i].append(output.frames[i, : output.frame_lengths[i]])
        whole, other = (torch.cat(rows) for rows in frames)
        assert worst(other, expected[name][0]) < 1e-5
        masked = expected[name.replace("stream3", "enc").removesuffix("/enc")]
        assert worst(whole, masked[0]) < 1e-5


@torch.inference_mode()
def test_caches_of_a_stream(golden: Golden) -> None:
    """Values are cached alike; our keys hold their positions already, our convolution caches what follows its GLU."""
    model, batch, expected = golden.model, golden.batch, golden.expected
    state = model.encoder.start(1, Chunking(8, 2))
    compared = 0
    for step in range(7):
        new = batch.features[:1, :35] if step == 0 else batch.features[:1, 32 * step + 3 : 32 * step + 35]
        _, state = model.encoder.step(new, torch.tensor([new.shape[1]]), state, model.routers)
        assert state.positions.tolist() == [8 * (step + 1)]
        if f"stream0_chunk8_left2/att_cache_step{step}" not in expected:
            continue
        compared += 1
        attention = torch.from_numpy(expected[f"stream0_chunk8_left2/att_cache_step{step}"])
        inputs = torch.from_numpy(expected[f"stream0_chunk8_left2/cnn_cache_step{step}"])
        count = attention.shape[2]
        assert count == min(8 * (step + 1), 16)
        positions = torch.arange(8 * (step + 1) - count, 8 * (step + 1))
        for i, (layer, (kept, history)) in enumerate(zip(model.encoder.layers, state.layers, strict=True)):
            keys, values = kept[..., :-1].chunk(2, -1)
            key, value = attention[i].transpose(0, 1).chunk(2, -1)
            position = layer.attention.position(sinusoids(positions, history.shape[-1]))
            assert worst(keys[0, -count:], (key + position.view_as(key)).numpy()) < 2e-5
            assert worst(values[0, -count:], value.numpy()) < 2e-5
            mapped = torch.nn.functional.glu(layer.convolution.pointwise_in(inputs[i].mT), -1)
            assert worst(history, mapped.numpy()) < 1e-5
    assert compared >= 1


@torch.inference_mode()
def test_decoders(golden: Golden) -> None:
    model, batch, expected = golden.model, golden.batch, golden.expected
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


def test_routing(golden: Golden) -> None:
    model, expected = golden.model, golden.expected
    with torch.inference_mode():
        _, trace = model(golden.batch)
    assert len(trace) == sum("gate_logits" in name for name in expected) == len(model.routers.table)
    for number, site in enumerate(trace):
        (name,) = golden.names[f"routers.routers.{number}.project.weight"]
        theirs = expected[f"gate_logits/{name.removesuffix('.gate.weight')}"].reshape(site.routing.logits.shape)
        assert np.abs(site.routing.logits.numpy() - theirs)[site.valid.numpy()].max() < 2e-5
        chosen = np.sort(np.argsort(-theirs, -1)[..., :2], -1)
        assert (np.sort(site.routing.expert_ids.numpy(), -1) == chosen)[site.valid.numpy()].all()


def test_losses_and_gradients(golden: Golden) -> None:
    model, batch, expected = golden.model, golden.batch, golden.expected
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
    norms = dict(zip(expected["grad_names"].tolist(), expected["grad_norms"], strict=True))
    for ours, parameter in model.named_parameters():
        assert parameter.grad is not None
        for name, gradient in zip(golden.names[ours], parts(parameter.grad, ours, golden.names[ours]), strict=True):
            # Keys' biases cancel in the softmax: their gradients are rounding noise.
            relative = 5e-4 if golden.rounded and name.startswith("encoder.embed.conv.0") else 1e-4
            assert float(gradient.norm()) == pytest.approx(norms.pop(name), rel=relative, abs=1e-5), name
    assert not norms
    total = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert float(total) == pytest.approx(float(expected["grad_total_norm"]), rel=1e-5)
    with torch.inference_mode():
        losses, _ = model(batch, Chunking(8))
    for ours, theirs in (("ctc", "loss_ctc"), ("att", "loss_att")):
        assert losses.parts[ours].item() == pytest.approx(float(expected[f"chunk8/{theirs}"]), rel=1e-5, abs=1e-4)


def test_five_optimiser_steps(golden: Golden) -> None:
    model, expected = copy.deepcopy(golden.model), golden.expected  # in evaluation mode: no dropout
    optimizer = torch.optim.Adam(model.parameters())
    for rate, loss, norm in zip(*(expected[f"train5/{name}"] for name in ("lr", "loss", "grad_norm")), strict=True):
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad()
        total = model(golden.batch)[0].total
        total.backward()
        assert total.item() == pytest.approx(loss, abs=1e-4)
        assert float(torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)) == pytest.approx(norm, abs=1e-4)
        optimizer.step()


@torch.inference_mode()
def test_a_layer_of_experts() -> None:
    """Alone with the compact numbers: two of eight experts, on the frames that choose them."""
    arrays = {
        name: torch.from_numpy(array)
        for name, array in compact_golden.read(compact_golden.HERE / "moe_layer.xz").items()
    }
    hidden, width = arrays[f"{arrays['kept'][0]}.w_1.weight"].shape
    router = TopKRouter(width, 8, 2, RouterConfig())
    router.project.weight.copy_(arrays["router"])
    layer = MoEFeedForward([hidden] * 8, lambda count, size: Experts(count, width, size, ACTIVATIONS["swish"], 0.0))
    experts = layer.banks[0]
    for stack, name in (("w_in", "w_1.weight"), ("b_in", "w_1.bias"), ("w_out", "w_2.weight"), ("b_out", "w_2.bias")):
        getattr(experts, stack).fill_(torch.nan)
        for expert in arrays["kept"].tolist():
            getattr(experts, stack)[expert] = arrays[f"{expert}.{name}"]
    x = arrays["in"].unsqueeze(0)
    site = MoESite("encoder", 0, "ffn_in")
    y, routing = layer(x, torch.ones(x.shape[:2], dtype=torch.bool), site, router)
    assert routing is not None
    assert x.shape[1] == 15
    assert worst(routing.logits[0], arrays["logits"].numpy()) < 1e-5
    assert set(routing.expert_ids.unique().tolist()) == set(arrays["kept"].tolist())
    assert worst(y[0], arrays["out"].numpy()) < 1e-5
