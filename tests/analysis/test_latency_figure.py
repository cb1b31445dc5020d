import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from moe_asr.analysis.latency_figure import COLOURS, Axis, latency_figure
from moe_asr.config.commands import EvaluateConfig
from moe_asr.errors import InputError

SVG = "{http://www.w3.org/2000/svg}"


def result(mode: str, chunk: int | None, left: int | None, wer: float, seconds: float, split: str) -> dict[str, Any]:
    latency = {"words": 9, "settled_p50": seconds}
    decode = {"mode": mode, "chunk": chunk, "left": left}
    return {"split": split, "unit": "word", "wer": wer, "wer_ci95": [wer / 2, wer * 2], "decode": decode} | {
        "latency": latency
    }


def results() -> dict[str, Any]:
    points = [
        ("ctc_greedy", 4, None, 0.2, 0.1),
        ("ctc_greedy", 4, 2, 0.3, 0.1),
        ("ctc_greedy", 32, None, 0.1, 0.7),
        ("attention", None, None, 0.05, 12.0),
    ]
    test = {f"{split}{i}": result(*p, split) for split in ("a & b", "c") for i, p in enumerate(points)}
    return {"test": test, "largest_trained_chunk": 25}


def test_every_point_is_drawn_where_it_belongs() -> None:
    root = ElementTree.fromstring(latency_figure(results()))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"a & b", "c", "4", "32", "full", "WER (%)", "ctc greedy", "attention"} <= set(texts)
    assert "ctc prefix beam" not in texts
    for panel in root.findall(f"{SVG}g"):
        marks = [path for path in panel.iter(f"{SVG}path") if "scale" in path.get("transform", "")]
        places = [tuple(map(float, re.findall(r"[\d.]+", path.get("transform", "")))) for path in marks]
        assert len(marks) == 4
        greedy, limited, beyond, whole = places
        assert greedy[0] == limited[0] < beyond[0] < whole[0]  # later is right
        assert limited[1] < greedy[1] < beyond[1] < whole[1]  # better is low
        assert [place[2] for place in places] == [1, 0.55, 1, 1]
        blue, green = COLOURS["ctc_greedy"], COLOURS["attention"]
        assert [mark.get("fill") for mark in marks] == [blue, blue, "white", green]


def test_negative_latencies_and_zero_rates_have_a_place() -> None:
    axis = Axis([-0.3, 0.0, 20.0], 0.25, 0, 100, (-1, 0, 20, 100))
    assert 0 < axis(-0.3) < axis(0) < axis(20.0) < 100
    assert axis.ticks == [0, 20]
    assert Axis([2.0], 1.0, 0, 100, ())(2.0) == pytest.approx(50)


def test_without_latencies_there_is_nothing_to_draw() -> None:
    plain = {"test": {"a": {"unit": "word", "wer": 0.1}}, "largest_trained_chunk": None}
    with pytest.raises(InputError, match="latency=true"):
        latency_figure(plain)
    with pytest.raises(InputError, match="latency=true"):
        EvaluateConfig(run="runs/x", figure="x.svg")
    once = results() | {"largest_trained_chunk": None}
    assert "hollow" not in latency_figure(once)
