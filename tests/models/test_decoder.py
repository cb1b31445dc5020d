import torch

from moe_asr.models.encoder import EncoderOutput


def encoded(lengths=(6, 4)):
    torch.manual_seed(2)
    return EncoderOutput(torch.randn(len(lengths), 6, 16).double(), torch.tensor(lengths), ())


@torch.inference_mode()
def test_many_hypotheses_share_one_memory(make_model):
    model, frames = make_model("per_layer"), encoded()
    decoder = model.decoders["left_to_right"]
    tokens = torch.tensor([[2, 3, 4, 5], [2, 6, 2, 2], [2, 7, 8, 2]])
    lengths, rows = torch.tensor([4, 2, 3]), torch.tensor([1, 0, 1])
    together, trace = decoder(tokens, lengths, decoder.memory(frames), rows, model.routers)
    for i, (row, length) in enumerate(zip(rows.tolist(), lengths.tolist(), strict=True)):
        count = int(frames.frame_lengths[row])
        alone = EncoderOutput(frames.frames[row : row + 1, :count], frames.frame_lengths[row : row + 1], ())
        logits, _ = decoder(
            tokens[i : i + 1, :length], lengths[i : i + 1], decoder.memory(alone), routers=model.routers
        )
        assert (logits[0] - together[i, :length]).abs().max() < 1e-12
        assert (trace[0].routing.expert_ids[i, length:] == -1).all()
    assert [str(site.site) for site in trace] == ["left_to_right.00.ffn_out"]


@torch.inference_mode()
def test_later_tokens_change_no_bit(make_model):
    model, frames = make_model(), encoded()
    decoder = model.decoders["right_to_left"]
    memory, lengths = decoder.memory(frames), torch.tensor([5, 5])
    tokens = torch.tensor([[2, 3, 4, 5, 6], [2, 6, 3, 3, 8]])
    changed = tokens.clone()
    changed[:, 3:] = 7
    one, two = (decoder(t, lengths, memory)[0] for t in (tokens, changed))
    assert one[:, :3].equal(two[:, :3])
    assert not one[:, 3].equal(two[:, 3])


@torch.inference_mode()
def test_an_utterance_without_frames_gives_finite_logits(make_model):
    decoder = make_model().decoders["left_to_right"]
    frames = encoded((6, 0))
    logits, _ = decoder(torch.full((2, 3), 2), torch.tensor([3, 3]), decoder.memory(frames))
    assert logits.isfinite().all()
