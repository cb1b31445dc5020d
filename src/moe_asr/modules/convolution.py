"""The convolution module of a Conformer layer (arXiv 2005.08100, section 2.2), causal or centred."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_asr.config.inference import InferencePrecision
from moe_asr.config.model import Activation, ConvNorm
from moe_asr.modules import fused
from moe_asr.modules.feed_forward import ACTIVATIONS
from moe_asr.modules.fused import AFTER_ACTIVATION
from moe_asr.modules.packed import Identity, bias_of, give_up, identity_of


class ConvolutionModule(nn.Module):
    """Pointwise, GLU, depthwise over time, norm, activation, pointwise.

    As in the reference, frames beyond the edges of an utterance are zeros before the first pointwise map if causal,
    hence ``GLU(bias)`` after it, and zeros after it if centred. A stream keeps what the depthwise convolution saw
    last, so that no frame is mapped twice.
    """

    def __init__(self, width: int, kernel: int, causal: bool, norm: ConvNorm, activation: Activation) -> None:
        super().__init__()
        self.causal, self.activation = causal, ACTIVATIONS[activation]
        self.pointwise_in = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, kernel, groups=width)
        self.norm = nn.LayerNorm(width) if norm is ConvNorm.layer_norm else nn.BatchNorm1d(width)
        self.pointwise_out = nn.Linear(width, width)

    def empty_history(self, streams: int) -> Tensor:
        """(B,k-1,d): what a causal convolution sees before the first frame."""
        return F.glu(self.pointwise_in.bias, -1).expand(streams, self.depthwise.kernel_size[0] - 1, -1)

    def forward(self, x: Tensor, valid: Tensor, history: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B,N,d), valid (B,N), history (B,k-1,d) -> (B,N,d) and the history followed by the new frames."""
        before = self.depthwise.kernel_size[0] - 1
        x = F.glu(self.pointwise_in(x), -1)
        if self.causal:
            x = torch.cat([(self.empty_history(len(x)) if history is None else history).to(x.dtype), x], 1)
        else:  # here padding would be seen by the last valid frames
            x = F.pad(x.masked_fill(~valid.unsqueeze(-1), 0.0), (0, 0, before // 2, before // 2))
        # A two-dimensional convolution of height 1 takes this layout as it is: channels-last.
        y = F.conv2d(
            x.unsqueeze(2).permute(0, 3, 1, 2),
            self.depthwise.weight.unsqueeze(-1),
            self.depthwise.bias,
            groups=self.depthwise.groups,
        )
        y = y.squeeze(-1).transpose(1, 2)
        if isinstance(self.norm, nn.BatchNorm1d):  # statistics of valid frames only
            y = y.masked_scatter(valid.unsqueeze(-1), self.norm(y[valid]).to(y.dtype))
        else:
            y = self.norm(y)
        return self.pointwise_out(self.activation(y)), x


class FusedConvolution(ConvolutionModule):
    """What `fuse_convolution` makes of one in place: parameters are the same, and rule as in a `PackedLinear`."""

    packed: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    fresh: Tensor
    packed_from: Identity

    def forward(self, x: Tensor, valid: Tensor, history: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() or identity_of(self) != self.packed_from:
            return super().forward(x, valid, history)
        history = self.fresh.expand(len(x), -1, -1) if history is None else history
        y, seen = self.packed(x.float().contiguous(), history)
        return y.to(x.dtype), seen


def fuse_convolution(module: ConvolutionModule, precision: InferencePrecision, release: bool = False) -> None:
    """Raises InputError where the fused kernel is not supported; it is for causal ones, `fused.lanes` times n wide."""
    first, last, norm = module.pointwise_in, module.pointwise_out, module.norm
    maps = (
        fused.pack(first.weight[None], first.bias[None], precision, F.glu),
        fused.pack(last.weight[None], last.bias[None], precision, negative_share=AFTER_ACTIVATION),
    )
    taps, bias = module.depthwise.weight[:, 0].detach().T.contiguous(), bias_of(module.depthwise).detach().clone()
    layer_norm = None
    if isinstance(norm, nn.LayerNorm):
        layer_norm = norm.weight.detach().clone(), norm.bias.detach().clone(), norm.eps
    else:  # a fixed map per channel
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gain = norm.weight.detach() * torch.rsqrt(norm.running_var + norm.eps)
        taps, bias = taps * gain, (bias - norm.running_mean) * gain + norm.bias.detach()
    fresh, activation = module.empty_history(1).detach().contiguous(), module.activation
    if release:
        give_up(first.weight, last.weight)
    module.__class__ = FusedConvolution
    assert isinstance(module, FusedConvolution)
    module.packed = lambda x, history: fused.convolution(maps, taps, bias, layer_norm, activation, history, x)
    module.fresh, module.packed_from = fresh, identity_of(module)
