"""How experts are computed, given what was decided. `loop` is the readable reference of all backends."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_asr.modules.dropout import Dropout


class Experts(nn.Module):
    """E feed-forward networks of equal shape, stacked: w_in (E,f,d), b_in (E,f), w_out (E,d,f), b_out (E,d)."""

    def __init__(
        self, num_experts: int, width: int, hidden: int, activation: Callable[[Tensor], Tensor], dropout: float
    ) -> None:
        super().__init__()
        self.num_experts, self.activation, self.dropout = num_experts, activation, Dropout(dropout)
        self.w_in = nn.Parameter(torch.empty(num_experts, hidden, width).uniform_(-(width**-0.5), width**-0.5))
        self.b_in = nn.Parameter(torch.empty(num_experts, hidden).uniform_(-(width**-0.5), width**-0.5))
        self.w_out = nn.Parameter(torch.empty(num_experts, width, hidden).uniform_(-(hidden**-0.5), hidden**-0.5))
        self.b_out = nn.Parameter(torch.empty(num_experts, width).uniform_(-(hidden**-0.5), hidden**-0.5))

    def forward(self, rows: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        """rows (R,d), expert_ids (R,K), weights (R,K) -> (R,d), the weighted sums; id -1 contributes nothing."""
        return loop(self, rows, expert_ids, weights)


def loop(experts: Experts, rows: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
    """One expert after the other, each on the rows that chose it."""
    y = torch.zeros_like(rows)
    # Unbinding once makes the gradient of a stack one tensor; indexing would make one stack-sized tensor per expert.
    parameters = zip(*(p.unbind() for p in (experts.w_in, experts.b_in, experts.w_out, experts.b_out)), strict=True)
    for expert, (w_in, b_in, w_out, b_out) in enumerate(parameters):
        row, slot = torch.where(expert_ids == expert)
        if len(row) == 0 and not torch.is_grad_enabled():  # in training an idle expert still joins the graph
            continue
        hidden = experts.dropout(experts.activation(F.linear(rows[row], w_in, b_in)))
        out = F.linear(hidden, w_out, b_out)
        y = y.index_add(0, row, (out * weights[row, slot].unsqueeze(-1)).to(y.dtype))
    return y
