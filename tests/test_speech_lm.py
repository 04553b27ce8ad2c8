"""The speech LM: cached == uncached, batched == single, causal, blind to padding, and unable to go astray."""

from __future__ import annotations

import itertools
import random
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import omni.speech_lm
from omni.checkpoint import save_model
from omni.config import ModelConfig, SpeechLMConfig
from omni.errors import CheckpointError, ConfigError, DataError
from omni.inference.sampling import Sampling
from omni.nn.attention import attention
from omni.nn.transformer import rotate, rotation
from omni.parameters import count
from omni.speech_lm import GREEDY, SPEAKING, MultimodalLLM, SpeechLM, pieces
from omni.speech_tokens import ScaleLayout

FREE = Sampling(temperature=1.5, seed=4)
SIZES = {
    "text_vocab_size": 11,
    "codebook_size": 6,
    "d_model": 16,
    "n_layers": 2,
    "n_heads": 2,
    "n_kv_heads": 1,
    "d_ff": 24,
    "context_length": 160,
}
KINDS = {
    "one after the other": {"code_rates": (1, 2, 4)},
    "side by side": {"code_rates": (1, 1), "lead_frames": 2, "lag_frames": 1, "voices": ("ada", "ben")},
}


def make(**settings: object) -> MultimodalLLM:
    """Random, with weights large enough that every input matters."""
    torch.manual_seed(0)
    model = MultimodalLLM(SpeechLMConfig.model_validate(SIZES | settings)).eval()
    for p in model.parameters():
        if p.dim() > 1:
            p.data *= 8.0
    return model


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> MultimodalLLM:
    return make(**KINDS[request.param])


def clip(model: MultimodalLLM, n_frames: int, seed: int = 0) -> list[int]:
    """Ids of random frames."""
    layout, chance = model.vocabulary.layout, random.Random(seed)
    return layout.to_ids([[chance.randrange(layout.codebook_size) for _ in range(rate * n_frames)] for rate in layout.rates])


@torch.no_grad()
def by_full_passes(model: MultimodalLLM, line: omni.speech_lm._Line) -> list[int]:
    """All ids of a sequence: every choice from a pass over everything before it."""
    line.advance(None)
    while not line.done:
        line.advance(model(torch.tensor([line.ids]))[0, -1])
    assert len(line.ids) <= line.longest <= model.speech_config.context_length
    return line.ids


# --- parameters


def test_the_documents_size_is_its_text_ids_and_blocks_and_ours_has_rows_for_sound() -> None:
    with torch.device("meta"):
        model = MultimodalLLM(SpeechLMConfig())
    rows = model.parameter_table()
    assert sum(rows.values()) == count(model)
    assert rows["text_ids"] == 50_257 * 128 and rows["audio_ids"] == 3 * 4096 * 128
    assert rows["text_ids"] + rows["blocks"] + rows["norm"] == pytest.approx(7.03e6, rel=0.002)
    assert model.lm_head.weight is model.tok_emb.weight
    page = (Path(__file__).parents[1] / "docs/speech-lm.md").read_text()
    told = [rows["text_ids"], rows["audio_ids"], rows["markers"], rows["blocks"] + rows["norm"], count(model)]
    assert all(f"| {n:,} |" in page for n in told)


def test_it_is_the_written_out_formula(model: MultimodalLLM) -> None:
    """GQA with QK-norm and rotation over positions, SwiGLU, RMSNorm before each; the head is the embedding."""

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    ids = torch.tensor([[model.vocabulary.audio_start, *range(20)]])
    x, heads, kv = model.tok_emb.weight[ids], 2, 1
    cos, sin = rotation(torch.arange(21), 8, 10_000.0)
    with torch.no_grad():
        for block in model.blocks:
            qkv = (norm(x, block.norm1.weight) @ block.attention.qkv.weight.T).view(1, 21, heads + 2 * kv, 8).transpose(1, 2)
            q = rotate(norm(qkv[:, :heads], block.attention.q_norm.weight), cos, sin)
            k = rotate(norm(qkv[:, heads : heads + kv], block.attention.k_norm.weight), cos, sin)
            y = attention(q, k, qkv[:, heads + kv :], causal=True).transpose(1, 2).reshape(1, 21, 16)
            x = x + y @ block.attention.out.weight.T
            h = norm(x, block.norm2.weight)
            gate, up = (h @ block.feed_forward.gate_up.weight.T).chunk(2, -1)
            x = x + (torch.nn.functional.silu(gate) * up) @ block.feed_forward.down.weight.T
        expected = norm(x, model.norm.weight) @ model.tok_emb.weight.T
        torch.testing.assert_close(model(ids), expected, rtol=1e-4, atol=1e-3)


# --- what may matter and what may not


@torch.no_grad()
def test_ids_behind_a_position_do_not_change_it_and_all_before_do(model: MultimodalLLM) -> None:
    v = model.vocabulary
    ids = torch.tensor([[v.audio_start, *itertools.islice(itertools.cycle([v.frame_id, *v.audio]), 24)]])
    before = model(ids)
    for at in range(1, 25):
        changed = ids.clone()
        changed[0, at] = v.hidden
        after = model(changed)
        torch.testing.assert_close(after[:, :at], before[:, :at], rtol=1e-6, atol=1e-6)
        assert (after[:, at:] - before[:, at:]).abs().amax(-1).min() > 1e-5  # to the end


@torch.no_grad()
def test_padding_changes_nothing(model: MultimodalLLM) -> None:
    v = model.vocabulary
    ids = torch.tensor([[v.text_start, 1, 2, 3]])
    padded = torch.cat((ids, torch.full((1, 5), v.pad)), dim=1)
    torch.testing.assert_close(model(padded)[:, :4], model(ids), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.hidden_states(padded, lengths=[4])[:, :4], model.hidden_states(ids), rtol=1e-5, atol=1e-5)


# --- generation


@pytest.mark.parametrize("sampling", [GREEDY, FREE])
def test_cached_is_uncached_and_batched_is_single(model: MultimodalLLM, sampling: Sampling) -> None:
    v, words = model.vocabulary, model.speech_config
    texts = [[1, 2, 3, 4, 5], [6], [7, 8, 9]]
    voices = [None, "ben", "ada"] if words.voices else [None] * 3
    said = model.speak(texts, voices, sampling, [5, 3, 4])
    assert said == [
        model.generate_audio(t, voice=w, sampling=sampling, most_frames=n) for t, w, n in zip(texts, voices, [5, 3, 4], strict=True)
    ]
    for text, voice, most, ids in zip(texts, voices, [5, 3, 4], said, strict=True):
        whole = by_full_passes(model, model._speaking(text, voice, sampling, most))
        assert [i - v.text_size for i in whole if i in v.audio] == ids[1:-1]
    clips = [clip(model, n, seed=n) for n in (4, 1, 3)]
    written = model.write(clips, sampling)
    assert written == [model.generate_text(c, sampling=sampling) for c in clips]
    for ids, text in zip(clips, written, strict=True):
        assert [i for i in by_full_passes(model, model._hearing(ids, sampling)) if i in v.text] == text
    assert any(ids[1:-1] for ids in said) and any(written)


def test_a_seed_decides(model: MultimodalLLM) -> None:
    first, again, other = (model.generate_audio([1, 2, 3], sampling=Sampling(temperature=1.5, seed=s), most_frames=8) for s in (0, 0, 1))
    assert first == again != other


def test_text_and_sound_reach_what_is_generated(model: MultimodalLLM) -> None:
    model = deepcopy(model)
    model.norm.weight.data *= 50  # the choices of random weights are clear ones
    said = {tuple(model.generate_audio([n, 5, 9], sampling=GREEDY, most_frames=6)) for n in range(5)}
    written = {tuple(model.generate_text(clip(model, 5, seed=n), sampling=GREEDY)) for n in range(5)}
    assert len(said) > 1 and len(written) > 1


def test_whatever_it_says_is_whole_frames_within_the_limit(model: MultimodalLLM) -> None:
    layout = model.vocabulary.layout
    for seed in range(5):
        ids = model.generate_audio(torch.tensor([[1, 2, 3]]), sampling=Sampling(temperature=4.0, seed=seed), most_frames=6)
        frames, lost = layout.read_frames(ids)
        assert lost == 0 and 1 <= len(frames) <= 6 and layout.to_ids(layout.to_codes(ids)) == ids


def test_a_full_context_ends_what_is_said_and_written() -> None:
    model = make(code_rates=(1, 1), context_length=40)
    v = model.vocabulary
    model.tok_emb.weight.data[[v.audio_end, v.text_end]] = 0.0
    model.tok_emb.weight.data[[v.frame_id, 3]] *= 20.0
    ids = model.generate_audio([1, 2, 3, 4, 5], sampling=FREE)
    assert len(model.vocabulary.layout.read_frames(ids)[0]) <= (40 - 10) // 3
    assert len(model.generate_text(clip(model, 11), sampling=FREE)) <= 40 - 36
    with pytest.raises(DataError, match="leaves no room"):
        model.generate_audio([1] * 34)
    with pytest.raises(DataError, match="13 frames does not fit"):
        model.generate_text(clip(model, 13))


def test_ids_and_tokenizers_that_do_not_fit_are_refused(model: MultimodalLLM) -> None:
    class Other:
        layout = ScaleLayout(6, (1,))

    with pytest.raises(DataError, match="the text is empty"):
        model.generate_audio([])
    with pytest.raises(DataError, match="text id 11 is outside"):
        model.generate_audio([1, 11])
    with pytest.raises(DataError, match="no whole frame"):
        model.generate_text([1])
    with pytest.raises(ConfigError, match="the audio tokenizer has"):
        model.generate_audio([1], Other())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="draws by temperature, top_k, top_p and seed"):
        model.generate_audio([1], sampling=Sampling(max_new_tokens=3))
    with pytest.raises(ConfigError, match="no voice 'eve'; this model has: (ada, ben|none)"):
        model.generate_audio([1], voice="eve")


def test_going_on_is_chosen_by_the_mass_of_all_that_goes_on() -> None:
    """Side by side: each text id is unlikely, but that some text comes is not, and which one is known."""
    model = make(**KINDS["side by side"])
    v = model.vocabulary
    line = omni.speech_lm._Line(v.speaking([7, 8], side_by_side=True, most_frames=3), GREEDY, 0)
    line.advance(None)
    logits = torch.full((v.size,), -9.0)
    logits[: v.text_size] = 1.0
    logits[7], logits[v.audio_start] = -1.0, 2.0
    assert line.advance(logits) == [7]
    logits[v.audio_start] = 5.0
    assert line.advance(logits) == [v.audio_start, v.frame_id]


# --- with its tokenizers


@pytest.fixture
def lm(letters, beeps) -> SpeechLM:
    return SpeechLM(make(**KINDS["side by side"]), letters, beeps)


def test_a_text_tokenizer_of_another_size_is_refused(letters, beeps) -> None:
    with pytest.raises(ConfigError, match="the text tokenizer has 11 ids, and the model was made for 12"):
        SpeechLM(make(**KINDS["side by side"] | {"text_vocab_size": 12}), letters, beeps)


def test_ids_out_of_order_are_told_of(model: MultimodalLLM, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "omni"):
        assert len(model.shared_frames([*clip(model, 2)[:-1], 10_000])) == 2
    assert "ids of a clip are out of order, and left out" in caplog.text


def test_text_of_another_script_is_said_as_it_is(lm: SpeechLM) -> None:
    assert lm._parts("Привет, мир") == ["Привет, мир"]
    with pytest.raises(DataError, match="no words"):
        lm.say("?!")


def test_say_is_the_models_ids_as_sound(lm: SpeechLM) -> None:
    speech = lm.say("bad cab", "ben", sampling=FREE)
    ids = lm.model.generate_audio(lm.text_tokenizer.encode("bad cab"), lm.audio_tokenizer, voice="ben", sampling=FREE, most_frames=30)
    assert np.array_equal(speech.waveform, lm.audio_tokenizer.decode_audio(ids))
    assert speech.codes.T.tolist() == lm.model.vocabulary.layout.to_codes(ids)
    assert speech.sample_rate_hz == 100 and lm.voices == ("ada", "ben")
    other = lm.say_batch(["hide", "bad cab"], [None, "ben"], sampling=FREE)[1]
    assert np.array_equal(other.waveform, speech.waveform)


def test_a_long_text_is_said_clause_by_clause_and_streams(lm: SpeechLM) -> None:
    text = "a bad cab; " * 20
    chunks = [speech.waveform for speech in lm.say_stream(text, sampling=FREE)]
    assert len(chunks) > 1
    assert np.array_equal(np.concatenate(chunks), lm.say(text, sampling=FREE).waveform)
    with pytest.raises(DataError, match="nothing to say"):
        lm.say("  ")
    with pytest.raises(ConfigError, match="no voice"):
        lm.say_stream("a", "eve")


def ends(model: MultimodalLLM, early: bool) -> None:
    """From now on what it says is over as soon as it may be, or never of itself."""
    at = torch.tensor([model.vocabulary.audio_end])
    model.lm_head.register_forward_hook(lambda _, inputs, logits: logits.index_fill(-1, at, 1e4 if early else -1e4))


def test_the_documents_call_draws_by_chance_and_ends_when_the_text_must_be_over(lm: SpeechLM) -> None:
    text, most = [1, 2, 3], 38  # 2 s, and 0.15 s for each of four characters an id; a frame is 0.1 s
    said = lm.model.generate_audio(text, lm.audio_tokenizer)
    assert said == lm.model.generate_audio(text, sampling=SPEAKING, most_frames=most)
    assert said != lm.model.generate_audio(text, sampling=GREEDY, most_frames=most)
    ends(lm.model, early=False)
    layout = lm.model.vocabulary.layout
    assert len(layout.read_frames(lm.model.generate_audio(text, lm.audio_tokenizer))[0]) == most
    assert len(layout.read_frames(lm.model.generate_audio(text, lm.audio_tokenizer, most_frames=5))[0]) == 5
    assert len(layout.read_frames(lm.model.generate_audio(text))[0]) == (160 - 3 - 5) // 3  # nobody tells how long a frame is


@pytest.mark.parametrize("early", [True, False])
def test_clauses_that_do_not_end_are_cut_with_a_notice(lm: SpeechLM, early: bool, caplog: pytest.LogCaptureFixture) -> None:
    ends(lm.model, early=early)
    with caplog.at_level("WARNING", "omni"):
        said = lm.say_batch(["bad cab", "a bad cab; " * 20], sampling=FREE)
    n_clauses = len(list(lm.say_stream("a bad cab; " * 20, sampling=FREE)))
    assert n_clauses > 1
    assert [speech.cut for speech in said] == ([0, 0] if early else [1, n_clauses])
    assert ("not over" in caplog.text) != early


def test_transcribe_writes_what_the_model_does_of_every_piece(lm: SpeechLM) -> None:
    wave = np.repeat(np.arange(20) % 6, 10).astype(np.float32)
    whole = lm.text_tokenizer.decode(lm.model.generate_text(lm.audio_tokenizer.encode_audio(wave)))
    assert lm.transcribe(wave) == whole.strip()
    long = np.repeat(np.random.default_rng(0).integers(0, 6, 250), 10).astype(np.float32)
    heard = [lm.transcribe(part) for part in pieces(long, 100, lm.longest_s)]
    assert len(heard) > 2
    assert lm.transcribe_batch([wave, long]) == [whole.strip(), " ".join(filter(None, heard))]


def test_pieces_are_cut_where_it_is_quiet_and_lose_nothing() -> None:
    wave = np.ones(2_500, np.float32)
    wave[720:760] = 0.0
    found = pieces(wave, 100, 10.0)
    assert np.array_equal(np.concatenate(found), wave)
    assert max(map(len, found)) <= 1_000 and 720 <= len(found[0]) <= 760


def test_a_checkpoint_without_a_speech_lm_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "model", {"codec.x": torch.zeros(1)}, ModelConfig(), ["codec"], None)
    with pytest.raises(CheckpointError, match="holds codec, no speech_lm"):
        SpeechLM.from_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="no such folder"):
        SpeechLM.from_pretrained(tmp_path / "none")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no such checkpoint; train one with `muomni train speech-lm"):
        SpeechLM.from_pretrained()


def test_a_checkpoint_without_tokenizers_takes_those_that_are_given(lm: SpeechLM, tmp_path: Path) -> None:
    tensors = {f"speech_lm.{name}": t for name, t in lm.model.state_dict().items()}
    save_model(tmp_path / "model", tensors, ModelConfig(speech_lm=lm.model.speech_config), ["speech_lm"], None)
    own = {"text_tokenizer": lm.text_tokenizer, "audio_tokenizer": lm.audio_tokenizer}
    again = SpeechLM.from_pretrained(tmp_path / "model", "cpu", **own)
    assert np.array_equal(again.say("bad cab", sampling=FREE).waveform, lm.say("bad cab", sampling=FREE).waveform)
    with pytest.raises(CheckpointError, match="give the text_tokenizer"):
        SpeechLM.from_pretrained(tmp_path / "model", "cpu")
    with pytest.raises(CheckpointError, match="has no codec"):
        SpeechLM.from_pretrained(tmp_path / "model", "cpu", text_tokenizer=lm.text_tokenizer)


def test_the_second_system_can_be_had_from_one_module() -> None:
    from omni.data.multimodal import MultimodalDataset
    from omni.pretraining import MultimodalPretrainingTrainer

    assert omni.speech_lm.MultimodalDataset is MultimodalDataset
    assert omni.speech_lm.MultimodalPretrainingTrainer is MultimodalPretrainingTrainer is omni.MultimodalPretrainingTrainer
    assert omni.SpeechLM is SpeechLM
    with pytest.raises(AttributeError, match="no attribute 'Multimodal'"):
        _ = omni.speech_lm.Multimodal
