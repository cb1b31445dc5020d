"""`moe-asr inspect`: the model of a configuration as a table, without training it."""

from moe_asr.config.commands import InspectConfig

CONFIG = InspectConfig


def run(config: InspectConfig) -> None:
    import torch

    from moe_asr.models.placement import moe_sites
    from moe_asr.models.u2pp import build_model, parameter_counts
    from moe_asr.modules.moe.sharing import sharing_table

    with torch.device("meta"):
        model = build_model(
            config.model,
            config.moe,
            config.router,
            config.loss,
            vocab_size=config.vocab_size,
            mel_bins=config.features.mel_bins,
        )
    total, active = parameter_counts(model)
    for name, part in model.named_children():
        print(f"{name:<12} {sum(p.numel() for p in part.parameters()) / 1e6:10.3f} M parameters")
    print(f"{'total':<12} {total / 1e6:10.3f} M, {active / 1e6:.3f} M active at a position, {config.vocab_size} tokens")
    sites = moe_sites(config.model, config.moe.placement)
    table = sharing_table(sites, config.moe.sharing)
    print(f"{len(sites)} MoE sites" + (f", {config.moe.num_experts} experts, top {config.moe.top_k}:" if sites else ""))
    for site, router in zip(sites, table, strict=True):
        print(f"  {site!s:<28} router {router}")
