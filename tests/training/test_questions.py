"""Every question can be asked at equal parameters, active parameters and FLOPs; its dense points stay what they are."""

import re

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from moe_asr.config.compose import compose_config, config_folder
from moe_asr.config.program import TrainConfig
from moe_asr.measure.matching import matched

QUESTIONS = ("placement", "sharing", "chunk", "balance", "topk", "router", "placement_x_sharing", "scaling")


def grid(question: str) -> list[list[str]]:
    written = OmegaConf.load(config_folder() / "experiment" / f"{question}.yaml").hydra.sweeper.params
    said = OverridesParser.create().parse_overrides([f"{axis}={values}" for axis, values in written.items()])
    return [[f"experiment={question}", *point] for point in BasicSweeper.split_arguments(said, None)[0]]


def test_grids_have_the_points_that_they_are_asked_for() -> None:
    sizes = {question: len(grid(question)) for question in QUESTIONS}
    assert sizes == {
        "placement": 6,
        "sharing": 9,
        "chunk": 3,
        "balance": 4,
        "topk": 3,
        "router": 5,
        "placement_x_sharing": 9,
        "scaling": 18,
    }


def fits(question: str, match: str, points: list[list[str]]) -> None:
    for point in points:
        config = compose_config("train", TrainConfig, [*point, f"match={match}", "match_to=dense"])
        solved, line = matched(config, 12)
        if "moe.placement=none" in point:
            assert "(+0.00 %)" in line
            assert solved.model == config.model
        else:
            assert solved.moe.expert_width is not None
        difference = re.search(r"\(([+-][\d.]+) %\)", line)
        assert difference is not None
        assert abs(float(difference[1])) < 4, f"{question}: {line}"


@pytest.mark.parametrize("match", ["total", "active", "flops"])
def test_a_question_of_where_can_be_matched(match: str) -> None:
    fits("placement", match, grid("placement")[:3])


@pytest.mark.slow
@pytest.mark.parametrize("match", ["total", "active", "flops"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_every_point_can_be_matched(question: str, match: str) -> None:
    fits(question, match, grid(question))
