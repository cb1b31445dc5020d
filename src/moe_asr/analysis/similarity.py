"""How alike the experts of a site are: by their weights, and by what they make of the same frames."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from moe_asr.config.placement import MoESite
from moe_asr.errors import InputError
from moe_asr.models.u2pp import module_name
from moe_asr.modules.moe.experts import Experts
from moe_asr.modules.moe.layer import MoEFeedForward
from moe_asr.modules.moe.routers import Around
from moe_asr.modules.moe.routing import NOTHING, Routing, Side
from moe_asr.randomness import torch_rng
from moe_asr.runs.recognizer import Recognizer


@dataclass(frozen=True)
class Similarity:
    """Of the E experts of a site, (E,E) each."""

    weights: Tensor
    """Cosine, hidden units matched."""
    chance: Tensor
    """The same, the second expert of each pair being shuffled."""
    outputs: Tensor
    """Linear CKA."""


def expert_similarity(recognizer: Recognizer, samples: Sequence[Tensor]) -> dict[str, Similarity]:
    """By encoder site, on what reaches the site of waveforms (S,). Raises InputError for experts of mixed widths."""
    heard: dict[MoESite, list[Tensor]] = {}
    bank = recognizer.model.routers
    routers = {site: Listening(router, heard) for site in bank.sites if (router := bank.get(site)) is not None}
    replace(recognizer, routers=routers).encode(samples)
    found = {}
    for site, (rows,) in heard.items():
        layer = recognizer.model.get_submodule(module_name(site))
        assert isinstance(layer, MoEFeedForward)
        if not layer.uniform:
            raise InputError(f"the experts of {site} differ in width, so that their weights cannot be compared.")
        experts = layer.banks[0]
        assert isinstance(experts, Experts)
        weights, chance = weight_similarity(experts), weight_similarity(experts, shuffled=1)
        found[str(site)] = Similarity(weights, chance, output_similarity(experts, rows))
    return found


@dataclass(frozen=True)
class Listening(Around):
    """A router that keeps what reaches each site (P,d)."""

    heard: dict[MoESite, list[Tensor]]

    def __call__(self, x: Tensor, valid: Tensor, site: MoESite, side: Side = NOTHING) -> Routing:
        self.heard.setdefault(site, []).append(x[valid])
        return self.router(x, valid, site, side)


@torch.no_grad()
def weight_similarity(experts: Experts, shuffled: int | None = None) -> Tensor:
    """(E,E): cosine of the weights of two experts under the best pairing of their hidden units.

    An expert computes the same whatever the order of its units, so they are paired first (Hungarian method, as in Git
    Re-Basin, arXiv 2209.04836, for one layer). The best pairing finds something alike in anything: shuffled (a seed)
    mixes each weight of the second expert over its units, for a level of chance.
    """
    parts = experts.w_in, experts.b_in.unsqueeze(-1), experts.w_out.transpose(1, 2)
    units = torch.cat(parts, -1).double()  # (E,f,2d+1)
    second = units
    if shuffled is not None:
        order = torch.rand(units.shape, generator=torch_rng("similarity", shuffled)).argsort(1)
        second = units.cpu().gather(1, order).to(units)
    norms = units.flatten(1).norm(dim=1)
    cosines = torch.empty(len(units), len(units), dtype=units.dtype)
    for i, a in enumerate(units):
        for j, b in enumerate(second):
            products = (a @ b.T).cpu().numpy()
            cosines[i, j] = products[linear_sum_assignment(products, maximize=True)].sum() / float(norms[i] * norms[j])
    return cosines


@torch.no_grad()
def output_similarity(experts: Experts, rows: Tensor) -> Tensor:
    """rows (R,d) -> (E,E): `cka` of what each two experts make of the same rows."""
    ones = torch.ones(len(rows), 1, dtype=rows.dtype, device=rows.device)
    outputs = [experts(rows, torch.full_like(ones, e, dtype=torch.long), ones) for e in range(experts.num_experts)]
    return torch.stack([torch.stack([cka(x, y) for y in outputs]) for x in outputs])


def cka(x: Tensor, y: Tensor) -> Tensor:
    """``|Y^T X|^2 / (|X^T X| |Y^T Y|)`` of centred x (R,d) and y (R,e): linear CKA (arXiv 1905.00414, section 3).

    1 for outputs that are equal up to rotation and scale. With few rows anything is alike: give many more than d.
    """
    x, y = ((t - t.mean(0)).double() for t in (x, y))
    return (y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
