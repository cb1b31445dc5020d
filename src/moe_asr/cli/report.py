"""`moe-asr report PATH...`: a sweep, or any runs, as one HTML page, a CSV of all runs and test sets, and JSON."""

from typing import Any

from moe_asr.config.pages import ReportConfig

CONFIG = ReportConfig


def run(config: ReportConfig) -> None:
    import csv
    from pathlib import Path

    from moe_asr.analysis.report import report
    from moe_asr.analysis.report_runs import read_study
    from moe_asr.config.program import LoggerMode
    from moe_asr.errors import InputError
    from moe_asr.runs.directory import write_atomically, write_json

    if not config.paths:
        raise InputError("A report of what? Write: moe-asr report SWEEP_DIR, or folders of runs.")
    study = read_study(config.paths)
    page, plain = report(study, config.set)
    first = Path(config.paths[0])
    folder = Path(config.out) if config.out else first if len(config.paths) == 1 else first.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    lines = plain["runs"]
    names = list(dict.fromkeys(name for line in lines for name in line))

    def write_table(file: Any) -> None:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)

    write_atomically(folder / "report.csv", write_table)
    write_json(folder / "report.json", plain)
    write_atomically(folder / "report.html", lambda file: file.write(page))
    done = sum(entry.results is not None for entry in study.entries)
    print(
        f"{done} of {len(study.entries)} runs done, {len(study.points)} points, on {', '.join(study.sets) or 'nothing'}"
    )
    for effect in plain["effects"]:
        print(f"  {effect['axis']}: {effect['value']} against {effect['against']}: {effect['verdict']}")
    if config.wandb is not LoggerMode.disabled:
        log_table(config, folder, study.title, names, lines)
    print(f"report: {folder / 'report.html'}")


def log_table(config: ReportConfig, folder: Any, title: str, names: list[str], lines: list[dict[str, Any]]) -> None:
    """The lines of the report as the table `report` of a W&B run."""
    import wandb

    from moe_asr.training.logs import wandb_run

    about = {"project": config.project, "name": f"report {title}", "job_type": "report", "dir": folder}
    run = wandb_run(config.wandb, "wandb", **about)
    try:
        # A column is of numbers or of texts.
        rows = [[line.get(name) for name in names] for line in lines]
        run.log({"report": wandb.Table(columns=names, data=rows, allow_mixed_types=True)})
    finally:
        run.finish()
