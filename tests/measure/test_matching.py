"""Solved widths: counted again, they are as large as what they are matched to; what has no width is refused."""

import dataclasses
from pathlib import Path

import pytest
import torch

from moe_asr.config.compose import compose_config, to_plain
from moe_asr.config.model import EncoderConfig, LossConfig, ModelConfig, MoEConfig
from moe_asr.config.program import Match, TrainConfig
from moe_asr.errors import InputError
from moe_asr.features.tokenizer import Tokenizer
from moe_asr.measure import flops, matching
from moe_asr.measure.matching import matched
from moe_asr.models.u2pp import build_model, parameter_counts
from moe_asr.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from moe_asr.runs.directory import config_hash


def composed(*words: str) -> TrainConfig:
    return compose_config("train", TrainConfig, list(words))


def sizes(config: TrainConfig, vocab_size: int) -> dict[Match, float]:
    with torch.device("meta"):
        model = build_model(
            config.model,
            config.moe,
            config.router,
            LossConfig(),
            vocab_size=vocab_size,
            mel_bins=config.features.mel_bins,
        )
    total, active = parameter_counts(model)
    parts = flops.recognition(config.model, config.moe, config.decode, config.features.mel_bins, vocab_size)
    whole = sum(parts[part] for part in parts if part.startswith(("encoder and", "rescoring")))
    return {Match.total: total, Match.active: active, Match.flops: whole}


SHALLOW = ["model=u2pp_225m", "model.encoder.layers=2", "model.decoder.layers=1", "model.decoder.reverse_layers=1"]
MIXTURES = {
    "both": ["moe.placement=both"],
    "shared experts": ["moe.placement=encoder", "moe.num_experts=4", "moe.top_k=3", "moe.shared_experts=1"],
    "some decoders": ["moe.placement=encoder.every2+left_to_right", "moe.sharing=shared"],
}


@pytest.mark.parametrize("kind", Match)
@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_mixture_is_as_large_as_the_dense_model(kind: Match, mixture: str) -> None:
    found, line = matched(composed(*SHALLOW, *MIXTURES[mixture], f"match={kind}", "match_to=dense"), 500)
    size, target = sizes(found, 500)[kind], sizes(composed(*SHALLOW), 500)[kind]
    assert size == pytest.approx(target, rel=0.01)
    assert found.moe.expert_width % 8 == 0
    for wrong in (-8, 8):
        moe = dataclasses.replace(found.moe, expert_width=found.moe.expert_width + wrong)
        other = sizes(dataclasses.replace(found, moe=moe), 500)[kind]
        assert abs(other - target) >= abs(size - target)
    assert line.startswith(f"match={kind}: moe.expert_width={found.moe.expert_width}, ")
    assert f"of dense ({100 * (size / target - 1):+.2f} %), at 500 tokens." in line


def test_a_width_that_was_solved_is_plain_and_solved_again_the_same() -> None:
    words = ["moe.placement=both", "moe.num_experts=4", "moe.top_k=1", "router=switch"]
    first = matched(composed(*words, "match=active", "match_to=dense"), 30)[0]
    assert (first.match, first.match_to) == (None, None)
    assert matched(first, 30) == (first, "")
    explicit = composed(*words, f"moe.expert_width={first.moe.expert_width}")
    assert config_hash(to_plain(explicit)) == config_hash(to_plain(first))
    # top 1 without width of its own: the experts are as wide as the dense layers, of which these have two widths
    alike = composed("model.decoder.ffn_width=432", *words, "match=flops", "match_to=dense", "loss.ctc_weight=1.0")
    assert matched(alike, 30)[0].moe.expert_width in (424, 432)  # what the router costs is taken from the experts


@pytest.mark.parametrize("kind", Match)
def test_a_dense_model_is_as_large_as_the_mixture_that_a_run_trained(kind: Match, tmp_path: Path) -> None:
    mixture = composed("moe.placement=both", "moe.num_experts=4", "moe.expert_widths=[432,432,200,0]")
    file = tmp_path / "run.pt"
    tokenizer = Tokenizer(mixture.tokenizer.unit, tuple(map(str, range(40))))
    save_checkpoint(file, Checkpoint(mixture, tokenizer, {}))
    assert load_checkpoint(file).config == mixture
    found, line = matched(composed(f"match={kind}", f"match_to={file}"), 9999)
    assert sizes(found, 40)[kind] == pytest.approx(sizes(mixture, 40)[kind], rel=0.01)
    widths = found.model.encoder.ffn_width, found.model.decoder.ffn_width
    assert widths[1] == pytest.approx(widths[0] * 288 / 432, abs=4)
    assert "at 40 tokens" in line


def test_a_preset_is_a_target() -> None:
    found, _ = matched(composed("moe.placement=encoder", "match=total", "match_to=u2pp_small"), 500)
    assert sizes(found, 500)[Match.total] == pytest.approx(
        sizes(composed("model=u2pp_small"), 500)[Match.total], rel=0.01
    )
    omni = matched(composed("match=total", "match_to=omni_tiny"), 500)[0]
    assert sizes(omni, 500)[Match.total] == pytest.approx(
        sizes(composed("model=omni_tiny"), 500)[Match.total], rel=0.01
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["model=u2pp_small", "match=total", "match_to=u2pp_tiny"],
            r"needs model\.encoder\.ffn_width=-\d+, less than 8: ",
        ),
        (
            ["moe.placement=both", "moe.num_experts=256", "match=total", "match_to=dense"],
            r"take fewer experts \(moe\.num",
        ),
        (
            ["moe.placement=both", "moe.expert_width=64", "match=total", "match_to=dense"],
            r"leave out moe\.expert_width and",
        ),
        (["match=total", "match_to=u2pp_tny"], r"no model preset; did you mean u2pp_tiny\?"),
    ],
)
def test_what_has_no_solution_is_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        matched(composed(*words), 500)


def test_experts_of_any_width_count_as_often_as_they_are_chosen_on_average() -> None:
    words = ["moe.placement=left_to_right", "moe.num_experts=4", "moe.top_k=3", "moe.expert_widths=[40,0,8,40]"]
    found, dense = (sizes(composed(*more), 10) for more in (words, []))
    experts = sum(2 * 144 * width + width + 144 for width in (40, 8, 40))
    router, layer = 4 * 144, 2 * 144 * 288 + 288 + 144
    assert found[Match.total] == dense[Match.total] - layer + experts + router
    assert found[Match.active] == dense[Match.total] - layer + experts * 3 // 4 + router


def test_match_and_match_to_belong_together() -> None:
    with pytest.raises(InputError, match="belong together"):
        composed("match=total")


def test_a_preset_is_matched_with_its_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    mixture = "model: {encoder: {layers: 2}}\nmoe: {placement: encoder, num_experts: 4}\n"
    (tmp_path / "model" / "mixture.yaml").write_text(mixture)
    monkeypatch.setattr(matching, "config_folder", lambda: tmp_path)
    monkeypatch.setattr(matching, "groups", lambda: {"model": ["mixture"]})
    mixed = TrainConfig(ModelConfig(encoder=EncoderConfig(layers=2)), MoEConfig("encoder", num_experts=4))
    target = sizes(mixed, 500)[Match.total]
    found, _ = matched(composed("match=total", "match_to=mixture"), 500)
    assert sizes(found, 500)[Match.total] == pytest.approx(target, rel=0.01)
