"""Global cepstral mean and variance normalisation, the first layer of an encoder."""

import torch
from torch import Tensor, nn


class Cmvn(nn.Module):
    """``(x - mean) * istd`` per mel bin; statistics are part of the state dict and not trained. Identity until set."""

    mean: Tensor
    istd: Tensor

    def __init__(self, mel_bins: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(mel_bins))
        self.register_buffer("istd", torch.ones(mel_bins))

    def set_cmvn(self, mean: Tensor, istd: Tensor) -> None:
        """mean, istd (F,): the mean and the inverse standard deviation of the training features."""
        self.mean.copy_(mean)
        self.istd.copy_(istd)

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) * self.istd
