"""Which feed-forward layers of a model are Mixture-of-Experts layers."""

from moe_asr.config.model import ModelConfig, Placement
from moe_asr.modules.moe.routing import MoESite

DECODERS = ("left_to_right", "right_to_left")
"""Names of the decoders, and of their stacks of sites."""


def moe_sites(model: ModelConfig, placement: Placement) -> tuple[MoESite, ...]:
    """The sites of a placement in network order: two per encoder layer, one per decoder layer."""
    encoder = [MoESite("encoder", i, slot) for i in range(model.encoder.layers) for slot in ("ffn_in", "ffn_out")]
    depths = zip(DECODERS, (model.decoder.layers, model.decoder.reverse_layers), strict=True)
    decoder = [MoESite(stack, i, "ffn_out") for stack, depth in depths for i in range(depth)]
    chosen = {
        Placement.none: [],
        Placement.encoder: encoder,
        Placement.decoder: decoder,
        Placement.both: encoder + decoder,
    }
    return tuple(chosen[placement])
