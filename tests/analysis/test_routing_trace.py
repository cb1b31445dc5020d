"""A trace holds what the routers decided about every valid position, and nothing of the padding."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from lhotse.cut import Cut

from moe_asr.analysis.record import record_trace
from moe_asr.analysis.trace import Trace, load_trace, said
from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.config.model import MoEConfig
from moe_asr.config.program import TrainConfig
from moe_asr.data.manifest import load_samples, read_split
from moe_asr.errors import InputError
from moe_asr.models.u2pp import teacher_forcing
from moe_asr.runs.checkpoint import build
from moe_asr.runs.recognizer import Recognizer
from moe_asr.tensors import Chunking

DECODE = DecodeConfig(batch=3)


@pytest.fixture(scope="module")
def recognizer(untrained: Path, tiny: TrainConfig) -> Recognizer:
    """Experts in the encoder and in both decoders."""
    known = Recognizer.load(untrained)
    config = replace(tiny, moe=MoEConfig("both", num_experts=4, top_k=2))
    torch.manual_seed(1)
    model = build(config, known.tokenizer)
    model.load_state_dict({n: v for n, v in known.model.state_dict().items() if "decoders" not in n}, strict=False)
    return Recognizer.of(model, known.tokenizer, config)


@pytest.fixture(scope="module")
def cuts(digits: Path) -> list[Cut]:
    return read_split(digits, "seen")


def traced(
    recognizer: Recognizer, cuts: list[Cut], folder: Path, decode: DecodeConfig = DECODE, frames: int = 10**6
) -> Trace:
    card = record_trace(recognizer, {"seen": cuts}, decode, folder, frames, {"note": "test"})
    trace = load_trace(folder)
    assert trace.card == card
    return trace


def arrays(trace: Trace) -> dict[str, numpy.ndarray]:
    sites = {f"{site}/{name}": array for site, rows in trace.sites.items() for name, array in vars(rows).items()}
    sites = {name: array for name, array in sites.items() if array is not None}
    return {**sites, **trace.labels, **trace.offsets}


@torch.inference_mode()
def test_every_valid_position_is_there_and_no_other(recognizer: Recognizer, cuts: list[Cut], tmp_path: Path) -> None:
    trace = traced(recognizer, cuts, tmp_path)
    model = recognizer.model
    assert list(trace.sites) == [str(site) for site in model.routers.sites]
    assert {u["id"] for u in trace.utterances} == {cut.id for cut in cuts}
    assert {len(u["tokens"]) for u in trace.utterances} != {0}
    for u, facts in enumerate(trace.utterances):
        cut = next(cut for cut in cuts if cut.id == facts["id"])
        (said,) = cut.supervisions
        encoded = recognizer.encode([torch.from_numpy(load_samples(cut))])
        ids = [recognizer.tokenizer.symbols.index(symbol) for symbol in facts["tokens"]]
        tokens, count = torch.tensor([ids]), torch.tensor([len(ids)])
        parts = list(encoded.routing)
        for stack, decoder in model.decoders.items():
            inputs, _ = teacher_forcing(tokens, count, model.sos_eos, reverse=stack == "right_to_left")
            parts += decoder(inputs, count + 1, decoder.memory(encoded), routers=model.routers)[1]
        assert recognizer.tokenizer.decode(ids) == facts["hypothesis"]
        assert (facts["split"], facts["speaker"], facts["text"]) == ("seen", said.speaker, said.text)
        for part in parts:
            begin, end = trace.offsets[part.site.stack][u : u + 2]
            rows, routing = trace.sites[str(part.site)], part.routing
            assert end - begin == part.valid.sum() == facts["positions"][part.site.stack]
            numpy.testing.assert_array_equal(rows.ids[begin:end], routing.expert_ids[0])
            numpy.testing.assert_allclose(rows.weights[begin:end], routing.weights[0], atol=1e-4)
            entropy = -(routing.logits[0].softmax(-1) * routing.logits[0].log_softmax(-1)).sum(-1)
            numpy.testing.assert_allclose(rows.entropy[begin:end], entropy, atol=1e-4)
    assert all(len(rows.ids) == trace.offsets[site.split(".")[0]][-1] for site, rows in trace.sites.items())


def test_rows_are_written_in_shards_of_bounded_size(recognizer: Recognizer, cuts: list[Cut], tmp_path: Path) -> None:
    whole, many = traced(recognizer, cuts, tmp_path / "a"), traced(recognizer, cuts, tmp_path / "b", frames=1)
    assert [trace.card["shards"] for trace in (whole, many)] == [1, 3]
    assert len(list((tmp_path / "b").glob("*.npz"))) == 3
    for name, array in arrays(whole).items():
        numpy.testing.assert_array_equal(array, arrays(many)[name])
    frames = numpy.diff(whole.offsets["encoder"])
    held = [len(numpy.load(file)["phone"]) for file in sorted((tmp_path / "b").glob("*.npz"))]
    assert held == [frames[i : i + 3].sum() for i in (0, 3, 6)]


def test_streaming_and_offline_traces_have_the_same_rows(
    recognizer: Recognizer, cuts: list[Cut], tmp_path: Path
) -> None:
    offline = traced(recognizer, cuts, tmp_path / "a")
    chunked = traced(recognizer, cuts, tmp_path / "b", DecodeConfig(batch=3, chunk=4))
    assert [u["id"] for u in offline.utterances] == [u["id"] for u in chunked.utterances]
    same = [arrays(trace)[name] for name in ("encoder", "phone", "word") for trace in (offline, chunked)]
    for a, b in zip(same[::2], same[1::2], strict=True):
        numpy.testing.assert_array_equal(a, b)
    assert (offline.card["decode"]["chunk"], chunked.card["decode"]["chunk"]) == (None, 4)
    flips = {
        site: (rows.ids != chunked.sites[site].ids).any(-1).mean()
        for site, rows in offline.sites.items()
        if site.startswith("encoder")
    }
    assert flips["encoder.00.ffn_in"] == 0.0  # before the first attention no frame knows its chunk
    assert 0.0 < flips["encoder.00.ffn_out"] < 0.9


@torch.inference_mode()
def test_a_stream_decides_what_its_chunked_trace_says(recognizer: Recognizer, cuts: list[Cut], tmp_path: Path) -> None:
    trace = traced(recognizer, cuts, tmp_path, DecodeConfig(chunk=4))
    samples = torch.from_numpy(load_samples(next(cut for cut in cuts if cut.id == trace.utterances[0]["id"])))
    features, lengths = recognizer.log_mel(samples.unsqueeze(0), torch.tensor([len(samples)]))
    encoder = recognizer.model.encoder
    fresh, ending = encoder.start(1, Chunking(4)), torch.tensor([True])
    output, _ = encoder.step(features, lengths, fresh, recognizer.model.routers, ending)
    for part in output.routing:
        stored = trace.sites[str(part.site)].ids[: trace.offsets["encoder"][1]]
        numpy.testing.assert_array_equal(part.routing.expert_ids[part.valid], stored)


def test_frames_are_labelled_by_what_is_said_in_their_middle(
    recognizer: Recognizer, cuts: list[Cut], tmp_path: Path
) -> None:
    trace = traced(recognizer, cuts, tmp_path)
    for u, facts in enumerate(trace.utterances):
        (said,) = next(cut for cut in cuts if cut.id == facts["id"]).supervisions
        begin, end = trace.offsets["encoder"][u : u + 2]
        for kind, labels in trace.labels.items():
            for frame, label in enumerate(labels[begin:end]):
                time = 0.04 * frame + (6 * 0.01 + 0.025) / 2
                now = [item.symbol for item in said.alignment[kind] if item.start <= time < item.end]
                assert now == ([] if label < 0 else [trace.symbols[kind][label]])
    assert set(trace.symbols["word"]) == set(" ".join(u["text"] for u in trace.utterances).split())
    assert 0.3 < (trace.labels["phone"] >= 0).mean() < 1.0

    silent = [cut.map_supervisions(lambda s: replace(s, alignment=None)) for cut in cuts]
    unknown = traced(recognizer, silent, tmp_path / "unknown")
    assert unknown.symbols == {"phone": (), "word": ()}
    assert (unknown.labels["word"] == -1).all()
    assert len(unknown.labels["word"]) == len(trace.labels["word"])


def test_probabilities_are_written_where_they_are_asked_for(
    recognizer: Recognizer, cuts: list[Cut], tmp_path: Path
) -> None:
    card = record_trace(recognizer, {"seen": cuts[:2]}, DECODE, tmp_path, 10**6, {}, probabilities=True)
    assert card["routers"] == list(range(len(card["sites"])))
    for rows in load_trace(tmp_path).sites.values():
        p = rows.probabilities
        assert p is not None
        numpy.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
        numpy.testing.assert_allclose(-(p * numpy.log(p)).sum(1), rows.entropy, atol=1e-4)
        numpy.testing.assert_array_equal(p.argmax(1), rows.ids[:, 0])


def test_words_whose_times_nobody_knows_are_aligned(recognizer: Recognizer, cuts: list[Cut], tmp_path: Path) -> None:
    silent = [cut.map_supervisions(lambda s: replace(s, alignment=None)) for cut in cuts[:3]]
    record_trace(recognizer, {"seen": silent}, DECODE, tmp_path / "a", 10**6, {}, align=True)
    trace = load_trace(tmp_path / "a")
    assert (trace.labels["phone"] == -1).all()
    for u, facts in enumerate(trace.utterances):
        cut = next(cut for cut in cuts if cut.id == facts["id"])
        found = recognizer.align(torch.from_numpy(load_samples(cut)), facts["text"])
        times = [(symbol, pytest.approx(start), pytest.approx(end)) for symbol, start, end in said(trace, u)]
        assert times == [(word.text, word.start, word.end) for word in found.words]
    foreign = [cut.map_supervisions(lambda s: replace(s, alignment=None, text="xyzzy")) for cut in cuts[:2]]
    record_trace(recognizer, {"seen": foreign}, DECODE, tmp_path / "b", 10**6, {}, align=True)
    assert (load_trace(tmp_path / "b").labels["word"] == -1).all()


def test_what_is_no_whole_trace_is_refused(recognizer: Recognizer, cuts: list[Cut], tmp_path: Path) -> None:
    traced(recognizer, cuts[:2], tmp_path / "a")
    with pytest.raises(InputError, match=r"holds a trace already; choose another folder with out=FOLDER"):
        traced(recognizer, cuts[:2], tmp_path / "a")
    lines = (tmp_path / "a" / "utterances.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "a" / "utterances.jsonl").write_text(lines[0])
    with pytest.raises(InputError, match=r"is damaged \(the numbers of rows differ\); write it again"):
        load_trace(tmp_path / "a")
    shard = tmp_path / "a" / "00000.npz"
    shard.write_bytes(shard.read_bytes()[:-99])
    with pytest.raises(InputError, match=r"is damaged .*; write it again"):
        load_trace(tmp_path / "a")
    (tmp_path / "a" / "trace.json").unlink()
    with pytest.raises(InputError, match=r"holds no whole trace; write one with `moe-asr trace RUN out="):
        load_trace(tmp_path / "a")


def test_what_cannot_be_read_is_listed(recognizer: Recognizer, cuts: list[Cut], tmp_path: Path) -> None:
    plain: dict[str, Any] = cuts[0].to_dict()
    plain["recording"]["sources"][0]["source"] = "/nowhere/at-all.flac"
    broken = type(cuts[0]).from_dict(plain)
    trace = traced(recognizer, [broken, *cuts[1:3]], tmp_path / "a", replace(DECODE, mode=DecodeMode.ctc_prefix_beam))
    assert [problem["id"] for problem in trace.card["unreadable"]] == [cuts[0].id]
    assert {u["id"] for u in trace.utterances} == {cut.id for cut in cuts[1:3]}
    with pytest.raises(InputError, match=r"None of the utterances can be read: .*cannot be read"):
        traced(recognizer, [broken], tmp_path / "b")


def test_a_dense_model_has_no_trace(recognizer: Recognizer, tiny: TrainConfig, cuts: list[Cut], tmp_path: Path) -> None:
    config = replace(tiny, moe=MoEConfig())
    dense = Recognizer.of(build(config, recognizer.tokenizer), recognizer.tokenizer, config)
    with pytest.raises(InputError, match=r"this model is dense: it has no routing to trace"):
        traced(dense, cuts, tmp_path)
