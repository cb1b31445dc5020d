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
# # How is the load of the experts balanced as a model trains?
#
# The authors of U2++ MoE (arXiv 2404.16407) train without a balance loss; Switch and Omni-router models have one. What
# the loads do, a run's `metrics.csv` tells.
#
# For a run of yours: `MOE_ASR_RUN` is its directory.

# %%
import os
from pathlib import Path

from IPython.display import SVG

from moe_asr.analysis import figures
from moe_asr.analysis.load import load_history
from moe_asr.measure.expert_use import dead, effective_experts, variation

EXAMPLE = Path("../tests/notebooks/example")
run = Path(os.environ.get("MOE_ASR_RUN", EXAMPLE / "run"))
history = load_history(run / "metrics.csv")
experts = next(iter(history.values()))[1].shape[1]
print(f"{len(history)} sites, {experts} experts, {len(next(iter(history.values()))[0])} times")

# %%
SVG(figures.svg(figures.utilisation(history)))

# %% [markdown]
# ## Experts in effect
#
# `exp(H(load))`: so many equally used experts would have the entropy of the load.

# %%
curves = {
    site: [(steps, [effective_experts(load) for load in loads])] for site, (steps, loads) in list(history.items())[:8]
}
SVG(figures.svg(figures.learning_curves(curves, f"experts in effect (of {experts})")))

# %% [markdown]
# ## At the end

# %%
last = {site: loads[-1].tolist() for site, (_, loads) in history.items()}
SVG(figures.svg(figures.load_map(last)))

# %%
for site, load in last.items():
    effect = effective_experts(load)
    print(f"{site}: CV {variation(load):.2f}, {effect:.1f} experts in effect, dead: {dead(load) or 'none'}")

# %% [markdown]
# ## Answer

# %%
begin = [effective_experts(loads[0]) for _, loads in history.values()]
end = [effective_experts(load) for load in last.values()]
gone = sum(len(dead(load)) for load in last.values())
worst = max(last, key=lambda site: max(last[site]))
print(
    f"On average over {len(last)} sites {sum(end) / len(end):.1f} of {experts} experts are in effect at the end, "
    f"{sum(begin) / len(begin):.1f} at the beginning; {gone} of {len(last) * experts} are dead. The busiest expert, at "
    f"{worst}, takes {100 * max(last[worst]):.0f} % where {100 / experts:.0f} % would be even: routing "
    f"{'is balanced' if min(end) > 0.8 * experts else 'is uneven' if gone == 0 else 'has lost experts'}."
)
