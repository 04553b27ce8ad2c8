"""Audio and vision encoders: shapes, padding, and what they look at."""

import pytest
import torch

from omni.audio_encoder import AudioEncoderTiny
from omni.characters import N_CHARACTERS
from omni.config import AudioEncoderConfig, VisionEncoderConfig
from omni.projector import Projector
from omni.vision_encoder import ViTTiny

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def audio_encoder(**changes) -> AudioEncoderTiny:
    torch.manual_seed(0)
    model = AudioEncoderTiny(
        AudioEncoderConfig(**{"conv_channels": 4, "d_model": 24, "n_layers": 2, "n_heads": 2, "d_ff": 32} | changes), 128
    ).eval()
    for p in model.parameters():
        if p.dim() > 1:
            p.data *= 3.0
    return model


@torch.no_grad()
def test_audio_shapes_are_those_of_the_specification():
    model = AudioEncoderTiny(AudioEncoderConfig()).eval()
    states, lengths = model(torch.randn(2, 101, 128))
    assert states.shape == (2, 13, 192)  # 100 Hz to 12.5 Hz, rounded up
    assert lengths.tolist() == [13, 13]
    assert model.ctc_logits(states).shape == (2, 13 * 4, N_CHARACTERS)


@pytest.mark.parametrize("downsample", [4, 8])
@torch.no_grad()
def test_a_clip_has_the_same_states_alone_and_in_a_batch(downsample):
    model = audio_encoder(downsample=downsample)
    lengths = [1, 7, 8, 9, 40, 63, 64]
    mel = torch.randn(len(lengths), 64, 128)  # what lies behind a clip's end is noise
    states, frames = model(mel, torch.tensor(lengths))
    assert frames.tolist() == [-(-n // downsample) for n in lengths]
    for row, length in enumerate(lengths):
        alone, _ = model(mel[row : row + 1, :length])
        torch.testing.assert_close(states[row, : frames[row]], alone[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_audio_encoder_looks_both_ways():
    model, mel = audio_encoder(), torch.randn(1, 80, 128)
    states = model(mel)[0]
    for changed_frame in (0, 79):
        changed = mel.clone()
        changed[:, changed_frame] += 5.0
        assert ((model(changed)[0] - states).abs().amax(-1) > 1e-5).all()


@torch.no_grad()
def test_slots_of_a_frame_come_from_that_frame():
    model, states = audio_encoder(), torch.randn(1, 5, 24)
    logits = model.ctc_logits(states)
    changed = states.clone()
    changed[:, 2] += 1.0
    different = ((model.ctc_logits(changed) - logits).abs().amax(-1) > 0)[0]
    assert different.nonzero()[:, 0].tolist() == [8, 9, 10, 11]


@torch.no_grad()
def test_layers_of_the_ctc_head_see_all_frames_and_no_padding():
    model, states = audio_encoder(ctc_layers=1), torch.randn(2, 5, 24)
    logits = model.ctc_logits(states, torch.tensor([5, 3]))
    changed = states.clone()
    changed[:, 2] += 1.0
    assert ((model.ctc_logits(changed) - model.ctc_logits(states)).abs().amax(-1) > 0).all()
    torch.testing.assert_close(model.ctc_logits(states[1:, :3])[0], logits[1, :12], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_vision_shapes_are_those_of_the_specification():
    cls, grid = ViTTiny(VisionEncoderConfig()).eval()(torch.randn(2, 3, 224, 224))
    assert cls.shape == (2, 1, 128)
    assert grid.shape == (2, 196, 128)


@pytest.mark.parametrize(("kind", "count"), [("cls", 1), ("grid", 16), ("pooled", 4)])
@torch.no_grad()
def test_image_tokens_are_as_configured(kind, count):
    config = VisionEncoderConfig(image_size=32, patch_size=8, d_model=16, n_layers=1, n_heads=2, d_ff=16, image_tokens=kind, pooled_size=2)
    model = ViTTiny(config).eval()
    pixels = torch.randn(2, 3, 32, 32)
    tokens = model.image_tokens(pixels)
    assert tokens.shape == (2, count, 16)
    assert config.n_image_tokens == count
    if kind == "pooled":
        grid = model(pixels)[1].view(2, 4, 4, 16)
        torch.testing.assert_close(tokens[:, 1], grid[:, :2, 2:].mean((1, 2)))


@torch.no_grad()
def test_a_patch_has_its_place_and_every_patch_reaches_the_cls_vector():
    model = ViTTiny(VisionEncoderConfig(image_size=32, patch_size=8, d_model=16, n_layers=2, n_heads=2, d_ff=16)).eval()
    for p in model.parameters():
        p.data *= 5.0
    pixels = torch.zeros(1, 3, 32, 32)
    seen = []
    for x in (0, 8, 16, 24):
        picture = pixels.clone()
        picture[..., 8:16, x : x + 8] = 1.0
        seen.append(model(picture)[0].flatten())
    seen.append(model(pixels)[0].flatten())
    for i, a in enumerate(seen):
        assert all((a - b).abs().max() > 1e-4 for b in seen[:i])


def test_projectors_are_one_or_two_maps():
    assert [type(m).__name__ for m in Projector("linear", 3, 5)] == ["Linear"]
    assert [type(m).__name__ for m in Projector("mlp", 3, 5)] == ["Linear", "GELU", "Linear"]
    assert Projector("mlp", 3, 5)(torch.randn(2, 4, 3)).shape == (2, 4, 5)
