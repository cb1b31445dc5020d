"""The convolution module written out naively, an utterance at a time."""

import pytest
import torch
from torch import nn

from moe_asr.config.model import Activation, ConvNorm
from moe_asr.modules.convolution import ConvolutionModule


@pytest.mark.parametrize("norm", ConvNorm)
@pytest.mark.parametrize("causal", [True, False])
def test_each_utterance_is_as_alone_and_as_the_reference_has_it(causal, norm):
    torch.manual_seed(0)
    module = ConvolutionModule(6, 5, causal, norm, Activation.swish).double().eval()
    x, lengths = torch.randn(3, 9, 6, dtype=torch.float64), [9, 4, 1]
    valid = torch.arange(9) < torch.tensor(lengths).unsqueeze(1)
    together, _ = module(x, valid)
    for row, length, found in zip(x, lengths, together, strict=True):
        alone, before = row[:length], 4 if causal else 0
        alone = nn.functional.glu(module.pointwise_in(nn.functional.pad(alone, (0, 0, before, 0))), -1)
        conv = module.depthwise
        y = nn.functional.conv1d(alone.T[None], conv.weight, conv.bias, padding=0 if causal else 2, groups=6)[0].T
        expected = module.pointwise_out(nn.functional.silu(module.norm(y)))
        assert (found[:length] - expected).abs().max() < 1e-10
