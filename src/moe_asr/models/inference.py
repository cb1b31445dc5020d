"""How a loaded model computes: in which numbers, and its experts by which backend."""

from moe_asr.config.inference import ExpertBackend, InferencePrecision, check_computing
from moe_asr.config.model import require
from moe_asr.models.u2pp import AsrModel
from moe_asr.modules.moe.experts import use_backend
from moe_asr.modules.packed import pack_linears, supported


def prepare(
    model: AsrModel,
    precision: InferencePrecision = InferencePrecision.fp32,
    experts: ExpertBackend = ExpertBackend.auto,
) -> None:
    """Packs the experts, and below fp32 the other linear maps but those of routers and subsampling.

    Call it once the model is on its device. State dict and gradients stay as they are. Raises InputError for what the
    device cannot do.
    """
    check_computing(precision, experts)
    on_cpu, fp32 = next(model.parameters()).is_cpu, precision is InferencePrecision.fp32
    if experts is ExpertBackend.auto:
        experts = ExpertBackend.sorted if fp32 and not (on_cpu and supported(precision)) else ExpertBackend.packed
    packed = experts is ExpertBackend.packed
    require(on_cpu or not packed, "Packed weights are for CPUs: write device=cpu, or precision=fp32 experts=sorted.")
    use_backend(model, f"packed_{precision}" if packed else str(experts))
    if not fp32:
        # The subsampling lays out the weights of its projection itself.
        pack_linears(model, precision, {*model.routers.modules(), *model.encoder.subsampling.modules()})
