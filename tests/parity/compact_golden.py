"""A copy of the reference's numbers small enough to travel with the project (under 1 MB), and how it was made.

dense.xz: all weights of a small dense model, its inputs, and a choice of its outputs. Arrays of more than 1000 weights
are rounded to multiples of 2^-17 (encoder) or 2^-15 (decoders, CTC) times about their mean magnitude, features to
2^-15, outputs to 2^-18; all else is exact. What is compared are still the reference's outputs for its own weights:
rounding moves the encoder's output by less than 1e-5, CTC log-probabilities by less than 5e-5, and the gradient
norms of the first convolution by 4e-4 of themselves (all others by about 1e-5).

moe_layer.xz: one Mixture-of-Experts layer of 8 experts, its input, router logits and output on the frames that chose
two of the experts, whose weights are the only ones kept.

``python tests/parity/compact_golden.py GOLDEN`` makes both anew from the full numbers.
"""

import io
import json
import lzma
import math
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
OFFSET = 1 << 23
BITS = (("encoder", 17), ("", 15))
"""How far below its mean magnitude a large array is rounded: errors grow on their way to the output."""
Arrays = dict[str, np.ndarray]


def write(path: Path, exact: Arrays, coarse: dict[str, tuple[np.ndarray, int]]) -> None:
    """coarse: array and exponent of its rounding. Their bytes lie in three planes, of which the lowest is noise."""
    codes = [
        np.round(array.astype(np.float64) * 2.0**-e).astype(np.int64).ravel() + OFFSET for array, e in coarse.values()
    ]
    numbers = np.concatenate(codes)
    assert ((numbers >= 0) & (numbers < 2 * OFFSET)).all()
    planes = {f"plane{i}": (numbers >> 8 * i & 255).astype(np.uint8) for i in range(3)}
    index = json.dumps([[name, e, array.shape] for name, (array, e) in coarse.items()])
    buffer = io.BytesIO()
    np.savez(buffer, index=np.array(index), **planes, **exact)
    path.write_bytes(lzma.compress(buffer.getvalue(), preset=9))


def read(path: Path) -> Arrays:
    arrays = dict(np.load(io.BytesIO(lzma.decompress(path.read_bytes()))))
    numbers = sum(arrays.pop(f"plane{i}").astype(np.int64) << 8 * i for i in range(3)) - OFFSET
    for name, exponent, shape in json.loads(str(arrays.pop("index"))):
        size = math.prod(shape)
        arrays[name], numbers = (numbers[:size] * 2.0**exponent).astype(np.float32).reshape(shape), numbers[size:]
    return arrays


def part(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def write_directory(folder: Path) -> tuple[Arrays, Arrays]:
    """Writes the dense model as a WeNet directory; returns its inputs and outputs."""
    arrays = read(HERE / "dense.xz")
    for name in ("train.yaml", "units.txt", "global_cmvn"):
        (folder / name).write_bytes((HERE / "dense" / name).read_bytes())
    weights = {name: torch.from_numpy(array) for name, array in part(arrays, "weights/").items()}
    torch.save(weights, folder / "final.pt")
    return part(arrays, "inputs/"), part(arrays, "outputs/")


def magnitude(array: np.ndarray) -> int:
    return int(np.floor(np.log2(np.abs(array).mean())))


def shrink_dense(golden: Path) -> None:
    weights = {name: t.numpy() for name, t in torch.load(golden / "checkpoint.pt", weights_only=True).items()}
    outputs = dict(np.load(golden / "outputs.npz"))
    lengths, tokens = outputs["enc_mask"].sum((1, 2)), (outputs["ys_out"] >= 0).sum(1)
    chosen = ["enc_mask", "ys_in", "ys_out", "r_ys_in", "r_ys_out"]
    chosen += [name for name in outputs if name.startswith(("full/", "chunk8/", "grad_", "train5/", "dec_full/"))]
    exact = {f"outputs/{name}": outputs[name] for name in chosen}
    exact |= {f"inputs/{name}": array for name, array in np.load(golden / "inputs.npz").items() if name != "feats"}
    exact |= {f"weights/{name}": array for name, array in weights.items() if array.size <= 1000 and "cmvn" not in name}
    coarse = {
        f"weights/{name}": (array, magnitude(array) - next(bits for prefix, bits in BITS if name.startswith(prefix)))
        for name, array in weights.items()
        if array.size > 1000
    }
    coarse["inputs/feats"] = np.load(golden / "inputs.npz")["feats"], -15
    for name, valid in (("enc_full", lengths), ("dec_l2r_logits", tokens), ("dec_r2l_logits", tokens)):
        padding = np.arange(outputs[name].shape[1]) >= valid[:, None]
        coarse[f"outputs/{name}"] = np.where(padding[..., None], 0, outputs[name]), -18
    first = ["ctc_logp_full", "enc_chunk4_left2", "enc_chunk8_left-1", "enc_chunk16_left2"]
    coarse |= {f"outputs/{name}": (outputs[name][:1], -18) for name in first}
    streams = ["stream3_chunk4_left2/enc", "stream3_chunk8_left-1/enc", "stream3_chunk16_left2/enc"]
    streams += [f"stream0_chunk8_left2/{kind}_cache_step4" for kind in ("att", "cnn")]
    coarse |= {f"outputs/{name}": (outputs[name], -18) for name in streams}
    write(HERE / "dense.xz", exact, coarse)
    (HERE / "dense").mkdir(exist_ok=True)
    for source, target in (("config.yaml", "train.yaml"), ("units.txt",) * 2, ("global_cmvn",) * 2):
        (HERE / "dense" / target).write_bytes((golden / source).read_bytes())


def shrink_moe(golden: Path) -> None:
    layer = "encoder.encoders.0.feed_forward_macaron"
    outputs, weights = np.load(golden / "outputs.npz"), torch.load(golden / "checkpoint.pt", weights_only=True)
    lengths = outputs["enc_mask"].sum((1, 2))
    logits = outputs[f"gate_logits/{layer}"].reshape(4, -1, 8)

    def valid(array: np.ndarray) -> np.ndarray:  # of utterances 1 and 3, the only ones with intermediate arrays
        return np.concatenate([row[: lengths[i]] for row, i in zip(array, (1, 3), strict=True)])

    rows = valid(logits[[1, 3]])
    best = np.argsort(-rows, -1)[:, :2]
    kept = max(combinations(range(8), 2), key=lambda experts: np.isin(best, experts).all(1).sum())
    frames = np.isin(best, kept).all(1)
    exact = {"kept": np.array(kept), "router": weights[f"{layer}.gate.weight"].numpy(), "logits": rows[frames]}
    exact |= {side: valid(outputs[f"inter/l0_ffm_{side}"])[frames] for side in ("in", "out")}
    coarse = {}
    for expert in kept:
        for name in ("w_1.weight", "w_1.bias", "w_2.weight", "w_2.bias"):
            array = weights[f"{layer}.experts.{expert}.{name}"].numpy()
            coarse[f"{expert}.{name}"] = array, magnitude(array) - 17
    write(HERE / "moe_layer.xz", exact, coarse)


if __name__ == "__main__":
    shrink_dense(Path(sys.argv[1]) / "dense")
    shrink_moe(Path(sys.argv[1]) / "moe")
