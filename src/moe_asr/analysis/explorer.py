"""A page on which one recording is heard and seen together with what the routers decide about each of its frames."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy
import soundfile
import torch

from moe_asr.analysis.page import Html, element, page, section
from moe_asr.config.compose import to_plain
from moe_asr.config.decode import DecodeConfig
from moe_asr.errors import InputError
from moe_asr.features.audio import Audio
from moe_asr.modules.moe.routing import SiteTrace
from moe_asr.runs.recognizer import Recognizer
from moe_asr.runs.transcripts import FRAME_SECONDS, AlignedText, Transcript
from moe_asr.tensors import Chunking

WAVE_BINS_PER_SECOND = 100


def explore(recognizer: Recognizer, audio: Audio, name: str, decode: DecodeConfig, about: Sequence[str] = ()) -> str:
    """The page of audio at the model's sample rate; about: sentences for its head.

    name: of the utterance, for forced routing. Raises InputError for a dense model, and for audio without a single
    frame.
    """
    if not recognizer.model.routers.sites:
        raise InputError("this model is dense: it has no routing to explore.")
    data = exploration(recognizer, audio, decode, name)
    return page(f"Routing of {name}", _body(data, about), ("explorer.js",), data)


def exploration(recognizer: Recognizer, audio: Audio, decode: DecodeConfig, name: str = "") -> dict[str, Any]:
    """What the page shows, as plain values; times in seconds, arrays as base64 of their bytes, row by row.

    spectrogram: uint8, a row of log-mel bins for each feature frame. sites, in network order: the ``edges`` (C+1,) of
    its C cells in time, what each ``reads`` (tokens; null for frames), probabilities (C,E) uint8 of 255ths, ids (C,K)
    int16, -1 for none, and weights (C,K) float32. words: [text, start, end, confidence], none where CTC cannot say.
    """
    samples = torch.from_numpy(audio.samples)
    (transcript,), routing = recognizer.decode([samples], decode, [name])
    if not routing or not routing[0].valid.any():
        raise InputError(f"{name or 'the audio'} is too short ({audio.seconds:.3f} s): it has not a single frame.")
    aligned = _aligned(recognizer, samples, transcript, decode)
    features = recognizer.log_mel(samples[None].to(recognizer.device), torch.tensor([len(samples)]))[0][0].cpu().numpy()
    trace = routing + recognizer.decoder_routing([samples], [transcript], decode, [name])
    file = io.BytesIO()
    soundfile.write(file, audio.samples, audio.sample_rate, subtype="PCM_16", format="FLAC")
    return {
        "seconds": round(audio.seconds, 4),
        "audio": _base64(numpy.frombuffer(file.getvalue(), numpy.uint8)),
        "sample_rate": audio.sample_rate,
        "wave": _base64(_wave(audio)),
        "spectrogram": {"bins": features.shape[1], "cells": _base64(_levels(features))},
        "text": transcript.text,
        "words": [[w.text, round(w.start, 3), round(w.end, 3), round(w.confidence, 4)] for w in aligned.words]
        if aligned
        else [],
        "chunk_seconds": decode.chunk and decode.chunk * FRAME_SECONDS,
        "decode": to_plain(decode),
        "sites": [_site(part, recognizer, transcript, aligned, audio.seconds) for part in trace],
    }


def _aligned(
    recognizer: Recognizer, samples: torch.Tensor, transcript: Transcript, decode: DecodeConfig
) -> AlignedText | None:
    try:
        return recognizer.align(samples, transcript.text, Chunking(decode.chunk, decode.left))
    except InputError:  # nothing was said, or what CTC cannot have heard
        return None


def _site(
    part: SiteTrace, recognizer: Recognizer, transcript: Transcript, aligned: AlignedText | None, seconds: float
) -> dict[str, Any]:
    valid, routing = part.valid[0], part.routing
    values = [array[0, valid].cpu().numpy() for array in (routing.probabilities, routing.expert_ids, routing.weights)]
    reads: list[str] | None = None
    if part.site.stack == "encoder":
        edges = numpy.arange(len(values[0]) + 1) * FRAME_SECONDS
    else:
        ids = transcript.hypothesis.tokens
        reads = [recognizer.tokenizer.symbols[token] for token in ids]
        known = aligned is not None and recognizer.tokenizer.encode(aligned.text) == [*ids]
        starts = [token.start for token in aligned.tokens] if aligned and known else []
        if not known:
            starts = numpy.linspace(0, seconds, len(ids) + 2)[1:-1].tolist()
        if part.site.stack == "left_to_right":  # the start token, then the tokens
            edges = numpy.array([0.0, *starts, seconds])
            reads = ["start", *reads]
        else:
            values = [array[::-1] for array in values]
            end = aligned.tokens[-1].end if aligned and known else sum((*starts[-1:], seconds)) / 2
            edges = numpy.array([0.0, *starts[1:], *([end] if ids else []), seconds])
            reads = [*reads, "start"]
    probabilities, ids_, weights = values
    return {
        "name": str(part.site),
        "experts": probabilities.shape[1],
        "top_k": ids_.shape[1],
        "edges": edges.round(4).tolist(),
        "reads": reads,
        "probabilities": _base64((255 * probabilities).round().astype(numpy.uint8)),
        "ids": _base64(ids_.astype("<i2")),
        "weights": _base64(weights.astype("<f4")),
    }


def _levels(features: numpy.ndarray) -> numpy.ndarray:
    """(T,F) log energies as bytes; the quietest hundredth is black."""
    low, high = numpy.quantile(features, 0.01), features.max()
    return (255 * ((features - low) / max(high - low, 1e-6)).clip(0, 1)).round().astype(numpy.uint8)


def _wave(audio: Audio) -> numpy.ndarray:
    """(bins, 2) the smallest and the largest sample of each stretch, in 127ths of the loudest."""
    size = audio.sample_rate // WAVE_BINS_PER_SECOND
    padded = numpy.pad(audio.samples, (0, -len(audio.samples) % size)).reshape(-1, size)
    loudest = max(float(abs(audio.samples).max()), 1e-6)
    return (127 * numpy.stack([padded.min(1), padded.max(1)], 1) / loudest).round().astype(numpy.int8)


def _base64(array: numpy.ndarray) -> str:
    return base64.b64encode(numpy.ascontiguousarray(array).tobytes()).decode()


def _body(data: dict[str, Any], about: Sequence[str]) -> Html:
    sound = f"data:audio/flac;base64,{data.pop('audio')}"
    top = section(
        "heard",
        "What was heard",
        element("p", data["text"] or "(nothing)", class_="lead", id="text"),
        [element("p", line, class_="soft") for line in about],
    )
    notes = ["Vertical lines are the borders of chunks."] if data["chunk_seconds"] else []
    if not data["words"]:
        notes.append("When the words are said is not known: CTC cannot align this text.")
    if any(site["reads"] for site in data["sites"]):
        notes.append("Decoders read tokens: a cell of theirs spans the token that is read, from its start to the next.")
    keys = "Click, touch or drag to move; ← → a frame, with Shift ten; ↑ ↓ another site; space plays."
    labels = [
        element("div", text, style=f"height:{height}px")
        for text, height in (("waveform", 56), ("log-mel", 120), ("words", 28))
    ]
    sites = [element("button", site["name"], type="button", data_site=site["name"]) for site in data["sites"]]
    names = [*labels, element("div", sites, id="sites"), element("div", "", id="rows")]
    canvases = [element("canvas", id=name) for name in ("wave", "mel")]
    track = element(
        "div",
        [*canvases, element("div", id="words"), element("canvas", id="strips"), element("canvas", id="detail")],
        element("div", "", id="cursor"),
        id="track",
        tabindex=0,
        role="slider",
        aria_label="time",
        aria_valuemin=0,
        aria_valuemax=data["seconds"],
    )
    zoom = [
        element("button", sign, type="button", id=f"zoom-{name}", aria_label=f"zoom {name}")
        for sign, name in (("−", "out"), ("+", "in"))
    ]
    map_ = section(
        "map",
        "Which expert comes first, frame by frame and site by site",
        element(
            "div",
            element("audio", src=sound, controls=True, id="audio"),
            zoom,
            element("span", id="legend"),
            class_="tools",
        ),
        element("div", element("div", names, id="names"), element("div", track, id="view"), id="frame"),
        element("p", keys, class_="note"),
        [element("p", note, class_="note") for note in notes],
    )
    here = section(
        "here",
        "At the cursor",
        element("p", id="moment", aria_live="polite"),
        element("div", element("div", id="bars"), element("div", id="depth"), class_="figures"),
    )
    return Html(top + map_ + here)
