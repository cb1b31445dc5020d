"""Equality with the searches of the reference implementation (WeNet, float32), where ../shared/parity is there."""

from pathlib import Path

import numpy as np
import pytest
import torch

import moe_asr
from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.decoding.search import search
from moe_asr.interop.wenet import import_wenet
from moe_asr.tensors import Chunking

GOLDEN = Path(__file__).parents[2] / "../shared/parity"
pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason="the golden numbers (../shared/parity) are not here")


@pytest.fixture(scope="module", params=["dense", "moe"])
def golden(request, tmp_path_factory):
    """The model, and for each context its encoded utterances and the reference's results."""
    out = tmp_path_factory.mktemp("imported") / request.param
    import_wenet(GOLDEN / request.param, out)
    recognizer = moe_asr.load(str(out))
    inputs = {name: torch.from_numpy(array) for name, array in np.load(GOLDEN / request.param / "inputs.npz").items()}
    with torch.inference_mode():
        contexts = {
            name: recognizer.model.encode(inputs["feats"][:rows], inputs["feats_lengths"][:rows].long(), chunking)
            for name, rows, chunking in (
                ("full", 4, Chunking()),
                ("chunk8", 4, Chunking(8)),
                ("stream8_utt0", 1, Chunking(8)),
            )
        }
    return recognizer, contexts, np.load(GOLDEN / request.param / "outputs.npz")


def decoded(golden, mode):
    """(array name -> the reference's value for one utterance, our n-best) of every utterance in every context."""
    recognizer, contexts, expected = golden
    config = DecodeConfig(mode, beam=5, nbest=1 if mode is DecodeMode.ctc_greedy else 5)
    name = {"ctc_greedy": "ctc_greedy_search", "ctc_prefix_beam": "ctc_prefix_beam_search"}.get(mode, str(mode))
    for context, encoded in contexts.items():
        with torch.inference_mode():
            results = search(recognizer.model, encoded, config, recognizer.tokenizer)
        for i, found in enumerate(results):
            folder = f"dec_{context}/{name}/"
            arrays = {k.removeprefix(folder): expected[k] for k in expected.files if k.startswith(folder)}
            rows = {k: v[i] for k, v in arrays.items() if "nbest" not in k}
            yield rows | {k[:-1]: v for k, v in arrays.items() if "nbest" in k and k.endswith(str(i))}, found


def test_greedy(golden):
    for expected, (found,) in decoded(golden, DecodeMode.ctc_greedy):
        assert list(found.tokens) == expected["tokens"][: expected["lens"]].tolist()


def test_prefix_beam(golden):
    others = differing = 0
    for expected, found in decoded(golden, DecodeMode.ctc_prefix_beam):
        assert list(found[0].frames) == expected["times"][: expected["lens"]].tolist()
        assert found[0].score == pytest.approx(expected["score"], abs=1e-4)
        assert [h.score for h in found] == pytest.approx(expected["nbest_scores"].tolist(), abs=1e-4)
        for h, tokens, times in zip(found, expected["nbest"], expected["nbest_times"], strict=True):
            assert list(h.tokens) == tokens[tokens >= 0].tolist()
            late = np.array(h.frames) != times[: len(h.tokens)]
            others, differing = others + len(late), differing + int(late.sum())
    # Where a repetition wins over a new token in the same frame, the reference mixes the times of both paths.
    assert differing <= 2 < 300 < others


def test_attention(golden):
    for expected, found in decoded(golden, DecodeMode.attention):
        assert list(found[0].tokens) == expected["tokens"][: expected["lens"]].tolist()
        assert found[0].score == pytest.approx(expected["score"], abs=1e-4)


def test_rescoring(golden):
    for expected, found in decoded(golden, DecodeMode.attention_rescoring):
        best, length = found[0], int(expected["lens"])
        assert list(best.tokens) == expected["tokens"][:length].tolist()
        assert [h.score for h in found] == pytest.approx(sorted(expected["nbest_scores"], reverse=True), abs=1e-4)
        assert best.score == pytest.approx(expected["score"], abs=1e-4)
        assert best.confidence == pytest.approx(expected["confidence"], abs=1e-5)
        assert best.token_confidences == pytest.approx(expected["tokens_confidence"][:length].tolist(), abs=1e-5)
