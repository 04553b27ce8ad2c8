"""The Talker: cached decoding against teacher forcing, what is said when, and what its codes depend on."""

import math

import pytest
import torch

from omni.alignment import SLOTS
from omni.characters import N_CHARACTERS
from omni.config import CodecConfig, TalkerConfig
from omni.talker import LONGEST, USUAL, Conditioning, TalkerTiny

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


CODEC = CodecConfig(n_codebooks=3, codebook_size=19, latent_size=8, hidden_size=16, n_blocks=1)
CONFIG = TalkerConfig(d_model=32, n_layers=3, n_heads=4, n_kv_heads=1, d_ff=48, code_width=12, context_length=128, voices=("a", "b"))


@pytest.fixture(scope="module")
def talker() -> TalkerTiny:
    torch.manual_seed(1)
    model = TalkerTiny(CONFIG, CODEC, thinker_width=24).eval()
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


def lasting(conditioning: Conditioning, slots: int = 5) -> list[torch.Tensor]:
    return [torch.full((int(n),), slots) for n in conditioning.lengths]


def greedy(model: TalkerTiny, conditioning: Conditioning, durations: list[torch.Tensor], frames: int) -> torch.Tensor:
    """Codes (B,F,K) by cached decoding."""
    conditions = torch.stack(model.frame_conditions(conditioning, durations, [frames] * len(durations)))
    cache = model.make_cache(len(durations))
    history, out = model.begin.expand(len(durations), -1), []
    for frame in range(frames):
        codes = model.choose(model.step(history, conditions[:, frame], cache), lambda logits: logits.argmax(-1))
        out.append(codes)
        history = model.embed_codes(codes)
    return torch.stack(out, dim=1)


def test_shapes_are_those_of_the_specification(talker: TalkerTiny) -> None:
    conditioning = talker.conditioning(**inputs(2))
    assert conditioning.embeddings.shape == (2, 9, 32)
    out = talker(torch.randint(19, (2, 6, 3)), conditioning, lasting(conditioning))
    assert out.first.shape == (2, 6, 19)
    assert out.rest.shape == (2, 6, 2, 19)
    assert out.log_durations.shape == (2, 9)


def test_one_codebook_has_no_rest() -> None:
    model = TalkerTiny(TalkerConfig(d_model=16, n_layers=1, n_heads=2, d_ff=16), CodecConfig(n_codebooks=1, codebook_size=5), 24).eval()
    conditioning = model.conditioning(**inputs(2) | {"voices": torch.zeros(2, dtype=torch.long)})
    out = model(torch.randint(5, (2, 4, 1)), conditioning, lasting(conditioning))
    assert out.first.shape == (2, 4, 5)
    assert out.rest.shape == (2, 4, 0, 5)


# --- what is said when


def test_an_untrained_talker_speaks_at_the_usual_speed() -> None:
    model = TalkerTiny(CONFIG, CODEC, thinker_width=24)
    model.duration.weight.data.zero_()
    conditioning = model.conditioning(**inputs(3) | {"char_lengths": torch.tensor([9, 4, 1])})
    for row, n in zip(model.durations(conditioning), (9, 4, 1), strict=True):
        assert len(row) == n
        assert int(row.sum()) == round(n * USUAL)  # rounding does not add up


def test_durations_are_whole_positive_and_bounded(talker: TalkerTiny) -> None:
    conditioning = talker.conditioning(**inputs(4))
    wild = Conditioning(conditioning.embeddings * 1e3, conditioning.lengths)
    for row in talker.durations(wild):
        assert row.dtype == torch.long
        assert ((row >= 0) & (row <= LONGEST)).all()


@torch.no_grad()
def test_a_frame_is_told_the_characters_of_its_slots_in_order(talker: TalkerTiny) -> None:
    characters, durations = torch.randn(4, 32), torch.tensor([3, 0, 6, 2])  # slots 0-2, none, 3-8, 9-10
    frames = talker.frame_conditioning(characters, durations, 3)

    def differs(character: int) -> list[bool]:
        changed = characters.clone()
        changed[character] += 1.0
        return ((talker.frame_conditioning(changed, durations, 3) - frames).abs().amax(-1) > 1e-5).tolist()

    assert differs(0) == [True, False, False]
    assert differs(1) == [False, False, False]
    assert differs(2) == [True, True, True]
    assert differs(3) == [False, False, True]  # and it goes on to the end of its frame
    swapped = talker.frame_conditioning(characters[[2, 1, 0, 3]], durations, 3)
    assert not torch.allclose(swapped[0], frames[0])


@torch.no_grad()
def test_frames_are_cut_or_go_on_to_fit(talker: TalkerTiny) -> None:
    characters, durations = torch.randn(3, 32), torch.tensor([4, 4, 4])
    whole = talker.frame_conditioning(characters, durations, 3)
    torch.testing.assert_close(talker.frame_conditioning(characters, durations, 2), whole[:2])
    more = talker.frame_conditioning(characters, durations, 5)
    torch.testing.assert_close(more[:3], whole)
    torch.testing.assert_close(more[3], more[4])


# --- how it sounds


@torch.no_grad()
def test_cached_greedy_codes_are_those_of_full_passes_for_200_texts(talker: TalkerTiny) -> None:
    conditioning = talker.conditioning(**inputs(200))
    codes = greedy(talker, conditioning, lasting(conditioning), 10)
    out = talker(codes, conditioning, lasting(conditioning))
    assert torch.equal(out.first.argmax(-1), codes[..., 0])
    assert torch.equal(out.rest.argmax(-1), codes[..., 1:])
    assert codes.unique().numel() == 19  # all kinds of them


@torch.no_grad()
def test_frames_read_into_a_cache_are_those_of_teacher_forcing(talker: TalkerTiny) -> None:
    """Rows with 0, 2 and 5 frames of context, then one frame more."""
    conditioning = talker.conditioning(**inputs(3))
    codes, lengths = torch.randint(19, (3, 6, 3)), [0, 2, 5]
    conditions = torch.stack(talker.frame_conditions(conditioning, lasting(conditioning), [6, 6, 6]))
    states = talker.read(codes, conditions)
    cache = talker.make_cache(3, 6)
    talker.read(codes[:, :5], conditions[:, :5], cache, lengths)
    history = torch.stack([talker.embed_codes(codes[row, n - 1]) if n else talker.begin for row, n in enumerate(lengths)])
    state = talker.step(history, torch.stack([conditions[row, n] for row, n in enumerate(lengths)]), cache)
    wanted = torch.stack([states[row, n] for row, n in enumerate(lengths)])
    torch.testing.assert_close(state, wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_batched_is_single(talker: TalkerTiny) -> None:
    every = inputs(6)
    conditioning = talker.conditioning(**every)
    durations = talker.durations(conditioning)
    together = greedy(talker, conditioning, durations, 8)
    for row in range(6):
        length = int(every["char_lengths"][row])
        alone = {k: v[row : row + 1] for k, v in every.items()}
        alone |= {"char_ids": alone["char_ids"][:, :length], "char_tokens": alone["char_tokens"][:, :length]}
        single = talker.conditioning(**alone)
        assert torch.equal(talker.durations(single)[0], durations[row])
        assert torch.equal(greedy(talker, single, [durations[row]], 8)[0], together[row])


@torch.no_grad()
@pytest.mark.parametrize("what", ["char_ids", "states", "voices", "char_tokens"])
def test_spelling_states_voice_and_tokens_all_matter(talker: TalkerTiny, what: str) -> None:
    given = inputs(1) | {"char_lengths": torch.tensor([9])}
    other_value = {"states": lambda x: -x, "voices": lambda x: 1 - x, "char_ids": lambda x: x.flip(1), "char_tokens": lambda x: 4 - x}[what]
    changed = given | {what: other_value(given[what])}
    codes = torch.randint(19, (1, 4, 3))
    outputs = []
    for g in (given, changed):
        conditioning = talker.conditioning(**g)
        outputs.append(talker(codes, conditioning, lasting(conditioning)))
    assert (outputs[0].first - outputs[1].first).abs().max() > 1e-3
    assert (outputs[0].log_durations - outputs[1].log_durations).abs().max() > 1e-4


@torch.no_grad()
def test_a_past_frame_changes_the_logits_and_a_future_one_does_not(talker: TalkerTiny) -> None:
    conditioning = talker.conditioning(**inputs(3))
    codes = torch.randint(19, (3, 7, 3))
    before = talker(codes, conditioning, lasting(conditioning))
    changed = codes.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 19
    after = talker(changed, conditioning, lasting(conditioning))
    torch.testing.assert_close(after.first[:, :4], before.first[:, :4])
    assert ((after.first - before.first)[:, 4:].abs().amax(-1) > 1e-4).all()


@torch.no_grad()
def test_a_later_codebook_depends_on_the_earlier_ones_of_its_frame_only_forwards(talker: TalkerTiny) -> None:
    state = torch.randn(1, 32)
    assert (talker.rest_logits(state, torch.tensor([[1]])) - talker.rest_logits(state, torch.tensor([[2]]))).abs().max() > 1e-3
    conditioning = talker.conditioning(**inputs(1))
    codes = torch.randint(19, (1, 3, 3))
    changed = codes.clone()
    changed[0, 1, 2] = (changed[0, 1, 2] + 1) % 19  # the last codebook of frame 1
    before, after = (talker(c, conditioning, lasting(conditioning)) for c in (codes, changed))
    torch.testing.assert_close(after.rest[:, 1], before.rest[:, 1])
    torch.testing.assert_close(after.first[:, :2], before.first[:, :2])
    assert (after.first[:, 2] - before.first[:, 2]).abs().max() > 1e-4


def test_history_is_hidden_in_training_only() -> None:
    model = TalkerTiny(CONFIG.model_copy(update={"history_dropout": 0.5}), CODEC, thinker_width=24)
    conditioning = model.conditioning(**inputs(2))
    codes = torch.randint(19, (2, 12, 3))
    first = [model.train()(codes, conditioning, lasting(conditioning)).first for _ in range(2)]
    assert not torch.allclose(first[0], first[1])
    again = [model.eval()(codes, conditioning, lasting(conditioning)).first for _ in range(2)]
    assert torch.equal(again[0], again[1])


@torch.no_grad()
def test_durations_are_predicted_as_logarithms(talker: TalkerTiny) -> None:
    conditioning = talker.conditioning(**inputs(1) | {"char_lengths": torch.tensor([9])})
    logs = talker.log_durations(conditioning)[0]
    total = sum(min(math.exp(float(x)), LONGEST) for x in logs)
    assert int(talker.durations(conditioning)[0].sum()) == pytest.approx(total, abs=1)
    assert SLOTS == 4
