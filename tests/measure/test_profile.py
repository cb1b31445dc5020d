"""Parts of a recognition: that they add up, and that the model is left as it was."""

from dataclasses import replace

import pytest
import torch

from moe_asr.config.benchmark import BenchmarkConfig, Kind, quickened
from moe_asr.config.model import LossConfig, MoEConfig
from moe_asr.decoding.ctc_greedy import ctc_greedy
from moe_asr.measure import flops
from moe_asr.measure.machine import Peaks
from moe_asr.measure.profile import PARTS, STAGES, _stopwatches, make_speak, profile
from moe_asr.models.u2pp import build_model
from moe_asr.tensors import Chunking

PEAKS = Peaks(fp32=1e9, bf16=2e9, int8=4e9, read=1e9)
ENCODER = [*dict.fromkeys(PARTS.values()), "norms and other"]
CONFIG = quickened(BenchmarkConfig(kind=Kind.profile))


@pytest.mark.parametrize(("placement", "chunk"), [(None, None), ("both", 8)])
def test_the_parts_add_up_to_both_wholes(placement: str | None, chunk: int | None) -> None:
    config = replace(CONFIG, moe=MoEConfig(placement=placement), rounds=1, chunks=[chunk])  # of one, medians add up
    rows = {row.part: row for row in profile(config, PEAKS).rows}
    assert list(rows) == [*ENCODER, *STAGES, "full pass, greedy", "full pass, rescoring"]
    for whole, share, missing in (
        ("full pass, greedy", "of_greedy", {"CTC prefix beam", "rescoring"}),
        ("full pass, rescoring", "of_beam", {"CTC greedy"}),
    ):
        parts = [rows[part] for part in (*ENCODER, *STAGES) if part not in missing]
        assert rows[whole].seconds.median == pytest.approx(sum(row.seconds.median for row in parts))
        assert sum(getattr(row, share) for row in parts) == pytest.approx(1)
        assert rows[whole].multiply_adds == sum(row.multiply_adds for row in parts)
        assert {part for part in STAGES if getattr(rows[part], share) is None} == missing
    assert min(row.seconds.median for row in rows.values()) > 0
    row = rows["feed-forward"]
    expected = flops.encoder(config.model, config.moe, 200, 80, Chunking(chunk))
    assert rows["attention"].multiply_adds == expected["attention"]
    assert row.multiply_adds == expected["feed-forward"] + expected["router"]
    assert row.efficiency == pytest.approx(2 * row.multiply_adds / 1e9 / row.seconds.median)
    assert rows["CTC prefix beam"].efficiency is None


def test_a_model_has_rows_for_what_it_has() -> None:
    one_way = replace(CONFIG.model, decoder=replace(CONFIG.model.decoder, reverse_layers=0))
    assert "rescoring" in {row.part for row in profile(replace(CONFIG, model=one_way), PEAKS).rows}
    model = replace(
        CONFIG.model,
        encoder=replace(CONFIG.model.encoder, kernel=None, macaron=False),
        decoder=replace(CONFIG.model.decoder, layers=0, reverse_layers=0),
    )
    parts = [row.part for row in profile(replace(CONFIG, model=model), PEAKS).rows]
    encoder = [part for part in ENCODER if part != "convolution"]
    assert parts == [*encoder, *STAGES[:-1], "full pass, greedy", "full pass, prefix beam"]


def test_a_part_takes_the_time_of_its_modules_and_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class Slow(torch.nn.Module):
        def forward(self, seconds: float) -> None:
            now[0] += seconds

    monkeypatch.setattr("moe_asr.measure.profile.clock", lambda: now[0])
    first, second, unwatched, idle = (Slow() for _ in range(4))
    with _stopwatches({"part": [first, second], "idle": [idle]}) as times:
        first(1.0), second(2.0), unwatched(8.0), first(4.0)
    first(16.0)
    assert times == {"part": 7.0, "idle": 0.0}


@torch.no_grad()
def test_an_untrained_head_speaks_in_the_share_of_frames_asked_for() -> None:
    torch.manual_seed(0)
    model = build_model(CONFIG.model, CONFIG.moe, CONFIG.router, LossConfig(), vocab_size=50, mel_bins=80).eval()
    encoded = model.encode(torch.randn(1, 811, 80), torch.tensor([811]))
    make_speak(model, encoded, 0.16)
    log_probs = model.ctc_log_probs(encoded.frames)
    spoken = (log_probs.argmax(-1) != 0).float().mean()
    assert spoken == pytest.approx(0.16, abs=0.01)
    assert log_probs.amax(-1).exp().median() > 0.8
    assert 0 < len(ctc_greedy(log_probs, encoded.frame_lengths, 0)[0].tokens) <= 0.17 * 202
