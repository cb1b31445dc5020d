"""Options of `moe-asr tune`, and which decode weights there are to tune. No torch here."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.config.model import require

_CTC, _LM = ("blank_penalty",), ("lm_weight", "token_bonus")
WEIGHTS: dict[DecodeMode, tuple[str, ...]] = {
    DecodeMode.ctc_greedy: _CTC,
    DecodeMode.ctc_prefix_beam: (*_CTC, *_LM),
    DecodeMode.attention: ("length_penalty",),
    DecodeMode.attention_rescoring: ("ctc_weight", "reverse_weight", *_CTC, *_LM),
}
"""The options of `decode` that weigh scores in each mode; those of a language model count where there is one."""


@dataclass
class TuneConfig:
    """Values of the weights that decode.mode uses, tried in all combinations, those of `decode` among them."""

    run: str = MISSING
    """A run directory, whose tuned/<mode>.json is written."""
    data: str | None = None
    """A prepared corpus; null = that of the run."""
    sets: list[str] | None = None
    """Splits to tune on; null = the run's dev sets. None may share a recording with its test sets."""
    normalizer: str | None = None
    """null = that of the run."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    ctc_weight: list[float] = field(default_factory=lambda: [0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0])
    reverse_weight: list[float] = field(default_factory=lambda: [i / 10 for i in range(11)])
    """Where the model has a right-to-left decoder."""
    length_penalty: list[float] = field(default_factory=lambda: [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2])
    blank_penalty: list[float] = field(default_factory=lambda: [-2.0, -1.0, 0.0, 1.0, 2.0])
    """Each value is a search of its own; all other weights are tried on the n-best of one."""
    lm_weight: list[float] = field(default_factory=lambda: [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0])
    """With decode.lm."""
    token_bonus: list[float] = field(default_factory=lambda: [0.0, 0.5, 1.0, 2.0])
    """With decode.lm."""
    device: str = "cpu"
    threads: int = 1
    """CPU threads."""

    def __post_init__(self) -> None:
        require(self.threads >= 1, f"threads={self.threads} must be at least 1.")
        for name in ("ctc_weight", "lm_weight", "reverse_weight"):
            values, most = getattr(self, name), 1.0 if name == "reverse_weight" else float("inf")
            require(
                all(0.0 <= v <= most for v in values), f"{name}={values} must hold no value below 0 or above {most:g}."
            )
        require(
            self.decode.lm is None or self.decode.lm_weight > 0,
            "decode.lm_weight=0.0 hears nothing of the language model to tune: write decode.lm_weight=0.3.",
        )
