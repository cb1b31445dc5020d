"""The routing explorer: its arrays are what the model decides, its page is whole and opens."""

import base64
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
import torch

from moe_asr.analysis.explorer import exploration, explore
from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.config.program import TrainConfig
from moe_asr.data.manifest import load_samples, read_split
from moe_asr.errors import InputError
from moe_asr.features.audio import Audio
from moe_asr.features.tokenizer import Tokenizer
from moe_asr.runs.checkpoint import build
from moe_asr.runs.recognizer import Recognizer


@pytest.fixture(scope="module")
def audio(digits: Path) -> Audio:
    samples = load_samples(read_split(str(digits), "seen")[0], 16000)
    return Audio(numpy.asarray(samples, dtype=numpy.float32), 16000)


def array(text: str, kind: str, columns: int) -> numpy.ndarray:
    return numpy.frombuffer(base64.b64decode(text), kind).reshape(-1, columns)


@pytest.mark.parametrize("chunk", [None, 8])
def test_what_is_shown_of_encoder_sites_is_what_the_routers_decide(
    untrained: Path, audio: Audio, chunk: int | None
) -> None:
    recognizer = Recognizer.load(untrained)
    decode = DecodeConfig(chunk=chunk)
    (transcript,), trace = recognizer.decode([torch.from_numpy(audio.samples)], decode)
    shown = exploration(recognizer, audio, decode)
    assert shown["text"] == transcript.text != ""
    assert [word[0] for word in shown["words"]] == transcript.text.split()
    assert all(start < end <= audio.seconds + 0.04 for _, start, end, _ in shown["words"])
    assert shown["chunk_seconds"] == (chunk and chunk * 0.04)
    assert [site["name"] for site in shown["sites"]] == ["encoder.00.ffn_in", "encoder.00.ffn_out"]
    for site, part in zip(shown["sites"], trace, strict=True):
        frames = int(part.valid.sum())
        assert site["edges"] == [round(0.04 * i, 4) for i in range(frames + 1)]
        assert (array(site["ids"], "<i2", 2) == part.routing.expert_ids[0].numpy()).all()
        assert (array(site["weights"], "<f4", 2) == part.routing.weights[0].float().numpy()).all()
        p = part.routing.probabilities[0].numpy()
        assert numpy.abs(array(site["probabilities"], "u1", 4) / 255 - p).max() <= 0.5 / 255 + 1e-6
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(shown["audio"])), dtype="float32")
    assert rate == 16000
    assert numpy.abs(heard - audio.samples).max() < 1e-4
    spectrogram = array(shown["spectrogram"]["cells"], "u1", 80)
    assert len(spectrogram) == 1 + (len(heard) - 400) // 160
    assert spectrogram.max() == 255


def test_decoders_are_shown_over_the_tokens_they_read(untrained: Path, tiny: TrainConfig, audio: Audio) -> None:
    tokenizer: Tokenizer = Recognizer.load(untrained).tokenizer
    config = replace(tiny, moe=replace(tiny.moe, placement="both"))
    torch.manual_seed(3)
    model = build(config, tokenizer).eval()
    with torch.no_grad():
        model.ctc.output.weight.mul_(30)
    recognizer = Recognizer.of(model, tokenizer, config)
    decode = DecodeConfig(mode=DecodeMode.attention_rescoring)
    (transcript,), _ = recognizer.decode([torch.from_numpy(audio.samples)], decode)
    trace = recognizer.decoder_routing([torch.from_numpy(audio.samples)], [transcript], decode, [""])
    shown = {site["name"]: site for site in exploration(recognizer, audio, decode)["sites"]}
    forward, backward = shown["left_to_right.00.ffn_out"], shown["right_to_left.00.ffn_out"]
    words = transcript.text.split()
    assert len(words) > 1
    assert (forward["reads"], backward["reads"]) == (["start", *words], [*words, "start"])
    for site, part in ((forward, trace[0]), (backward, trace[1])):
        assert len(site["edges"]) == len(words) + 2
        assert (site["edges"][0], site["edges"][-1]) == (0.0, round(audio.seconds, 4))
        assert site["edges"] == sorted(site["edges"])
        step = -1 if site is backward else 1
        assert (array(site["ids"], "<i2", 2)[::step] == part.routing.expert_ids[0].numpy()).all()


def test_the_page_is_whole(structure: Callable[[str], Any], untrained: Path, audio: Audio) -> None:
    name = "<script>alert(1)</script>"
    html = explore(Recognizer.load(untrained), audio, name, DecodeConfig(), [name])
    found = structure(html)
    assert found.text.count(name) == 3  # title, heading and line
    assert len(found.all("audio")) == 1
    assert found.all("audio")[0]["src"].startswith("data:audio/flac;base64,")
    assert [b["data-site"] for b in found.all("button") if "data-site" in b] == [
        "encoder.00.ffn_in",
        "encoder.00.ffn_out",
    ]
    assert found.all("div", role="slider", tabindex="0", **{"aria-label": "time"})
    assert len(html) < 5 * len(audio.samples) + 100_000


def test_what_cannot_be_shown_is_refused(untrained: Path, tiny: TrainConfig, audio: Audio) -> None:
    recognizer = Recognizer.load(untrained)
    with pytest.raises(InputError, match="not a single frame"):
        explore(recognizer, Audio(audio.samples[:300], 16000), "short", DecodeConfig())
    config = replace(tiny, moe=replace(tiny.moe, placement="none"))
    dense = Recognizer.of(build(config, recognizer.tokenizer), recognizer.tokenizer, config)
    with pytest.raises(InputError, match="dense"):
        explore(dense, audio, "dense", DecodeConfig())


def test_silence_has_a_page_without_words(untrained: Path) -> None:
    recognizer = Recognizer.load(untrained)
    with torch.no_grad():
        recognizer.model.ctc.output.bias[0] = 1e4
    shown = exploration(recognizer, Audio(numpy.zeros(16000, numpy.float32), 16000), DecodeConfig())
    assert (shown["text"], shown["words"]) == ("", [])


@pytest.mark.slow
def test_it_opens_and_shows_the_frame_and_site_of_its_address(
    browser: Callable[..., str], untrained: Path, audio: Audio, tmp_path: Path
) -> None:
    recognizer = Recognizer.load(untrained)
    file = tmp_path / "page.html"
    file.write_text(explore(recognizer, audio, "page", DecodeConfig(chunk=4)), encoding="utf8")
    dom = browser(file, "#t=0.21&site=encoder.00.ffn_out&theme=dark")
    assert '<html lang="en" data-theme="dark">' in dom
    moment = re.search(r'id="moment"[^>]*>([^<]*)<', dom)
    assert moment is not None
    assert moment[1].startswith("0.21 s, encoder.00.ffn_out, frame 5")
    trace = recognizer.decode([torch.from_numpy(audio.samples)], DecodeConfig(chunk=4))[1][1]
    percent = [f"{100 * round(255 * p) / 255:.0f} %" for p in trace.routing.probabilities[0, 5].tolist()]
    bars = re.search(r'id="bars".*?</table>', dom, re.DOTALL)
    assert bars is not None
    assert re.findall(r"\d+ %", re.sub(r"style=\"[^\"]*\"", "", bars[0])) == percent
    assert 'data-site="encoder.00.ffn_out" aria-pressed="true"' in dom
