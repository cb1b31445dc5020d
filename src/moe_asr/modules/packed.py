"""Linear maps for inference on CPUs: the weights are laid out once for the machine, in fp32, bf16 or int8.

Nothing here knows gradients, and nothing belongs in a checkpoint: pack after loading.
"""

import warnings
from collections.abc import Callable, Container, Iterable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_asr.config.inference import InferencePrecision
from moe_asr.config.model import require
from moe_asr.modules import fused
from moe_asr.modules.fused import CENTRED

Linear = Callable[[Tensor], Tensor]

LAYOUT_ROWS = 64
"""The number of rows that oneDNN lays weights out for; any from 16 to 256 is equally fast, and 1 is slow."""
WARM_ROWS = 128
"""Up to which `compile_kernels` works ahead."""
POST_OPS: dict[Callable[[Tensor], Tensor] | None, str] = {None: "none", F.silu: "swish", F.relu: "relu", F.gelu: "gelu"}
"""oneDNN's names of what it computes on results before it stores them."""


def supported(precision: InferencePrecision) -> bool:
    """Whether torch has the kernels on this machine."""
    if precision is InferencePrecision.int8:
        return torch.backends.quantized.engine in ("x86", "fbgemm")
    if not torch.backends.mkldnn.is_available():
        return False
    return precision is InferencePrecision.fp32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def pack_linear(
    weight: Tensor,
    bias: Tensor,
    precision: InferencePrecision,
    activation: Callable[[Tensor], Tensor] | None = None,
    negative_share: float = CENTRED,
    fuse: bool = False,
) -> Linear:
    """weight (N,K), bias (N,) -> a function from x (R,K) to activation(x @ weight.T + bias) (R,N), in the dtype of x.

    fuse: by `fused`. int8 rounds weights per output and inputs per row, so that no row's result depends on the others.
    Raises InputError where the machine lacks the kernels.
    """
    if fuse:
        known = activation in fused.ACTIVATIONS
        maps = fused.pack(weight[None], bias[None], precision, activation if known else None, negative_share)
        return lambda x: fused.linear(maps, x) if known or activation is None else activation(fused.linear(maps, x))
    require(supported(precision), f"precision={precision} has no kernels on this machine; write precision=fp32.")
    weight, bias = weight.detach().float(), bias.detach().float()
    if precision is InferencePrecision.int8:
        return _quantized(weight, bias, activation, negative_share)
    dtype = torch.float32 if precision is InferencePrecision.fp32 else torch.bfloat16
    return _reordered(weight.to(dtype), bias.to(dtype), activation)


class PackedLinear(nn.Linear):
    """What `pack_linears` makes of an nn.Linear in place: the parameters are the same, and rule where gradients are
    wanted, and once they change."""

    packed: Linear
    packed_from: "Identity"

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or identity(self._parameters.values()) != self.packed_from:
            return super().forward(x)
        return self.packed(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)


def pack_linears(
    model: nn.Module,
    precision: InferencePrecision,
    skipped: Container[nn.Module],
    release: bool = False,
    fuse: bool = False,
) -> None:
    """Packs every nn.Linear of a model but those skipped. Raises InputError where the machine lacks the kernels."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module not in skipped:
            bias = bias_of(module)
            module.__class__ = PackedLinear
            assert isinstance(module, PackedLinear)
            module.packed = pack_linear(module.weight, bias, precision, fuse=fuse)
            if release:
                give_up(module.weight)
            module.packed_from = identity(module._parameters.values())


def bias_of(linear: nn.Linear | nn.Conv1d) -> Tensor:
    return linear.weight.new_zeros(len(linear.weight)) if linear.bias is None else linear.bias


def give_up(*weights: Tensor) -> None:
    """Frees the memory of weights of which only the packed copy is needed; who reads them still, reads NaN."""
    for weight in weights:
        weight.data = weight.new_full((), torch.nan).expand(weight.shape)


Identity = list[tuple[int, int]]


def identity(parameters: Iterable[Tensor | None]) -> Identity:
    """Differs once one of them has been changed, loaded or moved."""
    return [(parameter.data_ptr(), parameter._version) for parameter in parameters if parameter is not None]


def identity_of(module: nn.Module) -> Identity:
    """Of all that a module and its children hold."""
    found: Identity = []
    for part in (module, *module._modules.values()):
        if part is not None:
            found += identity(part._parameters.values())
            if part._buffers:
                found += identity(part._buffers.values())
    return found


def bucket(rows: int) -> int:
    """The number of rows to compute instead, at most an eighth and 7 more: oneDNN compiles a kernel for each number."""
    step = min(8, 1 << max(0, (rows - 1).bit_length() - 4))
    return -(-rows // step) * step


def _reordered(weight: Tensor, bias: Tensor, activation: Callable[[Tensor], Tensor] | None) -> Linear:
    weight, bias = torch.ops.mkldnn._reorder_linear_weight(weight, LAYOUT_ROWS), bias.clone()
    known = POST_OPS.get(activation)

    def linear(x: Tensor) -> Tensor:
        rows, padding = x.to(bias.dtype), bucket(len(x)) - len(x)
        rows = F.pad(rows, (0, 0, 0, padding)) if padding else rows.contiguous()
        y = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, known or "none", [], "none")[: len(x)].to(x.dtype)
        return y if known or activation is None else activation(y)

    return linear


@cache
def compile_kernels(
    outputs: int, inputs: int, precision: InferencePrecision, activation: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Meets every `bucket` once, which takes a millisecond each, where the number of rows will change all the time."""
    linear = pack_linear(torch.zeros(outputs, inputs), torch.zeros(outputs), precision, activation)
    for rows in sorted({bucket(rows) for rows in range(1, WARM_ROWS + 1)}):
        linear(torch.zeros(rows, inputs))


def _quantized(
    weight: Tensor, bias: Tensor, activation: Callable[[Tensor], Tensor] | None, negative_share: float
) -> Linear:
    tiny = torch.finfo(torch.float32).tiny
    scale = (weight.abs().amax(1) / 127).clamp(min=tiny)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls these tensors deprecated, but has no other way into fbgemm
        zeros = torch.zeros(len(weight), dtype=torch.long)
        stored = torch.quantize_per_channel(weight, scale.double(), zeros, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(stored, None)
    # Without VNNI, fbgemm adds pairs of products in 16 bits, which 255 steps would overflow.
    steps = 255 if torch.cpu._is_vnni_supported() else 127
    zero = round(negative_share * steps)
    bias = bias.clone()

    def linear(x: Tensor) -> Tensor:
        rows = x.float()
        step = torch.maximum(rows.amax(1, keepdim=True) / (steps - zero), rows.amin(1, keepdim=True) / -zero)
        step = step.clamp(min=tiny)
        y = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(rows / step, 1.0, zero, packed)
        y = torch.addcmul(bias, y, step).to(x.dtype)
        return y if activation is None else activation(y)

    return linear
