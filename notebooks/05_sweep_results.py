# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which point of a sweep is best, and is the difference larger than that between seeds?
#
# Reads a sweep, or any folder of runs. `moe-asr report` shows the same and more on a page.
#
# For runs of yours: `MOE_ASR_RUNS` is a folder of runs, or of a sweep.

# %%
import os
from pathlib import Path

import numpy
from IPython.display import SVG
from scipy.stats import t

from moe_asr.analysis import figures
from moe_asr.analysis.report_runs import measured, read_study

EXAMPLE = Path("../tests/notebooks/example")
study = read_study([os.environ.get("MOE_ASR_RUNS", str(EXAMPLE / "runs"))])
done = {study.label(point): [e for e in entries if e.results] for point, entries in study.points.items()}
done = {label: entries for label, entries in done.items() if entries}
print(f"{sum(map(len, done.values()))} of {len(study.entries)} runs are done, at {len(done)} points of the grid")

# %% [markdown]
# ## Error rates by set: mean and standard deviation over seeds

# %%
rates = {
    name: {
        label: numpy.array([100 * measured(e, name)["rate"] for e in entries if name in e.sets])
        for label, entries in done.items()
    }
    for name in study.sets
}
for name, by_point in rates.items():
    for label, values in by_point.items():
        spread = f" (sd {values.std(ddof=1):.2f}, {len(values)} seeds)" if len(values) > 1 else ""
        print(f"{name:12} {label:40} {values.mean():6.2f} %{spread}")

# %%
chosen = study.sets[-1]


def bar(values):
    """The mean and its 95 % t interval over seeds."""
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else None
    mean = float(values.mean())
    return (mean, None, None) if half is None else (mean, max(mean - half, 0.0), mean + half)


SVG(
    figures.svg(
        figures.bars({"": {label: bar(v) for label, v in rates[chosen].items()}}, f"error rate on {chosen} (%)")
    )
)

# %% [markdown]
# ## Error against active parameters

# %%
points = []
for label, entries in done.items():
    mean, low, high = bar(rates[chosen][label])
    points.append(figures.Point(entries[0].results["params_active"] / 1e6, mean, low, high, label))
SVG(figures.svg(figures.pareto({chosen: points}, "active parameters (million)", "error rate (%)")))

# %% [markdown]
# ## Learning curves

# %%
names = ("val/wer", "val/per", "train/loss")
name = next((n for n in names for es in done.values() for e in es if len(e.curves.get(n, [[]])[0]) > 1), None)
curves = {label: [e.curves[name] for e in entries if name in e.curves] for label, entries in done.items()}
SVG(figures.svg(figures.learning_curves(curves, name or "")))

# %% [markdown]
# ## Answer
#
# Seeds that both points have are paired: they saw the same batches.

# %%
ranked = sorted(rates[chosen], key=lambda label: rates[chosen][label].mean())
answer = f"On {chosen}, {ranked[0]} is best with {rates[chosen][ranked[0]].mean():.2f} %."
if len(ranked) > 1:
    by_seed = [{e.seed: 100 * measured(e, chosen)["rate"] for e in done[label]} for label in ranked[:2]]
    common = [seed for seed in by_seed[0] if seed in by_seed[1]]
    difference = numpy.array([by_seed[1][seed] - by_seed[0][seed] for seed in common])
    answer += (
        f" Next is {ranked[1]}, by {difference.mean():.2f} points over {len(common)} paired seeds" if common else ""
    )
    if len(common) > 1:
        half = t.ppf(0.975, len(common) - 1) * difference.std(ddof=1) / len(common) ** 0.5
        sure = "resolved" if abs(difference.mean()) > half else "unresolved"
        answer += f", 95 % interval {difference.mean() - half:+.2f} to {difference.mean() + half:+.2f}: {sure}."
print(answer)
