"""Dense layers that become experts: the same outputs for every weighting that allows it, a sentence for all others."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from moe_asr.config.model import (
    Activation,
    DecoderConfig,
    EncoderConfig,
    ModelConfig,
    MoEConfig,
    RouterConfig,
    RouterLogits,
    RouterScore,
    Sharing,
)
from moe_asr.config.program import TrainConfig, UpcycleConfig
from moe_asr.errors import InputError
from moe_asr.models.batch import Batch
from moe_asr.models.u2pp import U2pp, build_model
from moe_asr.models.upcycling import upcycled

MODEL = ModelConfig(
    encoder=EncoderConfig(layers=2, width=16, heads=2, ffn_width=24, kernel=5),
    decoder=DecoderConfig(1, 1, heads=2, ffn_width=20),
)
DENSE = TrainConfig(model=MODEL)
FOUR = partial(MoEConfig, num_experts=4)
RAW, SIGMOID = RouterConfig(normalize=False), RouterConfig(score=RouterScore.sigmoid)
POSITION = RouterConfig(logits=RouterLogits.position)
EXACT = {
    "top 2": (FOUR("both"), RouterConfig()),
    "scaled sigmoid, top 3": (FOUR("both", top_k=3), replace(SIGMOID, scale=2.5)),
    "balance bias, one router": (FOUR("both", Sharing.shared), replace(SIGMOID, balance_rate=0.1)),
    "all experts, raw softmax": (FOUR("both", top_k=4), RAW),
    "top 1, frozen": (FOUR("encoder", top_k=1), RouterConfig(logits=RouterLogits.frozen)),
    "position, raw softmax": (FOUR("both", top_k=2), replace(POSITION, normalize=False)),
    "position, raw sigmoid": (FOUR("both", top_k=3), replace(POSITION, normalize=False, score=RouterScore.sigmoid)),
    "a single expert": (MoEConfig("decoder", num_experts=1, top_k=1), RAW),
    "shared experts": (FOUR("both.every2+left_to_right", shared_experts=2), RouterConfig()),
    "widths that agree": (FOUR("encoder.0", expert_widths=[24] * 4), RouterConfig()),
}


def build(config: TrainConfig) -> U2pp:
    torch.manual_seed(3)
    model = build_model(config.model, config.moe, config.router, config.loss, vocab_size=9, mel_bins=11)
    return model.double().eval()


def sown(moe: MoEConfig, router: RouterConfig, seed: int = 1, **upcycle: float) -> TrainConfig:
    return replace(DENSE, moe=moe, router=router, upcycle=UpcycleConfig(**upcycle), init_from="dense", seed=seed)


def grown(config: TrainConfig, dense: U2pp) -> U2pp:
    model = build(config)
    experts = upcycled(model, config, DENSE, dense.state_dict())
    own = model.state_dict()
    model.load_state_dict({**own, **{k: v for k, v in dense.state_dict().items() if k in own}, **experts})
    return model


@pytest.mark.parametrize("kind", EXACT)
@torch.no_grad()
def test_the_model_computes_what_the_dense_one_did(kind: str, batch: Batch) -> None:
    dense = build(DENSE)
    model = grown(sown(*EXACT[kind]), dense)
    assert len(model.routers.sites) > 0
    before, after = (
        dense.encode(batch.features, batch.feature_lengths),
        model.encode(batch.features, batch.feature_lengths),
    )
    for row, length in enumerate(before.frame_lengths.tolist()):
        assert (before.frames[row, :length] - after.frames[row, :length]).abs().max() < 1e-12
    assert model(batch)[0].total.item() == pytest.approx(dense(batch)[0].total.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("moe", "router", "remedy"),
    [
        (MoEConfig("encoder", num_experts=4, top_k=2, bias=False), RouterConfig(), r"write moe\.bias=true"),
        (FOUR("both"), RAW, r"write router\.normalize=true\.$"),
        (FOUR("both", top_k=1), RAW, r"write router\.normalize=true moe\.top_k=2\.$"),
        (FOUR("both"), replace(SIGMOID, normalize=False), r"write router\.normalize=true\.$"),
        (FOUR("both"), RouterConfig(capacity_factor=1.5), r"write router\.capacity_factor=null\.$"),
        (FOUR("encoder", expert_width=32), RouterConfig(), r"all have its 24 .* model\.encoder\.ffn_width=24\.$"),
        (FOUR("encoder", expert_widths=[24, 24, 24, 0]), RouterConfig(), r"write moe\.expert_widths=\[\]"),
        (FOUR("both", expert_width=24), RouterConfig(), r"left_to_right.* model\.decoder\.ffn_width=20\.$"),
        (FOUR("decoder", activation=Activation.swish), RouterConfig(), r"write moe\.activation=relu\.$"),
    ],
)
def test_what_cannot_be_the_same_is_refused_with_what_can(moe: MoEConfig, router: RouterConfig, remedy: str) -> None:
    config = sown(moe, router)
    with pytest.raises(InputError, match=remedy):
        upcycled(build(config), config, DENSE, build(DENSE).state_dict())


def test_a_dense_model_of_another_width_is_refused() -> None:
    config = sown(FOUR("encoder"), RouterConfig())
    other = replace(DENSE, model=replace(MODEL, encoder=replace(MODEL.encoder, width=32)))
    with pytest.raises(InputError, match=r"write model\.encoder\.width=32\.$"):
        upcycled(build(config), config, other, build(other).state_dict())


def test_a_mixture_is_continued_not_grown() -> None:
    config = sown(FOUR("encoder"), RAW)
    assert upcycled(build(config), config, config, build(config).state_dict()) == {}


def banks(model: U2pp) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if ".banks." in name}


def test_noise_makes_experts_differ_by_its_size_and_by_seed_site_and_expert() -> None:
    dense = build(DENSE)
    still = banks(grown(sown(FOUR("both"), RouterConfig()), dense))
    noisy = [banks(grown(sown(FOUR("both"), RouterConfig(), seed, noise=0.1), dense)) for seed in (1, 1, 2)]
    drawn = [noisy[0][name] - still[name] for name in still if name.endswith("w_in")]
    for name, copies in still.items():
        assert noisy[0][name].equal(noisy[1][name])
        assert not noisy[0][name].equal(noisy[2][name])
        if name.endswith("w_in"):
            size = (noisy[0][name] - copies).square().mean() / copies.square().mean()
            assert size.sqrt().item() == pytest.approx(0.1, rel=0.1)
    signs = torch.cat([d.sign()[:, :20].flatten(1) for d in drawn])
    alike = (signs[:, None] == signs[None]).all(-1)
    assert alike.equal(torch.eye(len(signs), dtype=torch.bool))


def test_dropped_units_are_drawn_anew_and_no_others() -> None:
    dense = build(DENSE)
    config = sown(FOUR("encoder"), RouterConfig())
    still, model = banks(grown(config, dense)), grown(replace(config, upcycle=UpcycleConfig(drop=0.25)), dense)
    chosen = set()
    for layer in (layer for block in model.encoder.layers for layer in (block.ffn_in, block.ffn_out)):
        (bank,) = layer.banks
        name = next(n for n, value in model.named_parameters() if value is bank.w_in).removesuffix("w_in")
        anew = bank.w_in != still[f"{name}w_in"]
        assert (anew.all(-1) == anew.any(-1)).all()
        assert anew.any(-1).equal(bank.b_in != still[f"{name}b_in"])
        assert anew.any(-1).equal((bank.w_out != still[f"{name}w_out"]).all(1))
        assert bank.b_out.equal(still[f"{name}b_out"])
        assert anew.any(-1).sum(-1).tolist() == [6] * 4
        chosen |= {tuple(row.nonzero().flatten().tolist()) for row in anew.any(-1)}
    assert len(chosen) == 16


def test_upcycling_options_need_something_to_grow_from() -> None:
    with pytest.raises(InputError, match="init_from=RUN"):
        TrainConfig(upcycle=UpcycleConfig(noise=0.1))
    with pytest.raises(InputError, match=r"upcycle\.drop=1\.5"):
        UpcycleConfig(drop=1.5)
