"""`Omni`: loading, questions, budgets, and transcription without a length limit."""

import logging
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from omni.checkpoint import save_model
from omni.errors import CheckpointError, ConfigError, DataError
from omni.inference.omni import DESCRIBE, GREEDY, TRANSCRIBE, Omni, Reply
from omni.inference.sampling import Sampling
from omni.tokenizer import BPETokenizer

SHORT = Sampling(max_new_tokens=8)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(int(seconds * 16_000)) * 0.1).astype(np.float32)


# --- loading


def test_a_saved_model_answers_like_the_one_in_memory(omni, checkpoint, media, caplog):
    with caplog.at_level(logging.INFO, "omni"):
        loaded = Omni.from_pretrained(checkpoint, "cpu")
    assert str(checkpoint) in caplog.text
    assert all(p.dtype == torch.float32 for p in loaded.model.parameters())
    assert loaded.ask("What?", image=media / "a.png", sampling=SHORT) == omni.ask("What?", image=media / "a.png", sampling=SHORT)


def test_without_a_checkpoint_the_error_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("omni.checkpoint.REPOSITORY", tmp_path / "installed")
    with pytest.raises(CheckpointError, match=r"checkpoints/omni-tiny.*make demo.*muomni train pocket --preset nano.*--ckpt"):
        Omni.from_pretrained()
    with pytest.raises(CheckpointError, match="nowhere"):
        Omni.from_pretrained("nowhere")


def test_the_default_is_the_repositorys_wherever_one_is(checkpoint, tmp_path, monkeypatch):
    shutil.copytree(checkpoint, tmp_path / "repository/checkpoints/omni-tiny")
    monkeypatch.setattr("omni.checkpoint.REPOSITORY", tmp_path / "repository")
    monkeypatch.chdir(tmp_path)
    assert Omni.from_pretrained().folder == tmp_path / "repository/checkpoints/omni-tiny"


def test_the_documents_names_load_the_release(omni, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, "checkpoints/omni-tiny")
    for name in ("checkpoints/omni_sft_tiny", "checkpoints/thinker_tiny", "checkpoints/omni-tiny"):
        assert Omni.from_pretrained(name, "cpu").folder == Path("checkpoints/omni-tiny")
    assert BPETokenizer("checkpoints/thinker_tiny/tokenizer.model").serialized == omni.tokenizer.serialized
    Path("checkpoints/thinker_tiny").mkdir()  # what a training run has just begun is no name for something else
    with pytest.raises(CheckpointError, match="checkpoints/thinker_tiny"):
        Omni.from_pretrained("checkpoints/thinker_tiny")


def test_a_device_that_is_not_there_is_one_clear_error(checkpoint):
    with pytest.raises(ConfigError, match="device 'quantum' cannot be used"):
        Omni.from_pretrained(checkpoint, "quantum")


def test_an_audio_encoder_alone_transcribes_and_says_what_it_cannot_do(omni, media, tmp_path):
    save_model(tmp_path / "audio", omni.model.tensors(["audio_encoder"]), omni.model.config, ["audio_encoder"], None)
    alone = Omni.from_pretrained(tmp_path / "audio")
    assert alone.transcribe(media / "short.wav") == omni.transcribe(media / "short.wav")
    for cannot in (lambda: alone.say("Hello"), lambda: alone.ask("Hello")):
        with pytest.raises(CheckpointError, match="tokenizer"):
            cannot()


# --- asking


def test_a_batch_of_conversations_is_each_alone(omni, media):
    conversations = [
        [{"role": "user", "content": "Hello"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "image", "image": str(media / "a.png")}]}],
        [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}, {"role": "user", "content": "Three?"}],
    ]
    assert omni.chat_batch(conversations, SHORT) == [omni.chat(c, SHORT) for c in conversations]


def test_files_and_what_is_in_them_are_the_same(omni, media):
    by_name = omni.ask(image=media / "a.png", audio=media / "short.wav", sampling=SHORT)
    with Image.open(media / "a.png") as picture:
        assert omni.ask(image=picture, audio=omni.waveform(media / "short.wav"), sampling=SHORT) == by_name
    assert omni.describe(media / "a.png", SHORT) == omni.ask(DESCRIBE, image=media / "a.png", sampling=SHORT).text


def test_a_clip_over_its_quarter_of_the_context_is_cut_with_a_notice(omni, media):
    wave = omni.waveform(media / "long.wav")
    reply = omni.ask(audio=wave, sampling=SHORT)
    assert "63 audio tokens exceeds its quarter of the context: kept the first 32 (51%)" in reply.notices[0]
    assert reply.text == omni.ask(audio=wave[: 32 * 1280], sampling=SHORT).text
    with pytest.raises(DataError, match="kept the first 32"):
        omni.ask(audio=wave, sampling=SHORT, strict=True)


def test_a_long_sound_costs_no_more_than_what_is_kept(omni, monkeypatch):
    lengths = []
    front_end = type(omni.model.log_mel).forward
    monkeypatch.setattr(type(omni.model.log_mel), "forward", lambda self, wave: lengths.append(len(wave)) or front_end(self, wave))
    omni.ask(audio=np.zeros(60 * 16_000, dtype=np.float32), sampling=SHORT)
    assert lengths == [32 * 1280]


def test_speaking_gives_the_reply_as_speech(omni):
    reply = omni.ask("Hello", speak=True, voice="bob", sampling=SHORT)
    assert reply.speech is not None
    assert torch.equal(reply.speech.codes, omni.say(reply.text, "bob", sampling=SHORT).codes)
    with pytest.raises(ConfigError, match="no voice 'eve'; this model has: ada, bob"):
        omni.ask("Hello", speak=True, voice="eve")


def test_an_empty_reply_is_not_spoken(omni, monkeypatch):
    monkeypatch.setattr("omni.inference.engine.sample", lambda *_: omni.tokenizer.end_id)
    reply = omni.ask("Hello", speak=True)
    assert (reply.text, reply.speech, reply.stopped) == ("", None, "end")
    assert "nothing to say" in reply.notices[0]


@pytest.mark.parametrize("text", ["...", "?", "-", "\u0301"])
def test_a_reply_without_words_is_kept_and_not_spoken(own_omni, monkeypatch, text):
    monkeypatch.setattr(own_omni, "answer", lambda prompts, sampling: [Reply(text, ["short"]) for _ in prompts])
    reply = own_omni.ask("Hello", speak=True)
    assert (reply.text, reply.speech) == (text, None)
    assert reply.notices == ["short", "the reply is not spoken: there is nothing to say: the text has no words"]


def write_video(path, seconds: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for i in range(4 * seconds):
            grey = np.full((32, 32, 3), 255 * i // (4 * seconds), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())


def test_a_video_is_one_frame_a_second_up_to_half_of_the_context(omni, tmp_path):
    """A frame takes 4 positions and 2 markers: 10 fit."""
    write_video(tmp_path / "short.mp4", 3)
    message, notices = omni.question("What happens?", video=tmp_path / "short.mp4")
    assert [part["type"] for part in message["content"]] == ["image"] * 3 + ["text"]
    assert notices == []
    write_video(tmp_path / "long.mp4", 25)
    message, notices = omni.question("What happens?", video=tmp_path / "long.mp4")
    frames = [part["image"] for part in message["content"] if part["type"] == "image"]
    assert len(frames) == 10
    assert np.mean(frames[-1]) > 200  # the end of the video is seen too
    assert "25 frames exceed half of the context: kept 10" in notices[0]
    assert omni.ask("What happens?", video=tmp_path / "long.mp4", sampling=SHORT).notices == notices
    with pytest.raises(DataError, match="kept 10"):
        omni.ask("What happens?", video=tmp_path / "long.mp4", strict=True)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({}, "nothing was asked"),
        ({"text": "  "}, "nothing was asked"),
        ({"image": "nowhere.png"}, "nowhere.png"),
        ({"audio": "nowhere.wav"}, "nowhere.wav"),
        ({"video": "nowhere.mp4"}, "nowhere.mp4"),
        ({"audio": np.zeros((2, 100))}, r"shape \(2, 100\)"),
        ({"audio": np.array([0.0, np.nan])}, "finite"),
        ({"text": "word " * 500}, "the last turn takes"),
    ],
)
def test_a_question_that_is_no_use_is_one_clear_error(omni, question, message):
    with pytest.raises(DataError, match=message):
        omni.ask(**question)


def test_the_oldest_turns_are_dropped_with_a_notice(omni):
    turns = [{"role": role, "content": f"{i} " * 8} for i in range(6) for role in ("user", "assistant")] + [
        {"role": "user", "content": "Well?"}
    ]
    reply = omni.chat(turns, SHORT)
    assert "dropped the oldest" in reply.notices[0]


# --- transcribing


@pytest.mark.parametrize("seconds", [0.01, 1.0, 20.0, 20.01, 36.0, 36.01, 53.3])
def test_windows_give_what_one_pass_over_everything_gives(own_omni, seconds, monkeypatch):
    """Without attention an encoder frame depends on its surroundings only; then windows must join without a trace."""
    monkeypatch.setattr("omni.inference.omni.autocast_dtype", lambda device, precision: None)  # untrained, the likeliest is hardly likelier
    encoder = own_omni.model.audio_encoder
    for block in encoder.blocks:
        block.attention.out.weight.data.zero_()
    wave = noise(seconds, seed=int(seconds))
    with torch.no_grad():
        best = encoder.ctc_logits(encoder(own_omni.log_mel(wave)[None])[0])[0].argmax(-1)
    merged = torch.unique_consecutive(best).tolist()
    text = own_omni.transcribe(wave)
    assert text == "".join(chr(29 + i) for i in merged if i >= 3)
    assert text


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-5), (torch.bfloat16, 0.03)])
def test_clips_are_heard_together_as_alone_whatever_the_precision(omni, monkeypatch, dtype, tolerance):
    monkeypatch.setattr("omni.inference.omni.autocast_dtype", lambda device, precision: dtype)
    encoder = omni.model.audio_encoder
    mels = [omni.log_mel(noise(seconds)) for seconds in (0.5, 2.0, 1.01)]
    for mel, logits in zip(mels, omni.ctc_logits(mels), strict=True):
        exact = encoder.ctc_logits(encoder(mel[None])[0])[0]
        assert logits.dtype == torch.float32 and logits.shape == exact.shape
        assert (logits - exact).norm() < tolerance * exact.norm()


def test_only_a_window_is_held_at_a_time(omni, monkeypatch):
    shapes = []
    front_end = type(omni.model.log_mel).forward
    monkeypatch.setattr(type(omni.model.log_mel), "forward", lambda self, wave: shapes.append(len(wave)) or front_end(self, wave))
    omni.transcribe(noise(100.0))
    assert max(shapes) == 20 * 16_000
    assert len(shapes) == 6


def test_the_thinker_transcribes_window_by_window(omni, monkeypatch):
    """A window is what the audio budget holds, 2.56 s; all are of about one length."""
    asked = []
    ask = omni.ask
    monkeypatch.setattr(omni, "ask", lambda text, audio: asked.append((text, len(audio))) or ask(text, audio=audio, sampling=GREEDY))
    omni.transcribe(noise(6.0), "thinker")
    assert asked == [(TRANSCRIBE, 32_000)] * 3


def test_an_unknown_decoder_is_named(omni):
    with pytest.raises(ConfigError, match="no decoder 'magic'; known: ctc, ctc-beam, thinker"):
        omni.transcribe(noise(0.1), "magic")
