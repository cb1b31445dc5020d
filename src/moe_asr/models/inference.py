"""How a loaded model computes: in which numbers, and its experts by which backend."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from moe_asr.config.inference import ExpertBackend, InferencePrecision, check_computing
from moe_asr.config.model import require
from moe_asr.models.u2pp import AsrModel
from moe_asr.modules import fused
from moe_asr.modules.attention import RelativeSelfAttention, fuse_attention
from moe_asr.modules.convolution import ConvolutionModule, fuse_convolution
from moe_asr.modules.feed_forward import FeedForward, fuse_feed_forward
from moe_asr.modules.moe.experts import Experts, pack, use_backend
from moe_asr.modules.moe.routers import TopKRouter, fuse_router
from moe_asr.modules.packed import pack_linears, supported
from moe_asr.modules.positions import RelativePositions
from moe_asr.modules.subsampling import ConvolutionalSubsampling, pack_subsampling


def automatic(precision: InferencePrecision, on_cpu: bool = True) -> ExpertBackend:
    """What `ExpertBackend.auto` stands for on this machine. Compiles the fused kernel if it must."""
    if on_cpu and fused.supported(precision):
        return ExpertBackend.fused
    if not on_cpu or (precision is InferencePrecision.fp32 and not supported(precision)):
        return ExpertBackend.sorted
    return ExpertBackend.packed


def prepare(
    model: AsrModel,
    precision: InferencePrecision = InferencePrecision.fp32,
    experts: ExpertBackend = ExpertBackend.auto,
    release: bool = False,
) -> ExpertBackend:
    """On a CPU that has the kernels, packs all linear maps but the routers', the subsampling and the experts.

    Call it once the model is on its device. State dict and gradients stay as they are, unless `release` gives up the
    memory of what was packed, so that the model does nothing but infer. On a GPU bf16 rounds the weights of the same
    parts themselves. Returns the backend of the experts. Raises InputError for what the device cannot do.
    """
    check_computing(precision, experts)
    on_cpu, fp32 = next(model.parameters()).is_cpu, precision is InferencePrecision.fp32
    require(
        on_cpu or precision is not InferencePrecision.int8,
        "precision=int8 is for CPUs: write device=cpu, or precision=bf16.",
    )
    possible = on_cpu and supported(precision)
    if experts is ExpertBackend.auto:
        experts = automatic(precision, on_cpu)
    fuse = experts is ExpertBackend.fused
    packed = fuse or experts is ExpertBackend.packed
    require(on_cpu or not packed, "Packed weights are for CPUs: write device=cpu, or experts=auto.")
    if not packed:
        use_backend(model, str(experts))
    subsampling = model.encoder.subsampling
    for module in model.modules() if packed else ():
        if isinstance(module, Experts):
            module.backend = pack(module, precision, release, fuse)
    if not on_cpu and not fp32:
        halve(model)
    if not on_cpu or (fp32 and not possible and not fuse):
        return experts
    skipped, fused_attention = {*model.routers.modules()}, False
    for module in model.modules() if fuse else ():
        match module:
            case FeedForward():
                fuse_feed_forward(module, precision, release)
            case RelativeSelfAttention() if module.content_bias.shape[1] % fused.lanes() == 0:
                fuse_attention(module, precision, release)
                fused_attention = True
            case ConvolutionModule() if module.causal and module.pointwise_out.in_features % fused.lanes() == 0:
                fuse_convolution(module, precision, release)
            case TopKRouter():
                fuse_router(module)
                continue
            case _:
                continue
        skipped |= {*module.modules()}
    if isinstance(model.encoder.positions, RelativePositions):
        model.encoder.positions.places = fused_attention
    if isinstance(subsampling, ConvolutionalSubsampling):
        skipped |= {*subsampling.modules()}
        pack_subsampling(subsampling, precision, release, fuse)
    pack_linears(model, precision, skipped, release, fuse)
    return experts


def halve(model: AsrModel) -> None:
    """Rounds to bf16, in place, the weights of all linear maps but the routers', the subsampling and the experts.

    These then compute in bf16, for which GPUs have units of their own and `sorted_rows` its grouped product, and return
    what they were given: norms, softmax and the sums along the layers stay in float32. For inference only.
    """
    routers = {*model.routers.modules()}
    for module in model.modules():
        if isinstance(module, nn.Linear | ConvolutionalSubsampling | Experts) and module not in routers:
            module.bfloat16()
            module.forward = partial(_in_bf16, module.forward)  # type: ignore[method-assign]


def _in_bf16(forward: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16):
        return forward(x, *others).to(x.dtype)
