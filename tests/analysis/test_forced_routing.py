"""Others may choose the experts of a trained model: at random, always one, all but one, or as a trace says."""

from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from lhotse.cut import Cut

from moe_asr.analysis.evaluation import evaluate_set
from moe_asr.analysis.forcing import forced
from moe_asr.analysis.record import record_trace
from moe_asr.analysis.trace import Trace, load_trace
from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.config.model import MoEConfig, RouterConfig, RouterScore
from moe_asr.config.routing import RoutingConfig
from moe_asr.data.manifest import load_samples, read_split
from moe_asr.errors import InputError
from moe_asr.modules.moe.routing import concatenate
from moe_asr.runs.checkpoint import build
from moe_asr.runs.recognizer import Recognizer
from moe_asr.tensors import Chunking

RANDOM = RoutingConfig("random")
SWITCH = RouterConfig(normalize=False)


def make(untrained: Path, moe: MoEConfig, router: RouterConfig | None = None) -> Recognizer:
    """The untrained model, with other experts; it says something all the same."""
    known = Recognizer.load(untrained)
    config = replace(known.config, moe=moe, router=router or RouterConfig())
    torch.manual_seed(1)
    model = build(config, known.tokenizer)
    own = {n: v for n, v in known.model.state_dict().items() if "ffn" not in n and "routers" not in n}
    model.load_state_dict(own, strict=False)
    return Recognizer.of(model, known.tokenizer, config)


@pytest.fixture(scope="module")
def recognizer(untrained: Path) -> Recognizer:
    return make(untrained, MoEConfig("both", num_experts=4, top_k=2))


@pytest.fixture(scope="module")
def cuts(digits: Path) -> list[Cut]:
    return read_split(digits, "seen")


@pytest.fixture(scope="module")
def speech(cuts: list[Cut]) -> dict[str, torch.Tensor]:
    return {cut.id: torch.from_numpy(load_samples(cut)) for cut in cuts[:3]}


def traced(recognizer: Recognizer, cuts: list[Cut], folder: Path, decode: DecodeConfig) -> Trace:
    record_trace(recognizer, {"seen": cuts}, decode, folder, 10**6, {})
    return load_trace(folder)


def replay(folder: Path) -> RoutingConfig:
    return RoutingConfig("replay", str(folder))


def ids_of(recognizer: Recognizer, speech: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """(P,K) by site, of all valid frames."""
    trace = recognizer.decode(list(speech.values()), DecodeConfig(), list(speech))[1]
    return {str(part.site): part.routing.expert_ids[part.valid] for part in trace}


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("mode", [DecodeMode.ctc_greedy, DecodeMode.attention_rescoring])
def test_a_replay_of_its_own_routing_changes_no_bit(
    recognizer: Recognizer, cuts: list[Cut], tmp_path: Path, chunk: int | None, mode: DecodeMode
) -> None:
    decode = DecodeConfig(mode, chunk, batch=3, beam=3)
    own = traced(recognizer, cuts[:5], tmp_path / "own", decode)
    again = forced(recognizer, replay(tmp_path / "own"))
    repeated = traced(again, cuts[:5], tmp_path / "again", decode)
    assert own.utterances == repeated.utterances
    for site, rows in own.sites.items():
        for name, array in vars(rows).items():
            numpy.testing.assert_array_equal(array, vars(repeated.sites[site])[name])
    samples = [torch.from_numpy(load_samples(cut)) for cut in cuts[:3]]
    assert (
        again.decode(samples, decode, [cut.id for cut in cuts[:3]])[0]
        != forced(recognizer, RANDOM).decode(samples, decode)[0]
    )


@torch.inference_mode()
def test_a_replay_holds_in_a_stream_bit_for_bit(recognizer: Recognizer, cuts: list[Cut], tmp_path: Path) -> None:
    """Decisions of the full context are repeated chunk by chunk, where the routers themselves decide otherwise."""
    trace = traced(recognizer, cuts[:3], tmp_path, DecodeConfig())
    again, encoder = forced(recognizer, replay(tmp_path)), recognizer.model.encoder
    name = trace.utterances[1]["id"]
    samples = torch.from_numpy(load_samples(next(cut for cut in cuts if cut.id == name)))
    features, _ = recognizer.log_mel(samples.unsqueeze(0), torch.tensor([len(samples)]))
    streamed = {}
    for who in (recognizer, again):
        state, traces, parts = encoder.start(1, Chunking(4)), [], features.split(50, dim=1)
        for part in parts:
            ending = torch.tensor([part is parts[-1]])
            output, state = encoder.step(
                part, torch.tensor([part.shape[1]]), state, who.routers, ending, who.side([name])
            )
            traces.append(output.routing)
        streamed[who is again] = concatenate(trace for trace in traces if trace)
    begin, end = trace.offsets["encoder"][1:3]
    own, repeated = ({str(p.site): p.routing for p in streamed[replayed]} for replayed in (False, True))
    assert not torch.equal(own["encoder.00.ffn_out"].expert_ids, repeated["encoder.00.ffn_out"].expert_ids)
    for site, routing in repeated.items():
        numpy.testing.assert_array_equal(routing.expert_ids[0], trace.sites[site].ids[begin:end])
        numpy.testing.assert_array_equal(routing.weights[0], trace.sites[site].weights[begin:end])


@pytest.mark.parametrize("mode", [DecodeMode.ctc_greedy, DecodeMode.attention, DecodeMode.attention_rescoring])
def test_forced_routing_is_the_same_in_a_stream(
    recognizer: Recognizer, speech: dict[str, torch.Tensor], cuts: list[Cut], tmp_path: Path, mode: DecodeMode
) -> None:
    """Random routing, and its replay, which knows nothing of chance: texts of both are those of the chunk mask."""
    decode, (name, samples) = DecodeConfig(mode, 4, beam=2), next(iter(speech.items()))
    drawn = forced(recognizer, RoutingConfig("random", sites="encoder"))
    trace = traced(drawn, cuts[:3], tmp_path, decode)
    (facts,) = (facts for facts in trace.utterances if facts["id"] == name)
    for who in (drawn, forced(recognizer, replay(tmp_path))):
        session = who.stream(4, None, decode, name=name)
        session.push(samples)
        assert session.finish().text == facts["hypothesis"]
        assert who.decode([samples], decode, [name])[0][0].text == facts["hypothesis"]
    assert recognizer.decode([samples], decode, [name])[0] != drawn.decode([samples], decode, [name])[0]


def test_random_routing_is_uniform_whatever_the_batch(recognizer: Recognizer, cuts: list[Cut], tmp_path: Path) -> None:
    drawn = forced(recognizer, RANDOM)
    trace = traced(drawn, cuts, tmp_path / "a", DecodeConfig(batch=3))
    for rows in trace.sites.values():
        assert (rows.ids[:, 0] != rows.ids[:, 1]).all()
        shares = numpy.bincount(rows.ids.flatten(), minlength=4) / rows.ids.size
        assert abs(shares - 0.25).max() < 4 * (0.25 * 0.75 / rows.ids.size) ** 0.5
    sites = [rows.ids for site, rows in trace.sites.items() if site.startswith("encoder")]
    assert 0.2 < (sites[0][:, 0] == sites[1][:, 0]).mean() < 0.3
    alone = traced(drawn, cuts, tmp_path / "b", DecodeConfig(batch=1, chunk=4))
    for site in ("encoder.00.ffn_in", "encoder.00.ffn_out"):
        numpy.testing.assert_array_equal(trace.sites[site].ids, alone.sites[site].ids)


def test_one_expert_takes_all_where_it_is_forced(untrained: Path, cuts: list[Cut], tmp_path: Path) -> None:
    switch = make(untrained, MoEConfig("encoder", num_experts=4, top_k=1), SWITCH)
    own, one = (
        evaluate_set(who, cuts[:4], switch.config, DecodeConfig(), tmp_path / "x.jsonl")["experts"]
        for who in (switch, forced(switch, RoutingConfig("expert_1", sites="encoder.0.ffn_out")))
    )
    assert one["encoder.00.ffn_out"] == [0.0, 1.0, 0.0, 0.0] != own["encoder.00.ffn_out"]
    assert one["encoder.00.ffn_in"] == own["encoder.00.ffn_in"]


@pytest.mark.parametrize("router", [RouterConfig(), SWITCH, RouterConfig(score=RouterScore.sigmoid, balance_rate=0.1)])
def test_without_an_expert_the_next_best_takes_its_place(
    untrained: Path, speech: dict[str, torch.Tensor], router: RouterConfig
) -> None:
    known = make(untrained, MoEConfig("encoder", num_experts=4, top_k=2), router)
    bias = torch.tensor([0.0, 0.5, 0.0, 0.2]) if router.balance_rate else torch.zeros(4)
    if known.model.routers.bias is not None:
        known.model.routers.bias.copy_(bias)
    names, samples = list(speech), list(speech.values())
    less = forced(known, RoutingConfig("without_1", sites="encoder.0.ffn_in"))
    own, other = (who.decode(samples, DecodeConfig(), names)[1][0] for who in (known, less))
    ids, weights = other.routing.expert_ids[own.valid], other.routing.weights[own.valid]
    before, used = own.routing.expert_ids[own.valid], (own.routing.expert_ids[own.valid] == 1).any(-1)
    assert not (ids == 1).any()
    assert torch.equal(ids[~used], before[~used])
    assert torch.equal(weights[~used], own.routing.weights[own.valid][~used])
    assert used.any()
    scores = own.routing.logits[own.valid]
    scores = scores.sigmoid() if router.score is RouterScore.sigmoid else scores.softmax(-1)
    assert torch.equal(ids, (scores + bias).masked_fill(torch.arange(4) == 1, -1.0).topk(2).indices)
    expected = scores.gather(-1, ids)
    torch.testing.assert_close(weights, expected / expected.sum(-1, keepdim=True) if router.normalize else expected)


@pytest.mark.slow
def test_chance_is_worse_than_a_trained_router(trained_moe: Path, digits: Path, tmp_path: Path) -> None:
    known, cuts = Recognizer.load(trained_moe), read_split(digits, "train")
    own, drawn = (
        evaluate_set(who, cuts, known.config, DecodeConfig(), tmp_path / "x.jsonl")
        for who in (known, forced(known, RANDOM))
    )
    assert own["wer"] < 0.1 < drawn["wer"] - own["wer"]
    assert numpy.ptp(list(drawn["experts"].values())) < 0.06 < numpy.ptp(list(own["experts"].values()))


def test_what_cannot_be_forced_is_said(
    recognizer: Recognizer, untrained: Path, cuts: list[Cut], speech: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    traced(recognizer, cuts[:1], tmp_path / "one", DecodeConfig())
    dense, narrow = make(untrained, MoEConfig()), make(untrained, MoEConfig("encoder.0.ffn_in", num_experts=4, top_k=4))
    traced(narrow, cuts[:1], tmp_path / "narrow", DecodeConfig())
    refusals = {
        "this model is dense and has no routing": (dense, RANDOM),
        "this model's experts are 0 to 3": (recognizer, RoutingConfig("expert_4")),
        "all 4 experts are needed, as moe.top_k=4": (narrow, RoutingConfig("without_0")),
        "names no MoE site of this model, which has encoder.00.ffn_in": (
            narrow,
            RoutingConfig("random", sites="decoder"),
        ),
        "routing.sites=encoder.9 names 'encoder.9', which this model has not": (
            recognizer,
            RoutingConfig("random", sites="encoder.9"),
        ),
        "names no encoder site": (recognizer, replace(replay(tmp_path / "one"), sites="decoder")),
        "is of another model (top 4 of 4 experts at encoder.00.ffn_in)": (recognizer, replay(tmp_path / "narrow")),
        "is of another model (top 2 of 4": (narrow, replay(tmp_path / "one")),
        "holds no whole trace": (recognizer, replay(tmp_path)),
    }
    for sentence, (who, config) in refusals.items():
        with pytest.raises(InputError) as refused:
            forced(who, config)
        assert sentence in str(refused.value)
    again = forced(recognizer, replay(tmp_path / "one"))
    name, other = list(speech)[:2]
    assert cuts[0].id == name
    for names, samples in (([other], [speech[name]]), ([name], [torch.cat([speech[name]] * 2)])):
        with pytest.raises(
            InputError, match=r"routing.trace has not all frames .* 1 utterances from .*; trace the same"
        ):
            again.decode(samples, DecodeConfig(), names)
    assert forced(recognizer, RoutingConfig()) is recognizer


def test_a_permutation_gives_each_expert_the_work_of_another(recognizer: Recognizer, speech: dict) -> None:
    samples, names = list(speech.values()), list(speech)
    own = recognizer.decode(samples, names=names)[1]
    swapped = forced(recognizer, RoutingConfig("permuted_1")).decode(samples, names=names)[1]
    again = forced(recognizer, RoutingConfig("permuted_1")).decode(samples, names=names)[1]
    before, after = own[0].routing.expert_ids[own[0].valid], swapped[0].routing.expert_ids[own[0].valid]
    order = dict(zip(before.flatten().tolist(), after.flatten().tolist(), strict=True))
    assert after.flatten().tolist() == [order[old] for old in before.flatten().tolist()]
    assert len(set(order.values())) == len(order) > 1
    assert any(old != new for old, new in order.items())
    assert all(a.routing.expert_ids.equal(b.routing.expert_ids) for a, b in zip(swapped, again, strict=True))
    only = forced(recognizer, RoutingConfig("permuted_1", sites="encoder.0.ffn_in")).decode(samples, names=names)[1]
    assert only[0].routing.expert_ids.equal(swapped[0].routing.expert_ids)
