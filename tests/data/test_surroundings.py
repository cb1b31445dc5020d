"""Augmentation by rooms, crowds, noise and codecs: on when asked, keyed, drawn apart, heard in the batches."""

from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import soundfile
import torch

from moe_asr.config.data import AugmentConfig, Codec, FeaturesConfig
from moe_asr.data.augmentation import augment_samples
from moe_asr.data.batches import PlannedBatch, TrainingBatches
from moe_asr.data.manifest import read_split
from moe_asr.data.surroundings import Sounds, sounds_of
from moe_asr.errors import InputError
from moe_asr.randomness import numpy_rng

OFF = AugmentConfig(speeds=[1.0], time_masks=0, mel_masks=0, substitutions=0)
SAMPLES = torch.from_numpy(numpy_rng("speech").normal(0, 0.1, 8000)).float()
KINDS = {
    "reverb": replace(OFF, reverb_share=1.0),
    "babble": replace(OFF, babble_share=1.0),
    "noise": replace(OFF, noise_share=1.0, noise_db=[10.0, 10.0]),
    "codec": replace(OFF, codec_share=1.0),
}


@pytest.fixture(scope="module")
def sounds(digits: Path) -> Sounds:
    return Sounds(16000, read_split(digits, "train"))


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_heard_keyed_and_as_often_as_its_share(kind: str, sounds: Sounds) -> None:
    def heard(config: AugmentConfig, key: int) -> torch.Tensor:
        return augment_samples(SAMPLES, config, numpy_rng("test", key), sounds=sounds)

    first, again, other = (heard(KINDS[kind], key) for key in (1, 1, 2))
    assert (first.shape, first.dtype) == (SAMPLES.shape, SAMPLES.dtype)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, SAMPLES)
    half = replace(KINDS[kind], **{f"{kind}_share": 0.5})
    changed = [not torch.equal(heard(half, key), SAMPLES) for key in range(30)]
    assert 7 <= sum(changed) <= 23
    with_more = replace(half, gain_db=6.0, speeds=[1.0])  # what else is on changes none of its draws
    assert [
        abs(float(torch.corrcoef(torch.stack([heard(with_more, k), SAMPLES]))[0, 1])) < 1 - 1e-6 for k in range(30)
    ] == changed


def test_the_strength_is_the_one_asked_for(sounds: Sounds) -> None:
    added = augment_samples(SAMPLES, KINDS["noise"], numpy_rng("test")) - SAMPLES
    assert 10 * torch.log10(SAMPLES.square().mean() / added.square().mean()) == pytest.approx(10.0, abs=1e-3)
    quiet = replace(KINDS["babble"], babble_db=[25.0, 25.0])
    added = augment_samples(SAMPLES, quiet, numpy_rng("test"), sounds=sounds) - SAMPLES
    assert 10 * torch.log10(SAMPLES.square().mean() / added.square().mean()) == pytest.approx(25.0, abs=1e-3)
    narrow = augment_samples(SAMPLES, replace(KINDS["codec"], codecs=[Codec.gsm]), numpy_rng("test"))
    assert numpy.abs(numpy.fft.rfft(narrow)[2200:]).mean() < 0.05 * numpy.abs(numpy.fft.rfft(SAMPLES)[2200:]).mean()


@pytest.mark.parametrize("size", [0, 1, 5])
def test_the_shortest_survive_everything(size: int, sounds: Sounds) -> None:
    everything = AugmentConfig(reverb_share=1.0, babble_share=1.0, noise_share=1.0, codec_share=1.0)
    for key in range(14):
        heard = augment_samples(SAMPLES[:size], everything, numpy_rng("test", key), sounds=sounds)
        assert torch.isfinite(heard).all()
        assert len(heard) <= size + 1


def test_given_recordings_take_the_place_of_generated_ones(tmp_path: Path) -> None:
    (tmp_path / "rooms").mkdir()
    echo = numpy.zeros(1600)
    echo[[100, 900]] = 0.9, 0.45
    soundfile.write(tmp_path / "rooms" / "echo.wav", echo, 16000, subtype="FLOAT")
    hum = numpy.sin(numpy.arange(30000) / 3)
    soundfile.write(tmp_path / "hum.wav", hum, 16000, subtype="FLOAT")
    (tmp_path / "noises.jsonl").write_text('{"audio": "hum.wav"}\n')
    config = replace(KINDS["noise"], noise_source=str(tmp_path / "noises.jsonl"), reverb_source=str(tmp_path / "rooms"))
    given = sounds_of(config, [], 16000)
    added = (augment_samples(SAMPLES, config, numpy_rng("test"), sounds=given) - SAMPLES).numpy()
    spectrum = numpy.abs(numpy.fft.rfft(added)) ** 2
    peak = round(8000 / (6 * numpy.pi))
    assert spectrum[peak - 9 : peak + 10].sum() > 0.95 * spectrum.sum()
    wet = augment_samples(SAMPLES, replace(KINDS["reverb"]), numpy_rng("test"), sounds=given)
    echoed = SAMPLES.clone()
    echoed[800:] += 0.5 * SAMPLES[:-800]
    assert torch.allclose(wet, echoed * (SAMPLES.norm() / echoed.norm()), atol=1e-5)
    with pytest.raises(InputError, match="holds no recordings"):
        sounds_of(replace(OFF, noise_source=str(tmp_path / "nothing")), [], 16000)


def test_batches_hear_them_and_an_utterance_does_not_depend_on_its_batch(digits: Path) -> None:
    cuts = read_split(digits, "train")[:6]
    everything = replace(OFF, reverb_share=0.5, babble_share=0.5, noise_share=0.5, codec_share=0.5)

    def row(members: list[int], which: int, augment: AugmentConfig, epoch: int = 1) -> torch.Tensor:
        plans = [PlannedBatch(epoch, 0, members, len(members))]
        batch = TrainingBatches(cuts, [[1]] * 6, plans, FeaturesConfig(), augment, seed=1)[0].batch
        assert batch is not None
        return batch.features[which, : int(batch.feature_lengths[which])]

    alone, together = row([2], 0, everything), row([4, 2, 0], 1, everything)
    assert torch.allclose(alone, together, atol=1e-4)
    epochs = [row([2], 0, everything, epoch) for epoch in range(1, 5)]
    assert len({float(features.sum()) for features in epochs}) >= 3
    assert row([2], 0, OFF).shape == alone.shape


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"noise_share": 1.5}, "augment.noise_share=1.5 must lie between 0 and 1"),
        ({"babble_db": [9.0, 3.0]}, "must be a lowest and a highest value"),
        ({"reverb_seconds": [0.0, 1.0]}, "must be above 0 seconds"),
        ({"codecs": []}, "must name at least one codec"),
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, list[float]], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        AugmentConfig(**wrong)  # type: ignore[arg-type]
