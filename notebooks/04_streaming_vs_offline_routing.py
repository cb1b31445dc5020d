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
# # Does a stream choose other experts than a model that hears everything?
#
# The same audio, traced with all context and in chunks. A frame near the end of its chunk sees hardly any future.
#
# For a run of yours: `MOE_ASR_TRACE` is a folder that `moe-asr trace` wrote, `MOE_ASR_OTHER` one with
# `decode.chunk=16`. Any other pair of traces of the same audio does as well: `precision=int8`, a later checkpoint.

# %%
import os
from pathlib import Path

import numpy
from IPython.display import SVG

from moe_asr.analysis import figures
from moe_asr.analysis.drift import drift
from moe_asr.analysis.trace import load_trace

EXAMPLE = Path("../tests/notebooks/example")
offline = load_trace(os.environ.get("MOE_ASR_TRACE", EXAMPLE / "offline"))
other = load_trace(os.environ.get("MOE_ASR_OTHER", EXAMPLE / "chunk16"))
chunk = other.card["decode"]["chunk"]
print(f"{len(offline.utterances)} utterances, {offline.offsets['encoder'][-1]} frames, chunk {chunk}")

# %% [markdown]
# ## Decisions that change, by depth

# %%
found = drift(offline, other)
for site, change in found.items():
    bounds = change.interval.bounds
    spread = f" [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]" if bounds else ""
    print(f"{site}: first choice {100 * change.first:.1f} %{spread}, set {100 * change.any:.1f} %, V {change.v:.2f}")

# %%
flips = {}
for site, change in found.items():
    low, high = change.interval.bounds or (None, None)
    flips[site] = (100 * change.first, low and 100 * low, high and 100 * high)
SVG(figures.svg(figures.bars({"": flips}, "frames whose first expert changes (%)")))

# %% [markdown]
# ## By the place in the chunk
#
# The last frame of a chunk has no future, the first one has almost a whole chunk of it.

# %%
order = {u["id"]: i for i, u in enumerate(other.utterances)}
starts = other.offsets["encoder"]
rows = numpy.concatenate([numpy.arange(starts[order[u["id"]]], starts[order[u["id"]] + 1]) for u in offline.utterances])
place = numpy.concatenate([numpy.arange(n) for n in numpy.diff(offline.offsets["encoder"])]) % (chunk or 16)
sites = [site for site in found if found[site].first > 0] or list(found)
changed = {s: offline.sites[s].ids[:, 0] != other.sites[s].ids[rows, 0] for s in sites}
places = range(place.max() + 1)
by_place = {s: [(places, [100 * c[place == p].mean() for p in places])] for s, c in changed.items()}
SVG(figures.svg(figures.learning_curves(dict(list(by_place.items())[-4:]), "changed (%)", "frame within its chunk")))

# %% [markdown]
# ## And the words?

# %%
words = {u["id"]: u["hypothesis"] for u in other.utterances}
same = numpy.mean([u["hypothesis"] == words[u["id"]] for u in offline.utterances])
print(f"{100 * same:.0f} % of the utterances are recognised as the same text")

# %% [markdown]
# ## Answer

# %%
mean = numpy.mean([change.first for change in found.values()])
most = max(found, key=lambda site: found[site].first)
last = numpy.mean([c[place == place.max()].mean() for c in changed.values()])
early = numpy.mean([c[place == 0].mean() for c in changed.values()])
print(
    f"The first expert changes for {100 * mean:.1f} % of the decisions, most at {most} "
    f"({100 * found[most].first:.1f} %, V {found[most].v:.2f}); where anything changes it is {100 * early:.1f} % of "
    f"the first and {100 * last:.1f} % of the last frames of a chunk. {100 * same:.0f} % of the utterances keep "
    f"their text."
)
