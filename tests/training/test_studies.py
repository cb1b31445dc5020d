"""The recorded comparison of dense, Switch and Omni models, at tiny sizes."""

from pathlib import Path

import pytest

from moe_asr.config.compose import compose_config
from moe_asr.config.program import TrainConfig
from moe_asr.training.train import train

TINY = "trainer=cpu trainer.max_steps=3 trainer.recover_every=2 trainer.progress=false logger.mode=disabled " + (
    "model.encoder.layers=2 model.encoder.width=16 model.encoder.heads=2 model.encoder.ffn_width=16 "
    "batch.seconds=20 batch.workers=0 decode.batch=8"
)
ARMS = {"dense": "moe.placement=none", "switch": "moe.sharing=per_layer", "omni": "moe.sharing=shared"}


@pytest.mark.parametrize("experiment", ["omni_claim", "gpu_day"])
def test_the_arms_of_a_study_differ_in_nothing_but_experts_and_routers(
    experiment: str, digits: Path, tmp_path: Path
) -> None:
    parameters, seen = {}, set()
    for arm, option in ARMS.items():
        options = [f"experiment={experiment}", f"data.path={digits}", f"runs={tmp_path}", *TINY.split(), option]
        results = train(compose_config("train", TrainConfig, [*options, f"name={arm}"]))
        assert set(results["test"]) == {"seen", "unseen"}
        assert all(test["per"] > 0 for test in results["test"].values())
        parameters[arm] = results["params_total"], results["params_active"]
        seen.add((tmp_path / arm / "ledger.jsonl").read_text())
    assert len(seen) == 1
    experts = compose_config("train", TrainConfig, [f"experiment={experiment}"]).moe.num_experts
    feed_forward = 2 * (2 * 16 * 16 + 16 + 16)
    dense = parameters["dense"][0]
    assert parameters["switch"] == (dense + (experts - 1) * feed_forward + 2 * 16 * experts, dense + 2 * 16 * experts)
    assert parameters["omni"] == tuple(count - 16 * experts for count in parameters["switch"])
