"""What training says about its experts, and what it does about losses that are not numbers."""

import csv
import dataclasses
import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch import nn

from moe_asr.config.data import BatchConfig
from moe_asr.config.model import ConvNorm, LossConfig, MoEConfig, RouterConfig, RouterScore
from moe_asr.config.placement import MoESite
from moe_asr.config.program import Accelerator, LoggerConfig, LoggerMode, TrainConfig, TrainerConfig
from moe_asr.errors import InputError, JobError
from moe_asr.models.batch import Batch
from moe_asr.models.u2pp import U2pp
from moe_asr.modules.feed_forward import ACTIVATIONS
from moe_asr.modules.moe.experts import Experts
from moe_asr.modules.moe.layer import MoEFeedForward
from moe_asr.modules.moe.routers import make_router
from moe_asr.modules.moe.sharing import RouterBank
from moe_asr.runs.checkpoint import load_checkpoint
from moe_asr.training.module import AsrTraining
from moe_asr.training.optimisation import expert_gradients, router_gradients
from moe_asr.training.train import outline, train

SITES = [MoESite("encoder", i, "ffn_out") for i in range(3)]


def test_router_gradients_are_those_of_routers_that_served() -> None:
    bank = RouterBank(lambda: make_router(RouterConfig(), MoEConfig(num_experts=3), 4), SITES, (0, 0, 1))
    bank.routers[0].project.weight.grad = torch.full((3, 4), 2.0)
    assert router_gradients(bank, SITES[:2]) == {"0": pytest.approx(2 * 12**0.5)}
    assert router_gradients(bank, SITES) == {"0": pytest.approx(2 * 12**0.5), "1": 0.0}
    bank.routers[1].requires_grad_(False)
    assert router_gradients(bank, SITES[2:]) == {}
    single = RouterBank(lambda: make_router(RouterConfig(), MoEConfig(num_experts=1, top_k=1), 4), SITES, (0, 0, 0))
    assert router_gradients(single, SITES) == {}


def test_expert_gradients_are_named_by_site_and_expert() -> None:
    layer = MoEFeedForward([6, 0, 4, 6], lambda count, hidden: Experts(count, 5, hidden, ACTIVATIONS["relu"], 0.0))
    for parameter in layer.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    model = nn.ModuleDict({"encoder": nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"ffn_in": layer})])})})
    found = expert_gradients(model)
    assert list(found) == [f"encoder.00.ffn_in/grad_norm/{e}" for e in (0, 3, 2)], "a null expert has none"
    of_three = [p.grad[1].flatten() for p in layer.banks[0].parameters()]
    assert found["encoder.00.ffn_in/grad_norm/3"] == pytest.approx(torch.cat(of_three).norm().item())


@pytest.fixture
def short(tiny: TrainConfig, tmp_path: Path) -> TrainConfig:
    """Two epochs of four steps of two micro-batches; sigmoid routers with a balance bias, a batch norm."""
    encoder = dataclasses.replace(tiny.model.encoder, conv_norm=ConvNorm.batch_norm)
    return dataclasses.replace(
        tiny,
        model=dataclasses.replace(tiny.model, encoder=encoder),
        moe=MoEConfig("both", num_experts=4, top_k=1),
        router=RouterConfig(score=RouterScore.sigmoid, normalize=False, balance_rate=0.01),
        data=dataclasses.replace(tiny.data, test=["unseen"], limit=16),
        batch=BatchConfig(seconds=60, utterances=2, bucket_ratio=100.0),
        trainer=TrainerConfig(
            accelerator=Accelerator.cpu, epochs=2, accumulate=2, average=1, threads=1, progress=False, max_skipped=3
        ),
        logger=LoggerConfig(mode=LoggerMode.disabled, every=2),
        runs=str(tmp_path / "runs"),
        name="run",
    )


def metrics(run: Path) -> dict[str, dict[int, float]]:
    """By name and step."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for row in csv.DictReader((run / "metrics.csv").read_text().splitlines()):
        found[row["metric"]][int(row["step"])] = float(row["value"])
    return found


@pytest.mark.slow
def test_the_load_of_every_expert_is_written_down(
    short: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = train(short)
    found = metrics(tmp_path / "runs" / "run")
    sites = [f"encoder.00.{slot}" for slot in ("ffn_in", "ffn_out")]
    sites += [f"{stack}.00.ffn_out" for stack in ("left_to_right", "right_to_left")]
    for site in sites:
        for prefix, steps in (("routing", [4, 8]), ("train/routing", [1, 2, 4, 6, 8])):
            loads = [found[f"{prefix}/{site}/load/{e}"] for e in range(4)]
            assert [sorted(load) for load in loads] == [steps] * 4
            for step in steps:
                load = [own[step] for own in loads]
                assert sum(load) == pytest.approx(1)
                assert max(load) == found[f"{prefix}/{site}/load_max"][step]
            names = ("load_min", "load_cv", "entropy", "dropped", "dead_experts", "probability/3")
            assert all(sorted(found[f"{prefix}/{site}/{name}"]) == steps for name in names)
        norms = [found[f"train/routing/{site}/grad_norm/{e}"][8] for e in range(4)]
        assert max(norms) > 0
        used = [found[f"train/routing/{site}/load/{e}"][8] > 0 for e in range(4)]
        assert all(norm == 0 for norm, of in zip(norms, used, strict=True) if not of)
    assert all(found[f"grad_norm/routers/{n}"][8] > 0 for n in range(4))
    unseen = results["test"]["unseen"]
    assert sites == list(unseen["experts"]) == list(unseen["router_entropy"])
    assert "4 MoE sites (both) with 4 experts each, top 1, 4 routers (per_layer); 0.0" in capsys.readouterr().out


def infinite(monkeypatch: pytest.MonkeyPatch, poisoned: set[str]) -> None:
    """The features of these utterances become NaN."""
    forward = U2pp.forward

    def changed(self: U2pp, batch: Batch, *args: object) -> object:
        bad = torch.tensor([name in poisoned for name in batch.ids])
        features = batch.features.masked_fill(bad[:, None, None], float("nan"))
        return forward(self, dataclasses.replace(batch, features=features), *args)

    monkeypatch.setattr(U2pp, "forward", changed)


@pytest.mark.slow
def test_a_step_that_is_not_finite_changes_nothing_and_names_its_utterances(
    short: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(dataclasses.replace(short, name="sound"))
    lines = (tmp_path / "runs" / "sound" / "ledger.jsonl").read_text().splitlines()
    batches = [json.loads(line) for line in lines]
    culprit, partner = batches[3]["utterances"]  # of the second micro-batch of the second step
    infinite(monkeypatch, {culprit})
    states, step = [], AsrTraining.configure_gradient_clipping

    def watched(self: AsrTraining, optimizer: torch.optim.Optimizer, **options: object) -> None:
        trained = {"bias": self.model.routers.bias, **dict(self.model.named_parameters())}
        weights = {name: value.detach().clone() for name, value in trained.items()}
        states.append((weights, [int(state["step"]) for state in optimizer.state.values()]))
        step(self, optimizer, **options)
        if len(states) == 2:
            assert all(value.isfinite().all() for value in self.model.state_dict().values())

    monkeypatch.setattr(AsrTraining, "configure_gradient_clipping", watched)
    capsys.readouterr()
    assert train(dataclasses.replace(short, runs=str(tmp_path / "others")))["skipped_steps"] == 2
    said = capsys.readouterr().err
    assert f"The loss of step 2 is not finite (epoch 0, batch 3: {culprit}, {partner}); the step is skipped." in said
    assert said.count("is skipped") == 2, "once in each epoch"
    found = metrics(tmp_path / "others" / "run")
    assert min(found["train/skipped_step"]) == 2
    assert len(found["train/skipped_step"]) == 2
    # The third step begins with the weights, bias and optimiser of the second.
    assert all(states[2][0][name].equal(value) for name, value in states[1][0].items())
    assert set(states[2][1]) == set(states[1][1]) == {1}
    assert not all(states[1][0][name].equal(value) for name, value in states[0][0].items())
    assert all(value.isfinite().all() for value in load_checkpoint(tmp_path / "others" / "run").weights.values())


@pytest.mark.slow
def test_steps_that_are_never_finite_end_the_training(
    short: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moe_asr.training import train as module

    def broken(*args: object) -> object:
        model = initial(*args)
        model.ctc.output.weight.data[0, 0] = float("inf")
        return model

    initial = module.initial_model
    monkeypatch.setattr(module, "initial_model", broken)
    with pytest.raises(JobError, match=r"The loss of step 3 is not finite \(epoch 0, batch 4: .* 3 steps running"):
        train(short)
    assert sorted(metrics(tmp_path / "runs" / "run")["train/skipped_step"]) == [1, 2, 3]
    assert not (tmp_path / "runs" / "run" / "results.json").exists()
    patient = dataclasses.replace(short.trainer, max_skipped=100)
    with pytest.raises(JobError, match="Every step was skipped"):
        train(dataclasses.replace(short, trainer=patient, runs=str(tmp_path / "others")))


@pytest.mark.slow
def test_a_collapse_is_told_once_and_kept(
    short: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router whose logits are certain: one expert for all, and exactly no gradient."""
    from moe_asr.training import train as module

    def certain(*args: object) -> object:
        model = initial(*args)
        for router in model.routers.routers:
            router.register_forward_pre_hook(lambda router, args: (args[0].detach().abs() + 1, *args[1:]))
            router.project.weight.data[:] = torch.tensor([1e4, 0.0, 0.0, 0.0]).unsqueeze(1)
        return model

    initial = module.initial_model
    monkeypatch.setattr(module, "initial_model", certain)
    config = dataclasses.replace(
        short,
        moe=MoEConfig("encoder.ffn_out", num_experts=4, top_k=1),
        router=RouterConfig(normalize=False),
        loss=LossConfig(),
    )
    results = train(config)
    alarms = [(alarm["step"], alarm["where"], alarm["dead"]) for alarm in results["alarms"]]
    assert alarms == [(2, "0", []), (8, "encoder.00.ffn_out", [1, 2, 3])]
    said = capsys.readouterr().err
    assert said.count("Alarm, step 2: router 0 gets no gradient") == 1
    assert said.count("Alarm, step 8: the routing of encoder.00.ffn_out has collapsed (3 dead experts (1, 2, 3)") == 1


def test_a_batch_norm_forbids_checkpoints_of_activations(short: TrainConfig) -> None:
    with pytest.raises(InputError, match=r"write model\.encoder\.conv_norm=layer_norm"):
        dataclasses.replace(short, trainer=TrainerConfig(checkpoint_activations=True))


def test_a_dense_model_says_so(tiny: TrainConfig) -> None:
    from moe_asr.features.tokenizer import SPECIALS, Tokenizer
    from moe_asr.runs.checkpoint import build

    dense = dataclasses.replace(tiny, moe=MoEConfig())
    line = outline(dense, build(dense, Tokenizer(tiny.tokenizer.unit, SPECIALS)))
    assert line.startswith("0 MoE sites: a dense model of 0.0")
