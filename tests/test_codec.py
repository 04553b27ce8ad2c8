"""The codec: lengths, batching, codebooks that move once an update, and what fewer codebooks give."""

from __future__ import annotations

import pytest
import torch

from omni.codec import MelCodec
from omni.config import CodecConfig

CONFIG = CodecConfig(n_codebooks=3, codebook_size=16, latent_size=12, hidden_size=24, n_blocks=2)


@pytest.fixture
def codec() -> MelCodec:
    torch.manual_seed(0)
    return MelCodec(CONFIG)


def clips(n: int = 4, frames: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth random mels (n,frames,128) of different lengths."""
    generator = torch.Generator().manual_seed(1)
    shapes = torch.randn(n, 5, 128, generator=generator)
    weights = torch.randn(n, frames, 5, generator=generator).cumsum(1) / 4
    return weights @ shapes / 3, torch.tensor([frames, frames - 3, frames - 9, frames - 16][:n])


@pytest.mark.parametrize("frames", [1, 7, 8, 9, 100])
def test_t_mel_frames_give_ceil_t_over_8_code_frames_and_8_times_as_many_back(codec: MelCodec, frames: int) -> None:
    codes = codec.encode(torch.zeros(2, frames, 128))
    assert codes.shape == (2, -(-frames // 8), 3)
    assert codec.decode(codes).shape == (2, 8 * codes.shape[1], 128)


def test_a_clip_has_the_same_codes_and_mel_alone_and_in_a_batch(codec: MelCodec) -> None:
    mel, lengths = clips()
    codes = codec.encode(mel, lengths)
    frames = codec.n_code_frames(lengths)
    rebuilt = codec.decode(codes, frames)
    for row, (length, n) in enumerate(zip(lengths.tolist(), frames.tolist(), strict=True)):
        alone = codec.encode(mel[row : row + 1, :length])
        assert torch.equal(alone[0], codes[row, :n])
        torch.testing.assert_close(codec.decode(alone)[0], rebuilt[row, : 8 * n], atol=1e-5, rtol=1e-4)


def test_the_quantiser_is_straight_through_and_forward_moves_no_codebook(codec: MelCodec) -> None:
    mel, lengths = clips()
    before = [q.codebook.clone() for q in codec.rvq.quantizers]
    out = codec.train()(mel, lengths)
    (out.squared + out.commitment).backward()
    assert codec.proj_in.weight.grad is not None
    assert codec.proj_in.weight.grad.abs().sum() > 0
    assert all(torch.equal(q.codebook, b) for q, b in zip(codec.rvq.quantizers, before, strict=True))
    codec.update_codebooks(lambda tensor: tensor)
    assert not torch.equal(codec.rvq.quantizers[0].codebook, before[0])


def test_two_micro_batches_move_the_codebooks_as_one_batch(codec: MelCodec) -> None:
    mel, lengths = clips()
    other = MelCodec(CONFIG)
    other.load_state_dict(codec.state_dict())
    codec.train()(mel, lengths)
    for part in (slice(0, 2), slice(2, 4)):
        other.train()(mel[part], lengths[part])
    for model in (codec, other):
        model.update_codebooks(lambda tensor: tensor)
    for a, b in zip(codec.rvq.quantizers, other.rvq.quantizers, strict=True):
        torch.testing.assert_close(a.codebook, b.codebook)


def test_a_skipped_update_leaves_no_trace(codec: MelCodec) -> None:
    mel, lengths = clips()
    codec.train()(mel, lengths)
    codec.forget_statistics()
    assert all(float(q.new_size.sum()) == 0 and float(q.new_total.abs().sum()) == 0 for q in codec.rvq.quantizers)


def test_evaluation_counts_nothing(codec: MelCodec) -> None:
    codec.eval()(*clips())
    assert all(float(q.new_size.sum()) == 0 for q in codec.rvq.quantizers)


def test_k_means_start_makes_every_codebook_leave_less_over(codec: MelCodec) -> None:
    mel, lengths = clips(4, 400)
    codec.initialise(mel, lengths)
    latents, valid = codec._latents(mel, lengths)
    left, errors = latents, []
    for quantizer in codec.rvq.quantizers:
        left = left - quantizer.decode(quantizer.nearest(quantizer.in_proj(left)))
        errors.append(float(left[valid].detach().square().mean()))
    assert errors[0] < float(latents[valid].detach().var()) / 2
    assert errors == sorted(errors, reverse=True)


def test_dead_codes_come_back(codec: MelCodec) -> None:
    mel, lengths = clips(4, 400)
    quantizer = codec.rvq.quantizers[0]
    quantizer.codebook.data[1:] += 1e3  # all but one are out of reach
    quantizer.total.copy_(quantizer.codebook)
    codec.train()
    for _ in range(300):
        codec(mel, lengths)
        codec.update_codebooks(lambda tensor: tensor)
    used = codec.encode(mel, lengths)[..., 0].unique()
    assert len(used) > CONFIG.codebook_size // 2


def test_fewer_codebooks_give_a_coarser_mel_of_the_same_length(codec: MelCodec) -> None:
    codes = codec.encode(clips()[0])
    assert [codec.decode(codes[..., :k]).shape for k in (1, 2, 3)] == [(4, 40, 128)] * 3


# --- decoding while codes are still to come


@pytest.mark.parametrize("look_ahead", [0, 1, 2])
def test_a_code_reaches_back_no_further_than_the_look_ahead(look_ahead: int) -> None:
    torch.manual_seed(0)
    codec = MelCodec(CONFIG.model_copy(update={"look_ahead": look_ahead}))
    codes = torch.randint(16, (1, 20, 3))
    changed = codes.clone()
    changed[:, 12] = (changed[:, 12] + 1) % 16
    difference = (codec.decode(codes) - codec.decode(changed)).abs().amax(-1)[0].unflatten(0, (20, 8)).amax(-1)
    assert (difference > 1e-6).nonzero()[0].item() == 12 - look_ahead


@pytest.mark.parametrize("step", [1, 3, 20])
def test_spans_are_the_whole(codec: MelCodec, step: int) -> None:
    codes = torch.randint(16, (2, 20, 3))
    spans = []
    for start in range(0, 20, step):
        end = min(start + step, 20)
        known = codes[:, : end + CONFIG.look_ahead]  # nothing later is needed
        spans.append(codec.decode_span(known, start, end))
    torch.testing.assert_close(torch.cat(spans, dim=1), codec.decode(codes), atol=1e-5, rtol=1e-4)


def test_with_codebook_dropout_some_rows_keep_fewer_codebooks(codec: MelCodec) -> None:
    codec.rvq.dropout = 1.0
    mel, lengths = clips()
    with torch.no_grad():
        whole = codec.eval()(mel, lengths)
        fewer = [codec.train()(mel, lengths).mel for _ in range(6)]
    assert any(not torch.allclose(mel, whole.mel, atol=1e-4) for mel in fewer)
    assert torch.equal(codec.train()(mel, lengths).codes, whole.codes)


def test_a_checkpoint_holds_no_statistics_and_they_begin_anew(codec: MelCodec) -> None:
    mel = torch.rand(2, 40, 128)
    lengths = torch.tensor([40, 33])
    codec.train()
    codec(mel, lengths)
    codec.update_codebooks(lambda x: x)
    saved = codec.without_statistics(codec.state_dict())
    assert sum(t.numel() for t in saved.values()) == sum(p.numel() for p in codec.parameters())
    other = MelCodec(codec.config)
    other.load_state_dict(other.with_statistics(saved))
    assert torch.equal(other.encode(mel), codec.encode(mel))
    other.train()
    for _ in range(3):  # a code that is met moves towards what it was met by, and no other moves
        met = torch.bincount(other(mel, lengths).codes[..., 0].flatten(), minlength=codec.config.codebook_size) > 0
        before = other.rvq.quantizers[0].codebook.clone()
        other.rvq.quantizers[0].dead_code_threshold = 0.0
        other.update_codebooks(lambda x: x)
        assert torch.allclose(other.rvq.quantizers[0].codebook[~met], before[~met], atol=1e-6)
