"""How experts are computed, given what was decided. `loop` is the readable reference of all backends."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_asr.config.inference import InferencePrecision
from moe_asr.modules import fused
from moe_asr.modules.dropout import Dropout
from moe_asr.modules.fused import AFTER_ACTIVATION
from moe_asr.modules.packed import compile_kernels, give_up, identity, pack_linear


class Experts(nn.Module):
    """E feed-forward networks of equal shape, stacked: w_in (E,f,d), b_in (E,f), w_out (E,d,f), b_out (E,d).

    Without bias, b_in and b_out are zeros that are not trained.
    """

    w_in: nn.Parameter
    b_in: Tensor
    w_out: nn.Parameter
    b_out: Tensor

    def __init__(
        self,
        num_experts: int,
        width: int,
        hidden: int,
        activation: Callable[[Tensor], Tensor],
        dropout: float,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_experts, self.activation, self.dropout = num_experts, activation, Dropout(dropout)
        for end, outputs, inputs in (("in", hidden, width), ("out", width, hidden)):
            weight = torch.empty(num_experts, outputs, inputs).uniform_(-(inputs**-0.5), inputs**-0.5)
            self.register_parameter(f"w_{end}", nn.Parameter(weight))
            if bias:
                tensor = torch.empty(num_experts, outputs).uniform_(-(inputs**-0.5), inputs**-0.5)
                self.register_parameter(f"b_{end}", nn.Parameter(tensor))
            else:
                self.register_buffer(f"b_{end}", torch.zeros(num_experts, outputs))
        self.backend: Backend = sorted_rows

    def forward(self, rows: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        """rows (R,d), expert_ids (R,K), weights (R,K) -> (R,d), the weighted sums; id -1 contributes nothing."""
        return self.backend(self, rows, expert_ids, weights)

    def networks(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Each expert's w_in, b_in, w_out, b_out."""
        # Unbound once, a stack has one gradient; indexed, it would get one of its full size per expert.
        return list(zip(*(t.unbind() for t in (self.w_in, self.b_in, self.w_out, self.b_out)), strict=True))


Backend = Callable[[Experts, Tensor, Tensor, Tensor], Tensor]
"""The experts and the arguments of `Experts.forward` -> its result."""


def loop(experts: Experts, rows: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
    """One expert after the other, each on the rows that chose it."""
    y = torch.zeros_like(rows)
    for expert, (w_in, b_in, w_out, b_out) in enumerate(experts.networks()):
        row, slot = torch.where(expert_ids == expert)
        if len(row) == 0 and not torch.is_grad_enabled():  # in training an idle expert still joins the graph
            continue
        hidden = experts.dropout(experts.activation(F.linear(rows[row], w_in, b_in)))
        out = F.linear(hidden, w_out, b_out)
        y = y.index_add(0, row, (out * weights[row, slot].unsqueeze(-1)).to(y.dtype))
    return y


def sorted_rows(experts: Experts, rows: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
    """All rows are gathered once, in the order of their experts, and added up once. On any device, with gradients."""
    _, hidden, width = experts.w_in.shape
    if rows.is_cuda and len(rows) and _computed_in(rows) is torch.bfloat16 and hidden % 8 == width % 8 == 0:
        return grouped(experts, rows, expert_ids, weights)
    networks = experts.networks()

    def feed_forward(expert: int, x: Tensor) -> Tensor:
        w_in, b_in, w_out, b_out = networks[expert]
        return F.linear(experts.dropout(experts.activation(F.linear(x, w_in, b_in))), w_out, b_out)

    return _in_order(feed_forward, len(networks), rows, expert_ids, weights)


def _computed_in(rows: Tensor) -> torch.dtype:
    device = rows.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype


def _in_order(
    feed_forward: Callable[[int, Tensor], Tensor], num_experts: int, rows: Tensor, expert_ids: Tensor, weights: Tensor
) -> Tensor:
    ids = expert_ids.flatten()
    empty, *counts = (ids + 1).bincount(minlength=num_experts + 1).tolist()
    order = ids.argsort(stable=True)[empty:]
    row = order // expert_ids.shape[1]
    parts = rows.index_select(0, row).split(counts)
    y = torch.zeros_like(rows)
    # In training an idle expert still joins the graph: its gradients are 0, not missing.
    out = [feed_forward(e, part) for e, part in enumerate(parts) if len(part) or torch.is_grad_enabled()]
    if not out:
        return y
    share = weights.flatten().index_select(0, order).unsqueeze(-1)
    return y.index_add(0, row, (torch.cat(out) * share).to(y.dtype))


def grouped(experts: Experts, rows: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
    """Both products of all experts at once, for GPUs in bf16: nothing waits for the device.

    Empty slots are sorted behind the last expert, where grouped_mm leaves memory as it was, in the result and in the
    gradient of its input; so both are masked.
    """
    num_experts, dtype = experts.num_experts, _computed_in(rows)
    ids, order = (expert_ids.flatten() % (num_experts + 1)).sort(stable=True)  # -1 becomes the largest
    numbers = torch.arange(num_experts, device=rows.device)
    offsets = torch.searchsorted(ids, numbers, right=True, out_int32=True)
    # As a product, the gradient of a bias is summed in float32 and always in the same order.
    chosen, empty = (ids.unsqueeze(-1) == numbers).to(dtype), (ids == num_experts).unsqueeze(-1)

    def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.to(dtype).masked_fill(empty, 0)
        y = F.grouped_mm(x, weight.to(dtype).transpose(1, 2), offs=offsets)
        return torch.addmm(y.masked_fill(empty, 0), chosen, bias.to(dtype))

    row = order // expert_ids.shape[1]
    hidden = experts.dropout(experts.activation(linear(rows.index_select(0, row), experts.w_in, experts.b_in)))
    share = weights.flatten().index_select(0, order).unsqueeze(-1).masked_fill(empty, 0)
    y = linear(hidden, experts.w_out, experts.b_out) * share
    return torch.zeros_like(rows).index_add(0, row, y.to(rows.dtype))


def pack(experts: Experts, precision: InferencePrecision, release: bool = False, fuse: bool = False) -> Backend:
    """Lays the weights out for inference on a CPU, as they are now: once they change, `sorted_rows` takes over.

    So it does where gradients are wanted. release: the weights themselves are given up. fuse: all in one call, by
    `fused`. Raises InputError where the machine lacks the kernels.
    """
    compute = _fused(experts, precision) if fuse else _packed(experts, precision)
    if release:
        give_up(*experts.parameters())
    packed_from = identity(experts._parameters.values())

    def backend(experts: Experts, rows: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        if torch.is_grad_enabled() or identity(experts._parameters.values()) != packed_from:
            return sorted_rows(experts, rows, expert_ids, weights)
        return compute(rows, expert_ids, weights)

    return backend


Compute = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The arguments of `Experts.forward` -> its result."""


def _fused(experts: Experts, precision: InferencePrecision) -> Compute:
    maps_in = fused.pack(experts.w_in, experts.b_in, precision, experts.activation)
    maps_out = fused.pack(experts.w_out, experts.b_out, precision, negative_share=AFTER_ACTIVATION)
    return partial(fused.experts, maps_in, maps_out)


def _packed(experts: Experts, precision: InferencePrecision) -> Compute:
    _, hidden, width = experts.w_in.shape
    compile_kernels(hidden, width, precision, experts.activation)
    compile_kernels(width, hidden, precision)
    dtype = torch.bfloat16 if precision is InferencePrecision.bf16 else torch.float32
    networks = [
        (
            pack_linear(w_in, b_in, precision, experts.activation),
            pack_linear(w_out, b_out, precision, negative_share=AFTER_ACTIVATION),
        )
        for w_in, b_in, w_out, b_out in experts.networks()
    ]

    def feed_forward(expert: int, x: Tensor) -> Tensor:
        linear_in, linear_out = networks[expert]
        return linear_out(linear_in(x.to(dtype)))

    return partial(_in_order, feed_forward, len(networks))


BACKENDS: dict[str, Callable[[Experts], Backend]] = {
    "loop": lambda experts: loop,
    "sorted": lambda experts: sorted_rows,
    **{f"packed_{precision}": partial(pack, precision=precision) for precision in InferencePrecision},
    **{f"fused_{precision}": partial(pack, precision=precision, fuse=True) for precision in InferencePrecision},
}
"""By name, what makes experts' backend."""


def use_backend(model: nn.Module, name: str) -> None:
    """All experts of a model compute by `BACKENDS[name]` from now on; the state dict stays as it is."""
    for module in model.modules():
        if isinstance(module, Experts):
            module.backend = BACKENDS[name](module)
