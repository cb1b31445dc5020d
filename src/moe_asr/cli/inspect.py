"""`moe-asr inspect`: the model of a configuration as a table, without training it."""

from moe_asr.config.commands import InspectConfig

CONFIG = InspectConfig
SECONDS, TOKENS_PER_SECOND = 12, 4
"""The audio that FLOPs are stated for."""


def run(config: InspectConfig) -> None:
    import torch

    from moe_asr.config.placement import moe_sites, sharing_table
    from moe_asr.measure import flops
    from moe_asr.models.u2pp import build_model, parameter_counts
    from moe_asr.modules.subsampling import frame_lengths
    from moe_asr.tensors import Chunking

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

    decode, feature_frames = config.decode, 100 * SECONDS
    frames, tokens = frame_lengths(feature_frames, config.model.encoder.subsampling), TOKENS_PER_SECOND * SECONDS
    chunking, bins = Chunking(decode.chunk, decode.left), config.features.mel_bins
    parts = flops.encoder(config.model, config.moe, feature_frames, bins, chunking)
    parts["CTC head"] = flops.ctc_head(config.model, config.vocab_size, frames)
    parts["encoder and CTC"] = sum(parts.values())
    rescoring = flops.rescoring(config.model, config.moe, config.vocab_size, frames, decode.beam, tokens)
    parts[f"rescoring {decode.beam} hypotheses of {tokens} tokens"] = sum(rescoring.values())
    context = "full context" if decode.chunk is None else f"chunks of {decode.chunk}"
    print(f"FLOPs per second of audio ({SECONDS} s, {context}; 2 per multiply-add):")
    for name, multiply_adds in parts.items():
        print(f"  {name:<40} {2 * multiply_adds / SECONDS / 1e9:10.3f} G")
