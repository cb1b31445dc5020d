"""How many seeds and speakers a difference needs, from the spread that runs have shown.

With the variances of one seed, one speaker and one cell of both (`Spread`) the variance over S seeds and G speakers is
expected to be seed / S + speaker / G + cell / (S G); the power of the t test of `moe_asr.measure.comparison` is that of
the noncentral t distribution. What an utterance does to all seeds alike is counted as its speaker's, so more text of
the same speakers is worth somewhat more than is said here. Spreads from few seeds are rough themselves.
"""

import math

from scipy.special import nctdtr, stdtrit

from moe_asr.measure.comparison import Spread

POWER, MOST_SEEDS, SPEAKERS = 0.8, 50, (5, 10, 20, 40, 80, 160)

DEFAULT = Spread(seed=0.05, speaker=0.05, cell=0.15, evenness=0.5, paired=True, tokens=250)
"""Of small models at error rates of 10 to 15 %, with paired seeds: 5 % between seeds and between speakers."""


def power(spread: Spread, percent: float, seeds: int, speakers: int, times: float = 1.0) -> float:
    """Chance to find B better by so many percent, with `seeds` of each and `times` as many tokens of each speaker."""
    cell = spread.cell**2 / times
    v_e = cell / (seeds * speakers)
    v_s, v_g = spread.seed**2 / seeds + v_e, spread.speaker**2 / speakers + v_e
    d = max(1.0, (speakers - 1) * spread.evenness)
    arms = 1 if spread.paired else 2
    parts = v_s**2 / (arms * (seeds - 1)) + v_g**2 / d + v_e**2 / (arms * (seeds - 1) * (speakers - 1))
    V = v_s + v_g - v_e
    return _found(abs(math.log1p(-percent / 100)) / math.sqrt(V), V**2 / parts)


def _found(effect: float, df: float) -> float:
    """Power of a two-sided t test at 5 %, for an effect in standard errors. Above 30 of them it is certain."""
    return 1.0 if effect > 30 else 1 - float(nctdtr(df, effect, stdtrit(df, 0.975)))


def seeds_needed(spread: Spread, percent: float, speakers: int, times: float = 1.0) -> int | None:
    """Seeds of each method for a power of 80 %; None if 50 are too few."""
    counts = range(2, MOST_SEEDS + 1)
    return next((seeds for seeds in counts if power(spread, percent, seeds, speakers, times) >= POWER), None)


def speakers_needed(spread: Spread, percent: float) -> int | None:
    """Speakers to tell two checkpoints apart with a power of 80 %, whatever other seeds would give."""
    deviation = math.hypot(spread.speaker, spread.cell)
    effect = abs(math.log1p(-percent / 100)) / deviation if deviation else math.inf
    counts = range(5, 5001)
    enough = (n for n in counts if _found(effect * math.sqrt(n), max(1.0, (n - 1) * spread.evenness)) >= POWER)
    return next(enough, None)


def power_lines(spread: Spread, percent: float, per_speaker: float) -> list[str]:
    """For the terminal; per_speaker: utterances of each speaker."""
    fixed = speakers_needed(spread, percent)
    lines = [
        f"to see {percent:g} % with a power of 80 %, each speaker saying {per_speaker:.0f} utterances, "
        f"{spread.tokens:.0f} tokens (4 times as many):"
    ]
    for speakers in SPEAKERS:
        seeds = [seeds_needed(spread, percent, speakers, times) for times in (1.0, 4.0)]
        once, more = (str(n) if n else f"over {MOST_SEEDS}" for n in seeds)
        utterances = f"{speakers * per_speaker:.0f} utterances"
        lines.append(f"  {speakers:>4} speakers, {utterances:<18} {once} {_kind(spread)} seeds of each ({more})")
    lines.append(f"  two checkpoints, not methods: {f'{fixed} speakers' if fixed else 'over 5000 speakers'}")
    return lines


def _kind(spread: Spread) -> str:
    return "paired" if spread.paired else "unpaired"
