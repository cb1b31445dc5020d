"""`moe-asr inspect [RUN]`: the model of a run or of a configuration as a table, without training it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from moe_asr.config.commands import InspectConfig
from moe_asr.errors import InputError

CONFIG = InspectConfig


def complete(overrides: Sequence[str], positionals: Mapping[str, object]) -> list[str]:
    """Refuses to change the model of a run, which is what it is."""
    other = [override for override in overrides if not override.startswith(("decode.", "run="))]
    if other and ("run" in positionals or any(override.startswith("run=") for override in overrides)):
        raise InputError(f"{other[0]} cannot change the model of a run: leave out one of them.")
    return list(overrides)


def run(config: InspectConfig) -> None:
    import torch

    from moe_asr.config.inference import InferencePrecision
    from moe_asr.config.placement import moe_sites, sharing_table
    from moe_asr.measure import flops
    from moe_asr.measure.matching import matched
    from moe_asr.models.inference import automatic
    from moe_asr.models.u2pp import build_model, parameter_counts
    from moe_asr.runs.checkpoint import load_checkpoint

    if config.run is not None:
        trained = load_checkpoint(config.run)
        shown = {name: getattr(trained.config, name) for name in ("model", "moe", "router", "loss", "features")}
        config = replace(config, **shown, match=None, match_to=None, vocab_size=len(trained.tokenizer))
    config, line = matched(config, config.vocab_size)
    if line:
        print(line)
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
    table = sharing_table(sites, config.moe)
    print(f"{len(sites)} MoE sites" + (f", {config.moe.num_experts} experts, top {config.moe.top_k}:" if sites else ""))
    for site, router in zip(sites, table, strict=True):
        print(f"  {site!s:<28} router {router}")

    print(f"computed on this CPU by: {automatic(InferencePrecision.fp32)}")

    decode = config.decode
    context = "full context" if decode.chunk is None else f"chunks of {decode.chunk}"
    print(f"FLOPs per second of audio ({flops.SECONDS} s, {context}; 2 per multiply-add):")
    parts = flops.recognition(config.model, config.moe, decode, config.features.mel_bins, config.vocab_size)
    for name, count in parts.items():
        print(f"  {name:<40} {count / 1e9:10.3f} G")
