"""Every notebook runs on the committed example, answers its question, and is the same in both of its forms."""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.py"))
ANSWERS = {
    "01_routing_correlation": r"a Cramér's V of 0\.\d\d on average, .* Before training it was",
    "02_expert_specialisation": r"phone \d+ % \(\d of 8 sites beyond 95 % of their null\).* pairs of expert and phone",
    "03_utilisation_over_training": r"\d\.\d of 8 experts are in effect at the end, .* routing (is|has)",
    "04_streaming_vs_offline_routing": r"The first expert changes for \d+\.\d % of the decisions",
    "05_sweep_results": r"is best with \d+\.\d\d %.* over 2 paired seeds, 95 % interval",
}


@pytest.mark.parametrize("script", NOTEBOOKS, ids=lambda path: path.stem)
def test_both_forms_are_the_same_and_hold_no_output(script: Path) -> None:
    notebook, paired = jupytext.read(script), nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    assert [(c.cell_type, c.source) for c in notebook.cells] == [(c.cell_type, c.source) for c in paired.cells]
    code = [cell for cell in paired.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert notebook.cells[0].source.splitlines()[0].endswith("?")
    assert notebook.cells[-2].source.startswith("## Answer")


@pytest.mark.slow
@pytest.mark.parametrize("script", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_answers_its_question(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRACE", "INITIAL", "OTHER", "RUN", "RUNS"):
        monkeypatch.delenv(f"MOE_ASR_{name}", raising=False)
    notebook = jupytext.read(script)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": FOLDER}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    assert sum("image/svg+xml" in output.get("data", {}) for output in outputs) >= 2
    assert re.search(ANSWERS[script.stem], outputs[-1].text, re.DOTALL)
