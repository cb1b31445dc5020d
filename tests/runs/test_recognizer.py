"""A checkpoint is plain data that loads without arguments; what it says does not depend on its batch."""

import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

import moe_asr
from moe_asr.config.program import DecodeConfig, TrainConfig
from moe_asr.data.manifest import load_samples, read_split
from moe_asr.errors import InputError
from moe_asr.runs.checkpoint import Checkpoint, build, load_checkpoint, save_checkpoint, save_tensors
from moe_asr.runs.recognizer import FRAME_SECONDS, Recognizer, Transcript


@pytest.fixture(scope="module")
def recognizer(untrained: Path) -> Recognizer:
    return Recognizer.load(untrained)


@pytest.fixture(scope="module")
def speech(digits: Path) -> list[torch.Tensor]:
    """Three utterances of different length."""
    return [torch.from_numpy(load_samples(cut)) for cut in read_split(digits, "seen")[:3]]


def said(transcript: Transcript) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    return transcript.text, transcript.hypothesis.tokens, transcript.hypothesis.frames


def test_a_checkpoint_says_the_same_after_saving_and_loading(
    recognizer: Recognizer, speech: list[torch.Tensor], tmp_path: Path
) -> None:
    checkpoint = Checkpoint(recognizer.config, recognizer.tokenizer, recognizer.model.state_dict())
    save_checkpoint(tmp_path / "model.pt", checkpoint)
    again = moe_asr.load(str(tmp_path / "model.pt"))
    assert again.config == recognizer.config
    assert again.tokenizer == recognizer.tokenizer
    transcripts = [recognizer.transcribe(samples) for samples in speech]
    assert [again.transcribe(samples) for samples in speech] == transcripts
    assert len({transcript.text for transcript in transcripts}) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_a_checkpoint_is_plain_data(untrained: Path, tiny: TrainConfig) -> None:
    plain = torch.load(untrained / "checkpoints" / "model.pt", weights_only=True)
    assert plain["config"]["model"]["encoder"]["layers"] == 1
    assert plain["config"]["moe"]["placement"] == "encoder"
    assert load_checkpoint(untrained).config == tiny


@pytest.mark.parametrize("chunk", [None, 4])
def test_a_batch_says_what_each_utterance_says_alone(
    recognizer: Recognizer, speech: list[torch.Tensor], chunk: int | None
) -> None:
    decode = DecodeConfig(chunk=chunk, left=2 if chunk else None)
    together, trace = recognizer.decode(speech, decode)
    alone = [recognizer.decode([samples], decode)[0][0] for samples in speech]
    assert [said(t) for t in together] == [said(t) for t in alone]
    assert all(t.text for t in together)
    assert [t.hypothesis.score for t in together] == pytest.approx([t.hypothesis.score for t in alone], abs=1e-2)
    assert {str(site.site) for site in trace} == {"encoder.00.ffn_in", "encoder.00.ffn_out"}
    frames = trace[0].valid.sum(1).tolist()
    assert len(set(frames)) == 3
    for transcript, count, samples in zip(together, frames, speech, strict=True):
        assert transcript.seconds == tuple(frame * FRAME_SECONDS for frame in transcript.hypothesis.frames)
        assert 0 <= transcript.seconds[0] < transcript.seconds[-1] < len(samples) / 16000
        assert max(transcript.hypothesis.frames) < count


def test_the_chunk_size_is_that_of_the_configuration_unless_given(
    recognizer: Recognizer, speech: list[torch.Tensor]
) -> None:
    full, chunked = (recognizer.transcribe(speech[0], DecodeConfig(chunk=chunk)) for chunk in (None, 1))
    assert recognizer.transcribe(speech[0]).hypothesis == full.hypothesis
    assert chunked.hypothesis.score != full.hypothesis.score


@pytest.mark.parametrize("samples", [0, 1, 399, 400, 1359])
def test_audio_too_short_for_a_frame_is_an_empty_text(
    recognizer: Recognizer, speech: list[torch.Tensor], samples: int
) -> None:
    transcripts, _ = recognizer.decode([torch.zeros(samples)])
    assert (transcripts[0].text, transcripts[0].hypothesis.tokens, transcripts[0].seconds) == ("", (), ())
    beside, _ = recognizer.decode([speech[0], torch.zeros(samples)])
    assert [said(t) for t in beside] == [said(recognizer.transcribe(speech[0])), ("", (), ())]


def test_the_shortest_audio_with_a_frame(recognizer: Recognizer) -> None:
    _, trace = recognizer.decode([torch.zeros(1360)])
    assert trace[0].valid.sum() == 1


def test_files_arrays_and_tensors_are_the_same_audio(
    recognizer: Recognizer, speech: list[torch.Tensor], tmp_path: Path
) -> None:
    import soundfile

    soundfile.write(tmp_path / "a.wav", numpy.stack([speech[0]] * 2, axis=1), 16000, subtype="FLOAT")
    file = recognizer.transcribe(tmp_path / "a.wav")
    assert file.notes == ("2 channels averaged to one",)
    assert said(file) == said(recognizer.transcribe(speech[0])) == said(recognizer.transcribe(speech[0].numpy()))
    assert said(recognizer.transcribe(speech[0].double().numpy())) == said(file)


def test_what_is_no_model_is_said_in_one_sentence(untrained: Path, tiny: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing does not exist; give a run directory \(see runs/\) or a checkpoint"):
        load_checkpoint(tmp_path / "nothing")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match=r"run holds no finished model \(checkpoints/model.pt\); train it to its end"):
        load_checkpoint(tmp_path / "run")
    with pytest.raises(InputError, match="it is no run directory"):
        load_checkpoint(tmp_path)
    whole = (untrained / "checkpoints" / "model.pt").read_bytes()
    for name, content in {"half": whole[: len(whole) // 2], "text": b"hello", "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} is not a checkpoint of this program, or is damaged"):
            load_checkpoint(tmp_path / name)
    for name, value in {"weights": {"a": torch.zeros(1)}, "number": 3}.items():
        save_tensors(tmp_path / name, value)
        with pytest.raises(InputError, match=f"{name} is not a checkpoint of this program, or is damaged"):
            load_checkpoint(tmp_path / name)
    older = torch.load(untrained / "checkpoints" / "model.pt", weights_only=True)
    older["config"]["router"]["name"] = "topk"
    save_tensors(tmp_path / "older", older)
    with pytest.raises(InputError, match=r"older was made by a version of .* with other options; .*option router.name"):
        load_checkpoint(tmp_path / "older")


def test_the_same_seed_builds_the_same_model(recognizer: Recognizer) -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build(recognizer.config, recognizer.tokenizer).state_dict())
    name = "ctc.output.weight"
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0][name], states[2][name])


def test_using_a_model_needs_neither_lightning_nor_lhotse() -> None:
    heavy = ("pytorch_lightning", "lhotse", "wandb", "hydra")
    program = f"import sys, moe_asr.runs.recognizer\nprint(*set({heavy}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_an_unknown_device_is_named(untrained: Path) -> None:
    with pytest.raises(InputError, match="device=quark is not known; write device=cpu"):
        Recognizer.load(untrained, device="quark")
