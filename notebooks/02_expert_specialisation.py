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
# # Do experts follow phones, words, speakers, or the position in the utterance?
#
# Of the entropy of a site's first choice, which share does each of them explain (Theil's U)? Each has a null that keeps
# what would tie anything to anything: labels of other utterances, speakers dealt out anew, positions counted from
# elsewhere. The synthetic corpora know when each phone is said; for real speech write `moe-asr trace RUN align=true`.
#
# For a run of yours: `MOE_ASR_TRACE` is a folder that `moe-asr trace` wrote.

# %%
import os
from pathlib import Path

import numpy
from IPython.display import SVG

from moe_asr.analysis import figures
from moe_asr.analysis.association import segment_lengths, shuffled_segment_lengths
from moe_asr.analysis.specialisation import specialisation
from moe_asr.analysis.trace import load_trace, said
from moe_asr.errors import InputError

EXAMPLE = Path("../tests/notebooks/example")
trace = load_trace(os.environ.get("MOE_ASR_TRACE", EXAMPLE / "offline"))
sites = [site for site in trace.sites if site.startswith("encoder")]
chosen = numpy.stack([trace.sites[site].ids[:, 0] for site in sites]).astype(int)
offsets = trace.offsets["encoder"]
print(f"{len(trace.utterances)} utterances, {offsets[-1]} frames, {trace.card['num_experts']} experts")

# %% [markdown]
# ## One utterance: frame x depth

# %%
first, end = offsets[:2]
SVG(figures.svg(figures.expert_map(chosen[:, first:end], sites, trace.card["num_experts"], words=said(trace, 0))))

# %% [markdown]
# ## How long does an expert stay?

# %%
for site, choices in zip(sites, chosen, strict=True):
    shuffled = shuffled_segment_lengths(choices, offsets).mean()
    print(f"{site}: {segment_lengths(choices, offsets).mean():.1f} frames, {shuffled:.1f} in shuffled order")

# %% [markdown]
# ## What explains the choice?

# %%
found = {}
for kind in ("phone", "word", "speaker", "position"):
    try:
        found[kind] = specialisation(trace, kind, draws=100, least=20)
    except InputError as unknown:
        print(unknown)
beyond = {
    kind: {site: max(s.explained - s.null_explained.mean(), 0) for site, s in by_site.items()}
    for kind, by_site in found.items()
}
bars = {kind: {site: (100 * value, None, None) for site, value in of.items()} for kind, of in beyond.items()}
SVG(figures.svg(figures.bars(bars, "explained share of the choice's entropy, beyond the null (%)")))

# %% [markdown]
# ## Which expert has which phones?
#
# At the site that they explain best; a dot marks cells whose share differs from the null (Holm-adjusted, 5 %).

# %%
kind = next((kind for kind in ("phone", "word") if kind in found), "position")
site = max(beyond[kind], key=beyond[kind].get)
best = found[kind][site]
experts = [str(e) for e in range(len(best.table))]
SVG(figures.svg(figures.specialisation(best.lift, experts, best.classes, best.p_cells < 0.05, title=f"{site}: {kind}")))

# %% [markdown]
# ## Answer

# %%
mean = {kind: float(numpy.mean(list(of.values()))) for kind, of in beyond.items()}
sure = {kind: sum(s.p_value <= 0.05 for s in by_site.values()) for kind, by_site in found.items()}
listed = "; ".join(
    f"{kind} {100 * mean[kind]:.0f} % ({sure[kind]} of {len(sites)} sites beyond 95 % of their null)"
    for kind in sorted(mean, key=mean.get, reverse=True)
)
print(
    f"Of the entropy of the first choice is explained, beyond the null and on average over sites: {listed}. "
    f"At {site}, which {kind}s explain best, {int((best.p_cells < 0.05).sum())} of {best.p_cells.size} pairs of expert "
    f"and {kind} are more or less frequent than by chance."
)
