"""The Talker: cached decoding against teacher forcing, and what its codes depend on."""

import pytest
import torch

from omni.characters import N_CHARACTERS
from omni.config import CodecConfig, TalkerConfig
from omni.talker import Conditioning, TalkerTiny

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


CODEC = CodecConfig(n_codebooks=3, codebook_size=19, latent_size=8, hidden_size=16, n_blocks=1)


@pytest.fixture(scope="module")
def talker() -> TalkerTiny:
    torch.manual_seed(0)
    config = TalkerConfig(d_model=32, n_layers=3, n_heads=4, n_kv_heads=1, d_ff=48, context_length=128, voices=("a", "b"))
    model = TalkerTiny(config, CODEC, thinker_width=24).eval()
    for p in model.parameters():
        if p.dim() > 1:
            p.data *= 3.0
    return model


def inputs(batch: int, width: int = 9, tokens: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def integers(high: int, *size: int) -> torch.Tensor:
        return torch.randint(high, size, generator=generator)

    return {
        "states": torch.randn(batch, tokens, 24, generator=generator),
        "char_ids": 3 + integers(N_CHARACTERS - 3, batch, width),
        "char_tokens": integers(tokens, batch, width).sort(1).values,
        "char_lengths": 1 + integers(width, batch),
        "voices": integers(2, batch),
    }


def greedy(model: TalkerTiny, conditioning: Conditioning, frames: int) -> torch.Tensor:
    """Codes (B,F,K) by cached decoding that never ends."""
    cache = model.make_cache(len(conditioning.lengths))
    state = model.start(conditioning, cache)
    out = []
    for frame in range(frames):
        codes = model.first_logits(state)[:, : model.end_id].argmax(-1, keepdim=True)
        for _ in range(1, model.codec.n_codebooks):
            codes = torch.cat((codes, model.rest_logits(state, codes).argmax(-1, keepdim=True)), dim=1)
        out.append(codes)
        state = model.step(codes, frame, cache)
    return torch.stack(out, dim=1)


def test_shapes_are_those_of_the_specification(talker):
    conditioning = talker.conditioning(**inputs(2))
    assert conditioning.embeddings.shape == (2, 9, 32)
    out = talker(torch.randint(19, (2, 6, 3)), conditioning)
    assert out.first.shape == (2, 7, 20)
    assert out.rest.shape == (2, 6, 2, 19)
    assert talker.end_id == 19


def test_one_codebook_has_no_rest():
    model = TalkerTiny(TalkerConfig(d_model=16, n_layers=1, n_heads=2, d_ff=16), CodecConfig(n_codebooks=1, codebook_size=5), 24).eval()
    out = model(torch.randint(5, (2, 4, 1)), model.conditioning(**inputs(2) | {"voices": torch.zeros(2, dtype=torch.long)}))
    assert out.first.shape == (2, 5, 6)
    assert out.rest.shape == (2, 4, 0, 5)


@torch.no_grad()
def test_cached_greedy_codes_are_those_of_full_passes_for_200_texts(talker):
    conditioning = talker.conditioning(**inputs(200))
    codes = greedy(talker, conditioning, 10)
    out = talker(codes, conditioning)
    assert torch.equal(out.first[:, :-1, : talker.end_id].argmax(-1), codes[..., 0])
    assert torch.equal(out.rest.argmax(-1), codes[..., 1:])
    assert codes.unique().numel() == 19


@torch.no_grad()
def test_cached_logits_are_those_of_teacher_forcing(talker):
    conditioning = talker.conditioning(**inputs(5))
    codes = torch.randint(19, (5, 8, 3))
    out = talker(codes, conditioning)
    cache = talker.make_cache(5)
    state = talker.start(conditioning, cache)
    for frame in range(8):
        torch.testing.assert_close(talker.first_logits(state), out.first[:, frame], atol=1e-4, rtol=1e-4)
        for k in (1, 2):
            torch.testing.assert_close(talker.rest_logits(state, codes[:, frame, :k]), out.rest[:, frame, k - 1], atol=1e-4, rtol=1e-4)
        state = talker.step(codes[:, frame], frame, cache)
    torch.testing.assert_close(talker.first_logits(state), out.first[:, 8], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_batched_is_single(talker):
    every = inputs(6)
    together = greedy(talker, talker.conditioning(**every), 8)
    for row in range(6):
        length = int(every["char_lengths"][row])
        alone = {k: v[row : row + 1] for k, v in every.items()}
        alone |= {"char_ids": alone["char_ids"][:, :length], "char_tokens": alone["char_tokens"][:, :length]}
        assert torch.equal(greedy(talker, talker.conditioning(**alone), 8)[0], together[row])


@torch.no_grad()
@pytest.mark.parametrize("what", ["char_ids", "states", "voices", "char_tokens"])
def test_spelling_states_voice_and_alignment_all_matter(talker, what):
    given = inputs(1) | {"char_lengths": torch.tensor([9])}
    other_value = {"states": lambda x: -x, "voices": lambda x: 1 - x, "char_ids": lambda x: x.flip(1), "char_tokens": lambda x: 4 - x}[what]
    changed = given | {what: other_value(given[what])}
    codes = torch.randint(19, (1, 4, 3))
    first, other = (talker(codes, talker.conditioning(**g)).first for g in (given, changed))
    assert (first - other).abs().max() > 1e-3


@torch.no_grad()
def test_a_past_frame_changes_the_logits_and_a_future_one_does_not(talker):
    conditioning = talker.conditioning(**inputs(3))
    codes = torch.randint(19, (3, 7, 3))
    before = talker(codes, conditioning)
    changed = codes.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 19
    after = talker(changed, conditioning)
    torch.testing.assert_close(after.first[:, :4], before.first[:, :4])
    assert ((after.first - before.first)[:, 4:].abs().amax(-1) > 1e-4).all()


@torch.no_grad()
def test_a_later_codebook_depends_on_the_earlier_ones_of_its_frame_only_forwards(talker):
    state = torch.randn(1, 32)
    assert (talker.rest_logits(state, torch.tensor([[1]])) - talker.rest_logits(state, torch.tensor([[2]]))).abs().max() > 1e-3
    conditioning = talker.conditioning(**inputs(1))
    codes = torch.randint(19, (1, 3, 3))
    changed = codes.clone()
    changed[0, 1, 2] = (changed[0, 1, 2] + 1) % 19  # the last codebook of frame 1
    before, after = talker(codes, conditioning), talker(changed, conditioning)
    torch.testing.assert_close(after.rest[:, 1], before.rest[:, 1])
