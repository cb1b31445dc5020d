"""What figures hold: axes that say what they show, a mark for each number, and the same bytes each time."""

import importlib
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy
import pytest
from matplotlib.axes import Axes

from moe_asr.analysis import figures
from moe_asr.analysis.figures import Point
from moe_asr.config.commands import EvaluateConfig
from moe_asr.errors import InputError

LOADS = {"encoder.00.ffn_in": [0.1, 0.2, 0.7], "encoder.00.ffn_out": [0.4, 0.3, 0.3]}


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def labels(axes: Axes) -> tuple[str, str]:
    return axes.get_xlabel(), axes.get_ylabel()


def ticks(axes: Axes, axis: str) -> list[str]:
    return [label.get_text() for label in getattr(axes, f"get_{axis}ticklabels")()]


def test_a_load_map_writes_every_share_in_its_cell() -> None:
    axes, bar = figures.load_map(LOADS, "dev").axes
    assert (axes.get_title(), bar.get_ylabel()) == ("dev", "load (even shares)")
    assert ticks(axes, "y") == list(LOADS)
    assert texts(axes) == ["10", "20", "70", "40", "30", "30"]
    numpy.testing.assert_allclose(axes.collections[0].get_array().flatten()[:3], [0.3, 0.6, 2.1])
    wide, _ = figures.load_map({"a": [1 / 64] * 64}).axes
    assert texts(wide) == []
    assert [label for label in ticks(wide, "x") if label][:2] == ["0", "3"]


def test_correlations_are_a_square_of_sites() -> None:
    axes, bar = figures.correlation(["a", "b"], numpy.array([[1.0, 0.25], [0.25, 1.0]]), "NMI").axes
    assert (ticks(axes, "x"), ticks(axes, "y"), bar.get_ylabel()) == (["a", "b"], ["a", "b"], "NMI")
    assert texts(axes) == ["1.00", ".25", ".25", "1.00"]
    assert axes.collections[0].get_clim() == (0, 1)


def test_an_expert_map_has_one_time_axis_for_words_spectrogram_and_sites() -> None:
    choices = numpy.array([[0, 1, 1, -1], [2, 2, 0, 0]])
    words = [("one", 0.0, 0.08), ("two", 0.1, 0.16)]
    figure = figures.expert_map(choices, ["low", "high"], 3, numpy.ones((16, 80)), words, 0.04, "utterance")
    said, mel, sites, _ = figure.axes
    assert (said.get_title(), texts(said)) == ("utterance", ["one", "two"])
    assert [text.xy[0] for text in said.texts] == pytest.approx([0.04, 0.13])
    assert mel.images[0].get_extent() == [0, 0.16, 0, 80]
    assert sites.images[0].get_extent() == [0, 0.16, 0, 2]
    shown = sites.images[0].get_array()
    assert shown.mask.tolist() == [[False, False, False, True], [False] * 4]
    assert shown[1].tolist() == [2, 2, 0, 0]
    assert (ticks(sites, "y"), sites.get_xlabel(), sites.get_xlim()) == (["low", "high"], "time (s)", (0, 0.16))
    assert len(figures.expert_map(choices, ["low", "high"], 3).axes) == 3


def test_specialisation_marks_what_is_significant() -> None:
    values = numpy.array([[1.0, -numpy.inf, 0.0], [0.5, 0.2, -1.0]])
    axes, bar = figures.specialisation(values, ["0", "1"], ["p", "t", "k"], values > 0.4, "log2").axes
    mesh, dots = axes.collections
    assert dots.get_offsets().tolist() == [[0.5, 0.5], [0.5, 1.5]]
    low, high = mesh.get_clim()
    assert low == -high < 0
    assert mesh.get_array()[0, 1] == low
    assert (ticks(axes, "x"), labels(axes)[1], bar.get_ylabel()) == (["p", "t", "k"], "expert", "log2")


def test_a_pareto_front_joins_what_nothing_beats() -> None:
    points = [
        Point(1, 5, 4, 6, "moe"),
        Point(2, 6, series="dense"),
        Point(3, 2, series="dense", name="big", hollow=True),
    ]
    figure = figures.pareto({"one": points, "two": points[:1]}, "RTF", "WER (%)", note="note")
    one, two = figure.axes
    assert one.lines[0].get_xydata().tolist() == [[1, 5], [3, 2]]
    marks = [line for line in one.lines if len(line.get_xdata()) == 1]
    assert [tuple(line.get_xydata()[0]) for line in marks] == [(1, 5), (2, 6), (3, 2)]
    assert [line.get_markerfacecolor() for line in marks] == [*figures.PALETTE[:2], "none"]
    assert [line.get_marker() for line in marks] == ["o", "s", "s"]
    assert [1.0, 1.0] in [list(line.get_xdata()) for line in one.lines]  # the interval
    assert (texts(one), labels(one), one.get_title(), two.get_title()) == (["big"], ("RTF", "WER (%)"), "one", "two")
    assert [text.get_text() for text in figure.legends[0].texts] == ["moe", "dense"]


def test_zero_and_negative_values_have_a_place_and_ticks_have_room() -> None:
    points = [Point(x, y) for x, y in ((-0.3, 0.0), (0.0, 3.0), (20.0, 100.0))]
    axes = figures.pareto({"": points}, "s", "%", 0.25, 2.0).axes[0]
    for axis in (axes.xaxis, axes.yaxis):
        places = axis.get_transform().transform(axis.get_majorticklocs())
        assert 0 in axis.get_majorticklocs()
        assert numpy.diff(places).min() > 0.06 * numpy.ptp(places)
    assert ticks(axes, "x")[0].startswith("-0.")


def result(mode: str, chunk: int | None, left: int | None, wer: float, seconds: float, split: str) -> dict[str, Any]:
    latency = {"words": 9, "settled_p50": seconds}
    decode = {"mode": mode, "chunk": chunk, "left": left}
    return {"split": split, "unit": "word", "wer": wer, "wer_ci95": [wer / 2, wer * 2], "decode": decode} | {
        "latency": latency
    }


def test_latencies_are_drawn_from_results() -> None:
    points = [
        ("ctc_greedy", 4, None, 0.2, 0.1),
        ("ctc_greedy", 4, 2, 0.3, 0.1),
        ("ctc_greedy", 32, None, 0.1, 0.7),
        ("attention", None, None, 0.05, 12.0),
    ]
    test = {f"{split}{i}": result(*p, split) for split in ("a & b", "c") for i, p in enumerate(points)}
    figure = figures.latency({"test": test, "largest_trained_chunk": 25})
    assert [axes.get_title() for axes in figure.axes] == ["a & b", "c"]
    for axes in figure.axes:
        marks = [line for line in axes.lines if len(line.get_xdata()) == 1]
        assert [tuple(line.get_xydata()[0]) for line in marks] == [(0.1, 20), (0.1, 30), (0.7, 10), (12, 5)]
        assert [line.get_markersize() for line in marks] == [7, 4, 7, 7]
        assert [line.get_markerfacecolor() == "none" for line in marks] == [False, False, True, False]
        assert texts(axes) == ["4", "32", "full"]
    assert [text.get_text() for text in figure.legends[0].texts] == ["ctc greedy", "attention"]
    assert labels(figure.axes[0]) == ("median latency of a word after its true end (s)", "WER (%)")
    with pytest.raises(InputError, match="latency=true"):
        figures.latency({"test": {"a": {"unit": "word", "wer": 0.1}}, "largest_trained_chunk": None})
    with pytest.raises(InputError, match="latency=true"):
        EvaluateConfig(run="runs/x", figure="x.svg")


def test_curves_of_an_arm_share_a_colour_and_one_entry_of_the_legend() -> None:
    steps = [1, 2, 3]
    point = "ffn_width=256 placement=encoder sharing=shared"  # too long for a line
    curves = {"dense": [(steps, [3, 2, 1]), (steps, [3, 3, 1])], point: [(steps, [2, 1, 0.5])]}
    figure = figures.learning_curves(curves, "loss (nats)", log=True)
    (axes,) = figure.axes
    assert len({line.get_color() for line in axes.lines[:2]}) == 1 != len({line.get_color() for line in axes.lines})
    names = ["dense", "ffn_width=256 placement=encoder\nsharing=shared"]
    assert [text.get_text() for text in figure.legends[0].texts] == names
    assert (labels(axes), axes.get_yscale()) == (("step", "loss (nats)"), "log")


def test_loads_over_training_stack_up_to_all() -> None:
    sites = {f"s{i}": ([0, 10], numpy.array([[0.5, 0.5], [0.9, 0.1]])) for i in range(5)}
    figure = figures.utilisation(sites)
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in shown] == list(sites)
    top = shown[0].collections[1].get_paths()[0].vertices
    assert top[:, 1].max() == pytest.approx(100)
    assert figure.axes[0].get_ylabel() == "load (%)"
    assert [text.get_text() for text in figure.legends[0].texts] == ["0", "1"]


def test_bars_of_a_group_lie_together() -> None:
    values = {"dense": {"clean": (3.0, 2.0, 4.0), "noise": (9.0, None, None)}, "moe": {"noise": (8.0, 7.0, 9.0)}}
    figure = figures.bars(values, "WER (%)")
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [3, 9, 8]
    middles = [bar.get_y() + bar.get_height() / 2 for bar in axes.patches]
    assert middles == pytest.approx([-0.2, 0.8, 1.2])
    assert [list(line.get_xdata()) for line in axes.lines] == [[2, 4], [7, 9]]
    assert (ticks(axes, "y"), axes.get_xlabel()) == (["clean", "noise"], "WER (%)")


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_the_same_figure_is_the_same_file(tmp_path: Path, suffix: str) -> None:
    for name in "ab":
        figures.save(figures.load_map(LOADS), tmp_path / (name + suffix))
    a, b = ((tmp_path / (name + suffix)).read_bytes() for name in "ab")
    assert a == b


def test_a_page_gets_an_element_that_takes_its_colours(tmp_path: Path) -> None:
    element = figures.svg(figures.learning_curves({"a<b": [([1, 2], [3, 4])]}, "loss"))
    root = ElementTree.fromstring(element)
    assert (root.tag, root.get("fill")) == ("{http://www.w3.org/2000/svg}svg", "currentColor")
    assert "#000000" not in element
    assert "metadata" not in element
    assert "a<b" in [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]


def test_what_cannot_be_drawn_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = figures.load_map(LOADS)
    with pytest.raises(InputError, match=r"x.gif is no name for a figure: end it in .svg, .png or .pdf"):
        figures.save(figure, tmp_path / "x.gif")
    with pytest.raises(InputError, match="cannot be written"):
        figures.save(figure, tmp_path / "none" / "x.svg")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "moe_asr.analysis.figures")
    with pytest.raises(InputError, match=r"pip install 'moe-asr\[analysis\]'"):
        importlib.import_module("moe_asr.analysis.figures")
