"""What the loads of experts say: which are dead, whether a router has collapsed, a table, a heat map. No torch here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

DEAD = 0.01
"""An expert with less than this part of its even share 1 / E of the load is dead."""
DOMINATING = 2.0
"""One with more than so many even shares dominates, in the table."""
UNEVEN = 1.0
"""A coefficient of variation above this is an alarm: then E / (1 + CV^2), experts in effect, is below E / 2."""

Loads = Mapping[str, Sequence[float]]
"""Site -> the load of each of its experts."""


def dead(load: Sequence[float]) -> list[int]:
    """The numbers of the dead experts."""
    return [expert for expert, share in enumerate(load) if share * len(load) < DEAD]


def variation(load: Sequence[float]) -> float:
    """Standard deviation over mean: 0 if even, sqrt(E / top_k - 1) if the same top_k experts take all."""
    mean = math.fsum(load) / len(load)
    return math.sqrt(math.fsum((share - mean) ** 2 for share in load) / len(load)) / max(mean, 1e-12)


def effective_experts(load: Sequence[float]) -> float:
    """``exp(H(load))``: so many equally used experts would have its entropy (Hill's number of order 1, 1973)."""
    return math.exp(-math.fsum(share * math.log(share) for share in load if share > 0))


@dataclass(frozen=True)
class Alarm:
    """That experts have collapsed at a site, or (norm None) that a router gets no gradient."""

    step: int
    where: str
    """The site, or the number of the router."""
    dead: list[int] = field(default_factory=list)
    load_cv: float | None = None

    def __str__(self) -> str:
        if self.load_cv is None:
            return (
                f"step {self.step}: router {self.where} gets no gradient and learns nothing: lower optim.lr, keep its "
                "logits small with loss.z, or write router.normalize=false."
            )
        experts = f"{len(self.dead)} dead experts ({', '.join(map(str, self.dead))}), " if self.dead else ""
        return (
            f"step {self.step}: the routing of {self.where} has collapsed ({experts}load CV {self.load_cv:.2f}): raise "
            "loss.balance or router.balance_rate, or lower optim.lr."
        )


@dataclass(frozen=True)
class Watch:
    """What training keeps in mind to raise alarms, each once: what is wrong twice running."""

    loads: Loads = field(default_factory=dict)
    """Of the last validation."""
    idle_routers: Sequence[str] = ()
    """Those without gradient at the last look."""
    skipped: int = 0
    """Steps running that changed nothing."""
    skipped_in_all: int = 0
    alarms: Sequence[Alarm] = ()

    @staticmethod
    def from_dict(plain: Mapping[str, Any]) -> "Watch":
        return Watch(**{**plain, "alarms": [Alarm(**alarm) for alarm in plain["alarms"]]})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def validated(self, step: int, loads: Loads) -> "Watch":
        """An alarm for a site where, now and at the last validation, an expert was dead or the load uneven."""
        found = []
        for site, load in loads.items():
            before = self.loads.get(site, ())
            idle = sorted(set(dead(before)) & set(dead(load)))
            if idle or (before and min(variation(before), variation(load)) > UNEVEN):
                found.append(Alarm(step, site, idle, variation(load)))
        return replace(self._with(found), loads=loads)

    def learnt(self, step: int, gradients: Mapping[str, float]) -> "Watch":
        """An alarm for a router whose gradient norm was exactly 0 now and at the last look."""
        idle = [router for router, norm in gradients.items() if norm == 0]
        return replace(
            self._with([Alarm(step, router) for router in idle if router in self.idle_routers]), idle_routers=idle
        )

    def _with(self, found: Sequence[Alarm]) -> "Watch":
        known = {alarm.where for alarm in self.alarms}
        return replace(self, alarms=[*self.alarms, *(alarm for alarm in found if alarm.where not in known)])


def expert_table(loads: Loads, entropies: Mapping[str, float]) -> list[str]:
    """A line for each site: the load of each expert in per cent, its variation, the entropy (nats) of the router.

    More than 16 experts get a bar each, which is full at twice the even share.
    """
    if not loads:
        return []
    wide, most = max(map(len, loads)), max(map(len, loads.values()))
    large, bars = DOMINATING / most, "▁▂▃▄▅▆▇█"

    def cell(share: float, gone: bool) -> str:
        if most > 16:
            return "-" if gone else bars[min(int(share / large * 8), 7)]
        return f"{'-' if gone else f'{100 * share:.0f}':>4}{'!' if share > large else ' '}"

    numbers = "  load" if most > 16 else "".join(f"{expert:4d} " for expert in range(most))
    lines = [f"  {'expert':<{wide}} {numbers:<{most}}    CV  entropy"]
    for site, load in loads.items():
        gone = dead(load)
        cells = "".join(cell(share, expert in gone) for expert, share in enumerate(load))
        entropy = f"{entropies[site]:9.2f}" if site in entropies else ""
        lines.append(f"  {site:<{wide}} {cells}{variation(load):6.2f}{entropy}")
    return lines


def heat_map(loads: Loads) -> str:
    """Site x expert as an HTML table whose cells are the darker, the higher the load."""
    rows = []
    for site, load in loads.items():
        cells = "".join(
            f'<td style="background:rgba(30,90,160,{min(share * len(load) / 4, 1):.2f})">{100 * share:.0f}</td>'
            for share in load
        )
        rows.append(f"<tr><th>{site}</th>{cells}</tr>")
    return f'<table style="font:12px monospace;text-align:right">{"".join(rows)}</table>'
