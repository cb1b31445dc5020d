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
# # Do the layers of a model agree about which expert a frame needs?
#
# The Omni-router paper (arXiv 2507.05724) shows with Cramér's V that the choices of layers with routers of their own
# hang together little, and those of layers that share one router much. Two controls: utterances permuted at one of the
# two sites (what the mere position in an utterance explains), and the same model before training (a shared router
# correlates before it has learnt anything).
#
# Without further words this runs on a small example. For a run of yours: `MOE_ASR_TRACE` is a folder that
# `moe-asr trace` wrote, `MOE_ASR_INITIAL` the same with `initial=true`.

# %%
import os
from pathlib import Path

import numpy
from IPython.display import SVG

from moe_asr.analysis import figures
from moe_asr.analysis.association import agreement, kappa, site_association
from moe_asr.analysis.trace import load_trace

EXAMPLE = Path("../tests/notebooks/example")
trace = load_trace(os.environ.get("MOE_ASR_TRACE", EXAMPLE / "offline"))
untrained = os.environ.get("MOE_ASR_INITIAL") if "MOE_ASR_TRACE" in os.environ else EXAMPLE / "initial"
initial = load_trace(untrained) if untrained else None
shared = len(set(trace.card.get("routers", trace.card["sites"]))) < len(trace.card["sites"])
print(f"{len(trace.utterances)} utterances, {trace.card['num_experts']} experts, shared routers: {shared}")

# %% [markdown]
# ## Cramér's V between sites

# %%
found = site_association(trace, draws=50)
SVG(figures.svg(figures.correlation(found.sites, found.observed)))

# %% [markdown]
# The same with the utterances of one site permuted: what the position in an utterance alone explains.

# %%
SVG(figures.svg(figures.correlation(found.sites, found.null_mean, "Cramér's V, utterances permuted")))

# %% [markdown]
# ## By distance in the network

# %%
count = len(found.sites)
for distance in range(1, count):
    pairs = numpy.arange(count - distance), numpy.arange(distance, count)
    print(
        f"{distance} apart: V {found.observed[pairs].mean():.2f}, by position alone {found.null_mean[pairs].mean():.2f}"
    )

# %% [markdown]
# ## Before training, and the same expert by number
#
# Under a shared router expert 3 means the same direction of the router everywhere, so that agreement by number says
# something: kappa is agreement beyond what the loads alone would give.

# %%
before = site_association(initial, draws=50) if initial else None
if before:
    print(f"V beyond the null: {found.excess:.2f}, before training {before.excess:.2f}")
same, beyond = (site_association(trace, measure=measure, draws=2) for measure in (agreement, kappa))
above = numpy.triu_indices(count, 1)
print(
    f"same number: {100 * numpy.nanmean(same.observed[above]):.0f} %, kappa {numpy.nanmean(beyond.observed[above]):.2f}"
)

# %% [markdown]
# ## Answer

# %%
significant = (found.p_value[above] <= 0.05).mean()
routers = "a shared router" if shared else "routers of their own"
answer = (
    f"With {routers} the first choices of two sites have a Cramér's V of {numpy.nanmean(found.observed[above]):.2f} on "
    f"average, {found.excess:.2f} beyond what the position in the utterance explains; {100 * significant:.0f} % of the "
    f"pairs are above all but 5 % of their null."
)
if before:
    gain = found.excess - before.excess
    answer += (
        f" Before training it was {before.excess:.2f}: training has {'added' if gain > 0 else 'taken'} {abs(gain):.2f}."
    )
print(answer)
