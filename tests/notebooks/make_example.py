"""Makes tests/notebooks/example of trained runs: `python tests/notebooks/make_example.py RUN RUN_OF_A_GRID...`.

RUN, whose three traces of 10 test utterances and whose loads are kept, is

    moe-asr train experiment=demo moe.num_experts=8 moe.sharing=shared

and the others, of which configuration, results and validation rates are kept, are two seeds each of the grid
``moe-asr train -m experiment=balance loss.balance=0.0,0.1 seed=1,2``.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parent / "example"


def main(run: Path, grid: list[Path]) -> None:
    shutil.rmtree(EXAMPLE, ignore_errors=True)
    traces = {"offline": [], "chunk16": ["decode.chunk=16"], "initial": ["initial=true"]}
    for name, words in traces.items():
        command = ["moe-asr", "trace", str(run), "sets=[unseen]", "limit=10", f"out={EXAMPLE / name}", *words]
        subprocess.run(command, check=True)
        card = json.loads((EXAMPLE / name / "trace.json").read_text("utf8"))
        (EXAMPLE / name / "trace.json").write_text(json.dumps(card | {"run": "run", "data": "data/digits"}))
    keep_metrics(
        run,
        EXAMPLE / "run",
        lambda step, name: name.startswith("train/routing") and "/load/" in name and step % 100 == 0,
    )
    for one in grid:
        keep_run(one)


def keep_run(run: Path) -> None:
    """The configuration, and of its results and metrics what a notebook reads."""
    target = EXAMPLE / "runs" / run.name
    keep_metrics(run, target, lambda step, name: name == "val/wer")
    config = re.sub(r"(?m)^  path: .*$", "  path: data/digits", (run / "config.yaml").read_text("utf8"))
    (target / "config.yaml").write_text(re.sub(r"(?m)^runs: .*$", "runs: runs", config), "utf8")
    results = json.loads((run / "results.json").read_text("utf8"))
    for part in ("dev", "test"):
        for result in results[part].values():
            for heavy in ("experts", "router_entropy", "unreadable", "per_speaker"):
                result.pop(heavy, None)
    (target / "results.json").write_text(json.dumps(results))


def keep_metrics(run: Path, target: Path, wanted) -> None:
    target.mkdir(parents=True)
    head, *rows = (run / "metrics.csv").read_text("utf8").splitlines()
    kept = [row for row in rows if wanted(int(row.split(",")[0]), row.split(",")[1])]
    (target / "metrics.csv").write_text("\n".join([head, *kept]) + "\n", "utf8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]])
