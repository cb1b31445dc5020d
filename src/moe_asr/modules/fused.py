"""The same linear maps, and whole layers of experts in one call, from a kernel that is compiled for this very CPU.

`fused.cpp` is compiled when it is first needed, where there is a compiler, and kept in torch's cache of extensions.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_asr.config.inference import InferencePrecision
from moe_asr.config.model import require

SOURCE = Path(__file__).with_name("fused.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp")
ACTIVATIONS: dict[Callable[..., Tensor] | None, int] = {None: 0, F.silu: 1, F.relu: 2, F.gelu: 3, F.glu: 4}
PRECISIONS = {InferencePrecision.fp32: 0, InferencePrecision.bf16: 1, InferencePrecision.int8: 2}
"""Also the logarithm of how many inputs share a word."""
SIGNATURES = {
    "linear": "mplpli",
    "experts": "mmlpppplli",
    "attention": "mmppplppllpllpllli",
    "convolution": "mmppppfipllppplli",
    "route": "ppppppllllif",
    "ask_for_large_pages": "pl",
}
"""Arguments of the functions in fused.cpp: maps, pointers, longs, ints, floats."""
STEPS = 255
"""From the least to the largest int8 input."""
CENTRED, AFTER_ACTIVATION = 0.5, 0.19
"""Share of these for inputs below 0; swish and gelu hardly give any, and relu none."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel, or None without a compiler, or with one that fails, which is said in one line."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return None
    try:
        # What the compiler says of the CPU is part of the name: machines may share their home directories.
        target = _output(compiler, FLAGS[1], "-dM", "-E", "-x", "c++", os.devnull)
        name = hashlib.sha256(SOURCE.read_bytes() + target + repr(FLAGS).encode()).hexdigest()[:16]
        path = _directory() / f"fused_{name}.so"
        if not path.exists():
            print("compiling a kernel for this CPU, which happens once and takes some seconds", file=sys.stderr)
            _compile(compiler, path)
        kernel = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
        print(f"no fused kernel, which only costs speed: {reason[0] if reason else error}", file=sys.stderr)
        return None
    types = {
        "m": ctypes.POINTER(Maps),
        "p": ctypes.c_void_p,
        "l": ctypes.c_long,
        "i": ctypes.c_int,
        "f": ctypes.c_float,
    }
    for function, arguments in SIGNATURES.items():
        getattr(kernel, function).argtypes = [types[letter] for letter in arguments]
        getattr(kernel, function).restype = None
    kernel.panel.restype = ctypes.c_long
    return kernel


def _directory() -> Path:
    root = os.environ.get("TORCH_EXTENSIONS_DIR")
    cache_home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root or Path(cache_home).expanduser() / "torch_extensions") / "moe_asr"


def _compile(compiler: str, path: Path) -> None:
    # Whoever comes second replaces a file by an equal one: nobody waits for a lock, nor finds half a file.
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        built = Path(scratch) / path.name
        _output(compiler, *FLAGS, str(SOURCE), "-o", str(built))
        built.replace(path)


def _output(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, timeout=300).stdout


class Maps(ctypes.Structure):
    """What fused.cpp knows of E linear maps of one shape."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weights", "start", "scale", "bias")),
        *((name, ctypes.c_long) for name in ("inputs", "outputs")),
        *((name, ctypes.c_int) for name in ("precision", "activation", "zero")),
    )
    tensors: tuple[Tensor, ...]
    """What the pointers point to."""


def supported(precision: InferencePrecision) -> bool:
    """Whether the kernel can be had here, and is the fastest there is. Compiles it if need be."""
    kernel = library()
    return kernel is not None and (precision is not InferencePrecision.int8 or bool(kernel.fast_int8()))


def pack(
    weight: Tensor,
    bias: Tensor,
    precision: InferencePrecision,
    activation: Callable[..., Tensor] | None = None,
    negative_share: float = CENTRED,
) -> Maps:
    """weight (E,N,K), bias (E,N) -> the maps x -> activation(x @ weight.T + bias), of which E = 1 serve `linear`.

    With F.glu, for `convolution`, half of the N outputs are multiplied by the sigmoids of the others.

    Raises InputError where the kernel is not supported.
    """
    require(supported(precision), f"the fused kernel cannot compute in {precision} here: write experts=packed.")
    panel, kind = _kernel().panel(), PRECISIONS[precision]
    weight, bias = weight.detach().float(), bias.detach().float()
    outputs = weight.shape[1]
    if activation is F.glu:  # the two halves side by side in every panel
        weight, bias = (t.unflatten(1, (2, -1, panel // 2)).transpose(1, 2).flatten(1, 3) for t in (weight, bias))
    weight = F.pad(weight, (0, -weight.shape[2] % panel, 0, -weight.shape[1] % panel))
    bias = F.pad(bias, (0, -bias.shape[1] % panel))
    zero, scale, start = round(negative_share * STEPS), bias, bias
    if precision is InferencePrecision.bf16:
        weight = weight.bfloat16()
    elif precision is InferencePrecision.int8:
        scale = (weight.abs().amax(2) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        weight = (weight / scale.unsqueeze(2)).round().to(torch.int8)
        start = -zero * weight.sum(2, dtype=torch.int32)
    words = weight.unflatten(2, (-1, 1 << kind)).unflatten(1, (-1, panel)).transpose(2, 3)
    laid_out = torch.empty(words.shape, dtype=words.dtype)
    _kernel().ask_for_large_pages(laid_out.data_ptr(), laid_out.nbytes)
    tensors = laid_out.copy_(words), *(tensor.clone() for tensor in (start, scale, bias))
    maps = Maps(
        *(tensor.data_ptr() for tensor in tensors), weight.shape[2], outputs, kind, ACTIVATIONS[activation], zero
    )
    maps.tensors = tensors
    return maps


def linear(maps: Maps, x: Tensor) -> Tensor:
    """x (R,K) -> (R,N), in the dtype of x."""
    rows = x.float().contiguous()
    y = rows.new_empty(len(rows), maps.outputs)
    size, inputs = rows.shape
    _kernel().linear(maps, rows.data_ptr(), inputs, y.data_ptr(), size, torch.get_num_threads())
    return y.to(x.dtype)


def experts(
    maps_in: Maps, maps_out: Maps, rows: Tensor, expert_ids: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """What `Experts.forward` returns, for experts that compute maps_in, then maps_out; without ids, of the first."""
    x, top_k = rows.float().contiguous(), 1
    y = torch.zeros_like(x)
    chosen: tuple[int | None, int | None] = (None, None)
    if expert_ids is not None and weights is not None:
        expert_ids, weights, top_k = expert_ids.contiguous(), weights.float().contiguous(), expert_ids.shape[1]
        chosen = expert_ids.data_ptr(), weights.data_ptr()
    pointers = x.data_ptr(), *chosen, y.data_ptr()
    _kernel().experts(maps_in, maps_out, len(maps_in.tensors[0]), *pointers, len(x), top_k, torch.get_num_threads())
    return y.to(rows.dtype)


def lanes() -> int:
    """What the widths of `attention` heads and of a `convolution` are multiples of."""
    return int(_kernel().panel()) // 2


def attention(
    maps: tuple[Maps, Maps],
    bias: Tensor,
    places: Tensor,
    index: Tensor,
    x: Tensor,
    memory: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """`RelativeSelfAttention.forward` on x (B,N,d) of float32, which puts its keys last into memory (B,K,h,2c+1).

    maps: of queries, keys and values, and of the result. bias (h,c): added to queries. places (P,h,c+1): what is added
    to the keys and scores of frames by index (B|1,N). mask broadcastable to (B,1,N,K), and as wide.
    """
    y, (streams, frames, _) = torch.empty_like(x), x.shape
    seen = None if mask is None else mask[(None,) * (4 - mask.ndim)].contiguous()
    by_stream, by_query = (0, 0) if seen is None else tuple(seen.stride(n) if seen.shape[n] > 1 else 0 for n in (0, 2))
    _kernel().attention(
        *maps,
        *(t.data_ptr() for t in (bias, places, index)),
        len(index) > 1,
        *(t.data_ptr() for t in (x, memory)),
        memory.stride(0),
        memory.shape[1] - frames,
        None if seen is None else seen.data_ptr(),
        *(by_stream, by_query, y.data_ptr(), streams, frames, len(bias), torch.get_num_threads()),
    )
    return y


def convolution(
    maps: tuple[Maps, Maps],
    taps: Tensor,
    bias: Tensor,
    norm: tuple[Tensor, Tensor, float] | None,
    activation: Callable[..., Tensor],
    history: Tensor,
    x: Tensor,
) -> tuple[Tensor, Tensor]:
    """`ConvolutionModule.forward` on x (B,N,d) of float32, with history (B,k-1,d), and what it returns.

    maps: before, with F.glu, and after. taps (k,d), bias (d): of the depthwise convolution. norm: gain (d), shift (d)
    and epsilon of a layer norm, if there is one.
    """
    y, (streams, frames, width) = torch.empty_like(x), x.shape
    before, history = len(taps) - 1, history if history.stride()[1:] == (width, 1) else history.contiguous()
    seen = x.new_empty(streams, before + frames, width)
    gain, shift, epsilon = (None, None, 0.0) if norm is None else (norm[0].data_ptr(), norm[1].data_ptr(), norm[2])
    _kernel().convolution(
        *(*maps, taps.data_ptr(), bias.data_ptr(), gain, shift, epsilon, ACTIVATIONS[activation]),
        *(history.data_ptr(), history.stride(0), before),
        *(t.data_ptr() for t in (x, seen, y)),
        *(streams, frames, torch.get_num_threads()),
    )
    return y, seen


def route(
    x: Tensor, weight: Tensor, valid: Tensor, top_k: int, over_chosen: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """x (B,N,d), weight (E,d) of float32, valid (B,N) -> the logits, expert ids and weights of a `Routing`.

    Weights: the softmax over the chosen, or over all.
    """
    x, weight, valid, (experts, width) = x.contiguous(), weight.contiguous(), valid.contiguous(), weight.shape
    logits, weights = x.new_empty(*x.shape[:2], experts), x.new_empty(*x.shape[:2], top_k)
    ids = torch.empty(weights.shape, dtype=torch.long)
    pointers = (tensor.data_ptr() for tensor in (x, weight, valid, logits, ids, weights))
    _kernel().route(*pointers, valid.numel(), width, experts, top_k, over_chosen, scale)
    return logits, ids, weights


def _kernel() -> ctypes.CDLL:
    kernel = library()
    assert kernel is not None
    return kernel
