import copy

import pytest
import torch
from torch import nn

from moe_asr.config.inference import ExpertBackend, InferencePrecision
from moe_asr.errors import InputError
from moe_asr.models import inference
from moe_asr.models.inference import halve, prepare
from moe_asr.models.u2pp import parameter_counts
from moe_asr.modules import fused, packed
from moe_asr.modules.feed_forward import FeedForward, FusedFeedForward
from moe_asr.modules.moe import experts as backends
from moe_asr.modules.moe.experts import Experts, loop, sorted_rows
from moe_asr.modules.moe.layer import MoEFeedForward
from moe_asr.modules.packed import PackedLinear
from moe_asr.modules.subsampling import ConvolutionalSubsampling, PackedSubsampling, pack_subsampling
from moe_asr.tensors import Chunking

ERROR = {InferencePrecision.fp32: 1e-5, InferencePrecision.bf16: 5e-2, InferencePrecision.int8: 2e-1}
"""Relative, in norm, of log probabilities of a random model, after all its layers."""


@pytest.fixture(params=["dense", "per_layer", "shared"])
def model(request, make_model):
    return make_model(request.param).float()


def outputs(model, batch):
    """What CTC and a decoder say, and the routing."""
    encoded = model.encode(batch.features.float(), batch.feature_lengths)
    decoder = model.decoders["left_to_right"]
    memory = decoder.memory(encoded)
    logits, trace = decoder(batch.tokens.clamp(min=0), batch.token_lengths, memory, routers=model.routers)
    return model.ctc_log_probs(encoded.frames), logits, encoded.routing + trace


@pytest.mark.parametrize("precision", list(InferencePrecision))
def test_a_prepared_model_says_the_same(model, batch, precision):
    if not packed.supported(precision):
        pytest.skip(f"no {precision} kernels on this machine")
    state = copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        expected = outputs(model, batch)
        prepare(model, precision)
        found = outputs(model, batch)
    for one, two in zip(found[:2], expected[:2], strict=True):
        error = ((one - two).norm() / two.norm()).item()
        assert error < ERROR[precision]
        assert error > 1e-4 or precision is InferencePrecision.fp32
    assert all(site.routing.logits.dtype is torch.float32 for site in found[2])
    kinds = {type(module) for name, module in model.named_modules() if "routers" in name and name.endswith("project")}
    assert kinds <= {nn.Linear}
    packs = {name for name, module in model.named_modules() if isinstance(module, PackedLinear)}
    assert {"encoder.layers.0.attention.qkv", "ctc.output"} <= packs
    assert isinstance(model.encoder.subsampling, PackedSubsampling)
    assert model.state_dict().keys() == state.keys()
    assert all(value.equal(state[key]) for key, value in model.state_dict().items())
    with_gradients = outputs(model, batch)[0]  # computed by the parameters themselves
    assert torch.allclose(with_gradients, expected[0], atol=1e-5)
    with_gradients.sum().backward()
    assert model.encoder.layers[0].attention.qkv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("precision", list(InferencePrecision))
def test_released_weights_are_not_needed_to_infer(make_model, batch, precision):
    if not packed.supported(precision):
        pytest.skip(f"no {precision} kernels on this machine")
    model, small = make_model("per_layer").float(), make_model("per_layer").float()
    prepare(model, precision)
    prepare(small, precision, release=True)
    with torch.inference_mode():
        for one, two in zip(outputs(small, batch)[:2], outputs(model, batch)[:2], strict=True):
            assert one.equal(two)
        stream = small.encoder.start(2, Chunking(4))
        output, _ = small.encoder.step(batch.features[:2].float(), batch.feature_lengths[:2], stream, small.routers)
        assert output.frames.isfinite().all()
    assert parameter_counts(small) == parameter_counts(model)
    held = sum(parameter.untyped_storage().nbytes() for parameter in small.parameters())
    assert held < 0.3 * sum(parameter.untyped_storage().nbytes() for parameter in model.parameters())
    assert outputs(small, batch)[0].isnan().any()  # with gradients


@pytest.mark.parametrize("frames", [1, 5, 16, 17, 40])
@pytest.mark.parametrize("precision", list(InferencePrecision))
def test_a_packed_subsampling_computes_what_it_replaces(precision, frames):
    if not packed.supported(precision):
        pytest.skip(f"no {precision} kernels on this machine")
    torch.manual_seed(0)
    plain = ConvolutionalSubsampling(20, 24, 32).eval()
    fast, features = copy.deepcopy(plain), torch.randn(3, 4 * frames + 5, 20)
    pack_subsampling(fast, precision)
    with torch.inference_mode():
        found, expected = fast(features), plain(features)
    assert found.shape == (3, frames, 24)
    assert (found - expected).norm() / expected.norm() < {"fp32": 1e-6, "bf16": 1e-2, "int8": 4e-2}[precision]
    with torch.no_grad():
        fast.conv1.weight.mul_(2)
        plain.conv1.weight.mul_(2)
        assert fast(features).equal(plain(features))


def test_a_dense_layer_is_fused_as_one_expert(make_model, batch):
    if not fused.supported(InferencePrecision.fp32):
        pytest.skip("no compiler on this machine")
    model = make_model("dense").float()
    layers = [layer for layer in model.modules() if isinstance(layer, FeedForward)]
    prepare(model)
    assert len(layers) > 2
    assert {type(layer) for layer in layers} == {FusedFeedForward}
    other = copy.deepcopy(model)  # whose weights are elsewhere, so that they rule
    with torch.inference_mode():
        for one, two in zip(outputs(model, batch)[:2], outputs(other, batch)[:2], strict=True):
            assert not one.equal(two)
            assert torch.allclose(one, two, atol=1e-5)
        before = outputs(model, batch)[0]
        layers[0].w_out.weight.mul_(2.0)
        assert not torch.allclose(outputs(model, batch)[0], before, atol=1e-3)


def test_new_weights_rule(make_model, batch):
    if not packed.supported(InferencePrecision.int8):
        pytest.skip("no int8 kernels on this machine")
    model, other = make_model("shared").float(), make_model("shared").float()
    with torch.inference_mode():
        for parameter in other.parameters():
            parameter.mul_(1.25)
        prepare(model, InferencePrecision.int8)
        before = outputs(model, batch)[0]
        model.load_state_dict(other.state_dict())
        assert torch.allclose(outputs(model, batch)[0], outputs(other, batch)[0], atol=1e-5)
        assert not torch.allclose(outputs(model, batch)[0], before, atol=1e-2)


def test_backends_are_chosen_by_name_or_by_what_the_machine_can_do(make_model, monkeypatch):
    model = make_model("shared")

    def chosen(*options):
        prepare(model, *options)
        (backend,) = {module.backend for module in model.modules() if isinstance(module, Experts)}
        return backend

    fp32, bf16 = InferencePrecision.fp32, InferencePrecision.bf16
    assert chosen(fp32, ExpertBackend.loop) is loop
    assert chosen(fp32, ExpertBackend.sorted) is sorted_rows
    with pytest.raises(InputError, match=r"experts=loop computes in fp32: write experts=auto or precision=fp32"):
        chosen(bf16, ExpertBackend.loop)
    monkeypatch.setattr(fused, "library", lambda: None)
    assert prepare(make_model("shared")) is ExpertBackend.packed
    with pytest.raises(InputError, match=r"fused kernel cannot compute in fp32 here.*experts=packed"):
        chosen(fp32, ExpertBackend.fused)
    for module in (inference, packed):
        monkeypatch.setattr(module, "supported", lambda precision: False)
    assert chosen() is sorted_rows
    with pytest.raises(InputError, match=r"precision=bf16 has no kernels on this machine"):
        chosen(bf16)
    with pytest.raises(InputError, match=r"precision=int8 is for CPUs: write device=cpu, or precision=bf16"):
        prepare(make_model("dense").to("meta"), InferencePrecision.int8)
    with pytest.raises(InputError, match=r"Packed weights are for CPUs: write device=cpu, or experts=auto"):
        prepare(make_model("dense").to("meta"), bf16, ExpertBackend.packed)


def test_on_a_gpu_bf16_rounds_the_weights_themselves(make_model, batch):
    """Tried on the CPU, which can do the same."""
    model = make_model("per_layer").float()
    with torch.inference_mode():
        expected = outputs(model, batch)
    halve(model)
    with torch.inference_mode():
        found = outputs(model, batch)
        stream = model.encoder.start(2, Chunking(4))
        output, _ = model.encoder.step(batch.features[:2].float(), batch.feature_lengths[:2], stream, model.routers)
    assert output.frames.dtype is torch.float32
    for one, two in zip(found[:2], expected[:2], strict=True):
        assert one.dtype is torch.float32
        assert 1e-4 < (one - two).norm() / two.norm() < ERROR[InferencePrecision.bf16]
    assert all(site.routing.logits.dtype is torch.float32 for site in found[2])
    types = {name.rpartition(".")[0]: parameter.dtype for name, parameter in model.named_parameters()}
    assert {types[name] for name in types if "routers" in name or "norm" in name} == {torch.float32}
    halved = {"encoder.subsampling.conv2", "encoder.layers.0.attention.qkv", "ctc.output"}
    halved |= {name for name, module in model.named_modules() if isinstance(module, Experts)}
    assert {types[name] for name in halved} == {torch.bfloat16}
    assert prepare(make_model("per_layer").to("meta"), InferencePrecision.bf16) is ExpertBackend.sorted


def test_the_grouped_product_reads_nothing_on_the_host(monkeypatch):
    """Tensors without contents: what would have to wait for a GPU fails on them."""
    monkeypatch.setattr(backends, "_computed_in", lambda rows: torch.bfloat16)
    experts = Experts(4, 16, 24, nn.functional.silu, 0.0).bfloat16().to("meta")
    rows, ids = torch.randn(10, 16, device="meta"), torch.zeros(10, 2, dtype=torch.long, device="meta")
    with torch.no_grad():
        found = backends.grouped(experts, rows, ids, rows[:, :2])
        with pytest.raises(RuntimeError, match="bincount"):  # which counts the rows of each expert
            sorted_rows(experts, rows, ids, rows[:, :2])
    assert (found.shape, found.dtype) == ((10, 16), torch.float32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_no_expert_in_bf16_is_waited_for(make_model):
    model = make_model("per_layer").float().cuda()
    prepare(model, InferencePrecision.bf16)
    layer = next(module for module in model.modules() if isinstance(module, MoEFeedForward))
    site, x = model.routers.sites[0], torch.randn(2, 6, 16, device="cuda")
    valid = torch.ones(2, 6, dtype=torch.bool, device="cuda")
    with torch.inference_mode():
        expected, _ = layer(x, valid, site, model.routers.get(site))
        torch.cuda.set_sync_debug_mode("error")
        try:
            found, _ = layer(x, valid, site, model.routers.get(site))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert found.dtype is torch.float32
    assert found.equal(expected)
