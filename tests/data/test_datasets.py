"""From rows to examples to batches: what is in them, that nothing unreadable passes, and that batched is the same as single."""

import logging
import re
from pathlib import Path

import datasets
import pytest
import torch

from omni.audio import SILENCE, LogMel, load_audio
from omni.characters import PAD_ID, decode_characters, encode_characters
from omni.config import DataConfig, model_config
from omni.data.collate import IGNORE, collate_captions, collate_conversations, collate_speech, collate_talker, collate_text, collate_vocoder
from omni.data.datasets import (
    PIECE,
    CaptionDataset,
    ConversationDataset,
    MelReader,
    SpeechDataset,
    TalkerDataset,
    VocoderDataset,
    slots_needed,
)
from omni.data.manifests import Manifests, open_rows
from omni.errors import DataError
from omni.tokenizer import BPETokenizer, train_tokenizer
from omni.training.losses import shares_in_groups

CONFIG = model_config("nano", ['talker.voices=["anna","ben"]', "vision_encoder.image_size=32"])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> BPETokenizer:
    return train_tokenizer(["the red cube is left of the blue ball", "what is this?"] * 20, 330, tmp_path_factory.mktemp("t") / "t.model")


def rows_of(source: str, *required: str) -> Manifests:
    return Manifests([open_rows(source, required)])


def speech(folder, rows: list[dict], max_audio_s: float = 15.0) -> SpeechDataset:
    return SpeechDataset(rows_of(folder.jsonl("speech.jsonl", rows), "audio", "text"), CONFIG, DataConfig(max_audio_s=max_audio_s))


def spoil(path: Path) -> None:
    path.write_bytes(b"neither sound nor picture")


# --- speech


def test_a_speech_batch_holds_each_clip_as_it_is_alone(folder):
    rows = [
        {"audio": folder.clip(f"{i}.wav", seconds, seed=i), "text": text}
        for i, (seconds, text) in enumerate([(0.301, "Hi!"), (0.5, "A cat, no?")])
    ]
    data = speech(folder, rows)
    batch = collate_speech([data[0], data[1]])
    assert batch.mel.shape == (2, 50, 128) and batch.mel.dtype == torch.float32
    assert batch.mel_lengths.tolist() == [31, 50] and batch.target_lengths.tolist() == [3, 10] and batch.texts == ("Hi!", "A cat, no?")
    for i, row in enumerate(rows):
        alone = LogMel(CONFIG.audio)(torch.from_numpy(load_audio(folder.root / row["audio"])))
        torch.testing.assert_close(batch.mel[i, : batch.mel_lengths[i]], alone, atol=2e-3, rtol=0)
        assert decode_characters(batch.targets[i].tolist()) == row["text"]
    assert (batch.mel[0, 31:] == SILENCE).all() and (batch.targets[0, 3:] == PAD_ID).all()
    assert {t.device.type for t in vars(batch.to(torch.device("meta"))).values() if isinstance(t, torch.Tensor)} == {"meta"}


def test_a_clip_is_the_same_whether_or_not_it_was_kept(folder):
    source = open_rows(folder.jsonl("m.jsonl", [{"audio": folder.clip(f"{i}.wav", seed=i), "text": "x"} for i in range(4)]), ("audio",))
    kept, not_kept = MelReader(CONFIG, DataConfig()), MelReader(CONFIG, DataConfig(cached_hours=0.6 / 3600))  # one clip is half a second
    for name in ("0.wav", "1.wav", "0.wav", "0.wav", "2.wav", "3.wav", "1.wav"):
        assert torch.equal(kept(source, name), not_kept(source, name))
    assert len(kept._cache) == 4 and len(not_kept._cache) == 1
    spoil(folder.root / "0.wav")
    kept(source, "0.wav")
    with pytest.raises(DataError):
        not_kept(source, "0.wav")


def test_clips_known_to_be_too_long_are_left_out_and_reported(folder, caplog):
    name = folder.clip("a.wav")
    rows = [{"audio": name, "text": str(i), "duration_s": seconds} for i, seconds in enumerate([1, "2.5", 15.0, 15.1, None, 99])]
    with caplog.at_level(logging.WARNING):
        data = speech(folder, rows)
    assert [data[i].text for i in range(len(data))] == ["0", "1", "2", "4"]
    assert caplog.messages == [
        f"2 of 6 clips are longer than data.max_audio_s 15, the first at {folder.root}/speech.jsonl:4 (15.1 s): left out"
    ]
    with pytest.raises(DataError, match="none is left; cut the clips or raise the limit"):
        speech(folder, [{"audio": name, "text": "x", "duration_s": 0.6}], max_audio_s=0.5)
    with pytest.raises(DataError, match=r"speech.jsonl:1: 'duration_s' should be a number, found 'long'"):
        speech(folder, [{"audio": name, "text": "x", "duration_s": "long"}])


def test_a_clip_found_to_be_too_long_stops_with_its_line(folder):
    data = speech(
        folder, [{"audio": folder.clip("a.wav", 0.5), "text": "a"}, {"audio": folder.clip("b.wav", 2.0), "text": "b"}], max_audio_s=1.0
    )
    assert data[0].text == "a"
    with pytest.raises(DataError, match=rf"^{folder.root}/speech.jsonl:2: {folder.root}/b.wav: 2.0 s exceed data.max_audio_s 1; "):
        data[1]


@pytest.mark.parametrize("after", [spoil, Path.unlink, lambda path: path.write_bytes(b"")])
def test_an_unreadable_clip_stops_with_file_and_line(folder, after):
    data = speech(folder, [{"audio": folder.clip("a.wav"), "text": "a"}, {"audio": folder.clip("b.wav"), "text": "b"}])
    after(folder.root / "b.wav")
    with pytest.raises(DataError, match=rf"^{folder.root}/speech.jsonl:2: {folder.root}/b.wav: "):
        data[1]


@pytest.mark.parametrize(("text", "needed"), [("", 0), ("abc", 3), ("aab", 4), ("aaa", 5), ("book keeper", 13)])
def test_a_repeated_character_needs_a_blank_between(text, needed):
    assert slots_needed(encode_characters(text)) == needed


def test_ctc_is_finite_exactly_where_the_text_is_feasible(folder):
    slots = 7 * CONFIG.audio_encoder.ctc_slots  # 0.5 s are 50 mel frames, 7 encoder frames
    texts = ["ab" * (slots // 2), "ab" * (slots // 2) + "c", "aa" + "bc" * (slots // 2 - 2) + "d", "aa" + "bc" * (slots // 2 - 1), "hello"]
    data = speech(folder, [{"audio": folder.clip("a.wav"), "text": text} for text in texts])
    batch = collate_speech([data[i] for i in range(5)])
    log_p = torch.zeros(slots, 5, 98).log_softmax(-1)
    nats = torch.nn.functional.ctc_loss(log_p, batch.targets, torch.full((5,), slots), batch.target_lengths, reduction="none")
    assert data.infeasible() == [f"{folder.root}/speech.jsonl:{i + 1}" for i in range(5) if not torch.isfinite(nats[i])]
    assert len(data.infeasible()) == 2


# --- pieces of clips


def pieces(folder, seconds: list[float], **settings) -> VocoderDataset:
    rows = [{"audio": folder.clip(f"{i}.wav", s, seed=i), "text": "a"} for i, s in enumerate(seconds)]
    data = DataConfig(segment_s=0.2)
    return VocoderDataset(rows_of(folder.jsonl("pieces.jsonl", rows), "audio", "text"), CONFIG, data, **settings)


def test_a_piece_is_sound_with_its_own_log_mel_and_look_ahead(folder):
    batch = collate_vocoder([pieces(folder, [0.5])[0]])
    assert batch.waveform.shape == (1, 3200) and batch.mel.shape == (1, 20 + CONFIG.vocoder.delay_frames, 128)
    inside = slice(2, 18)  # frames whose window lies within the piece
    torch.testing.assert_close(LogMel(CONFIG.audio)(batch.waveform)[0, inside], batch.mel[0, inside], atol=5e-3, rtol=0)
    assert batch.pitch_hz.shape == (1, 20) and (batch.pitch_hz == 0).all()  # noise


def test_pieces_follow_from_seed_and_epoch(folder):
    def cut(epoch: int, seed: int = 0) -> list[torch.Tensor]:
        data = pieces(folder, [0.5, 0.6], seed=seed)
        data.set_epoch(epoch)
        return [data[i].waveform for i in range(2)]

    same, again, later, other = cut(3), cut(3), cut(4), cut(3, seed=1)
    assert all(map(torch.equal, same, again))
    assert not any(map(torch.equal, same, later)) and not any(map(torch.equal, same, other))


def test_behind_a_short_clip_is_silence(folder):
    piece = pieces(folder, [0.11])[0]
    assert piece.waveform[:1760].abs().min() > 0 and (piece.waveform[1760:] == 0).all()
    assert (piece.mel[11:] == SILENCE).all() and (piece.mel[10] != SILENCE).any()


def test_a_share_of_pieces_goes_through_the_codec_whole_clip_at_a_time(folder):
    lengths: list[int] = []

    def resynthesise(mel: torch.Tensor) -> torch.Tensor:
        lengths.append(len(mel))
        return mel + 1

    plain = pieces(folder, [0.5] * 20)
    mixed = pieces(folder, [0.5] * 20, codec_share=0.5, resynthesise=resynthesise)
    through = [mixed[i].through_codec for i in range(20)]
    assert 4 < sum(through) < 16 and set(lengths) == {50}
    for i in range(20):
        torch.testing.assert_close(mixed[i].mel[:20], plain[i].mel[:20] + float(through[i]), atol=5e-3, rtol=0)
        assert torch.equal(mixed[i].waveform, plain[i].waveform)


# --- captions


def test_a_caption_batch_predicts_every_token_and_the_end_of_turn(folder, tokenizer):
    rows = [
        {"image": folder.picture("a.png", "red"), "caption": "the red cube"},
        {"image": folder.picture("b.png", "blue"), "caption": "what is this? the blue ball"},
    ]
    data = CaptionDataset(rows_of(folder.jsonl("m.jsonl", rows), "image", "caption"), CONFIG, tokenizer)
    batch = collate_captions([data[0], data[1]])
    assert batch.pixels.shape == (2, 3, 32, 32) and not torch.equal(batch.pixels[0], batch.pixels[1])
    for i, row in enumerate(rows):
        caption = batch.caption_ids[i, : batch.caption_lengths[i]]
        assert caption[0] == tokenizer.bos_id and caption[-1] == tokenizer.end_id and tokenizer.decode(caption.tolist()) == row["caption"]
        assert torch.equal(batch.labels[i][batch.labels[i] != IGNORE], caption[1:])
        start = int(batch.image_slots[i, 1])
        seen = batch.input_ids[i, start : start + CONFIG.vision_encoder.n_image_tokens]
        assert (seen == tokenizer.media_id).all() and batch.input_ids[i, start - 1] == tokenizer.image_id


def test_an_unreadable_picture_or_endless_caption_stops_with_file_and_line(folder, tokenizer):
    rows = [{"image": folder.picture("a.png"), "caption": "the cube"}, {"image": "a.png", "caption": "ball? " * 200}]
    data = CaptionDataset(rows_of(folder.jsonl("m.jsonl", rows), "image", "caption"), CONFIG, tokenizer)
    with pytest.raises(DataError, match=rf"^{folder.root}/m.jsonl:2: the caption takes \d+ positions, but the Thinker's context is 256"):
        data[1]
    spoil(folder.root / "a.png")
    with pytest.raises(DataError, match=rf"^{folder.root}/m.jsonl:1: {folder.root}/a.png: not a readable picture"):
        data[0]


# --- talker


def talker(folder, tokenizer, rows: list[dict]) -> TalkerDataset:
    return TalkerDataset(rows_of(folder.jsonl("m.jsonl", rows), "audio", "text"), CONFIG, tokenizer, DataConfig())


def test_every_character_knows_the_token_that_spells_it(folder, tokenizer):
    texts = ["the red cube", "Zoë’s 猫 – what?"]
    data = talker(folder, tokenizer, [{"audio": folder.clip("a.wav"), "text": text, "speaker": "ben"} for text in texts])
    batch = collate_talker([data[0], data[1]])
    assert batch.voices.tolist() == [1, 1] and batch.texts == tuple(texts)
    for row, text in enumerate(texts):
        ids = batch.input_ids[row, : batch.lengths[row]].tolist()
        assert ids[:2] == [tokenizer.bos_id, tokenizer.assistant_id] and ids[-1] == tokenizer.end_id and tokenizer.decode(ids) == text
        n = batch.char_lengths[row]
        assert batch.char_ids[row, :n].tolist() == encode_characters(f" {text} ")  # silence before and behind
        tokens = batch.char_tokens[row, :n].tolist()
        assert tokens == sorted(tokens) and tokens[0] >= 2 and tokens[-1] == len(ids) - 1
        for position, piece in enumerate(tokenizer.pieces(ids)):
            spelling = zip(batch.char_ids[row, 1 : n - 1].tolist(), tokens[1:-1], strict=True)
            spelled = [c for c, token in spelling if token == position]
            assert spelled == encode_characters(piece)
    assert (batch.char_ids[0, batch.char_lengths[0] :] == PAD_ID).all() and int(batch.char_tokens.max()) < batch.input_ids.shape[1]


def test_the_text_of_the_neighbour_comes_with_everything_that_belongs_to_it(folder, tokenizer):
    rows = [
        {"audio": folder.clip(f"{i}.wav", seed=i), "text": text, "speaker": ("anna", "ben")[i % 2]}
        for i, text in enumerate(["the cube", "a", "what is this?"])
    ]
    data = talker(folder, tokenizer, rows)
    examples = [data[i] for i in range(3)]
    batch, rolled = collate_talker(examples), collate_talker([examples[2], examples[0], examples[1]])
    other = batch.with_text_of_neighbour()
    for name, value in vars(other).items():
        expected = getattr(batch if name in ("mel", "mel_lengths", "voices", "clips") else rolled, name)
        assert value == expected if name in ("texts", "clips") else torch.equal(value, expected), name


def test_an_unknown_speaker_is_found_before_training_and_none_is_the_first_voice(folder, tokenizer):
    name = folder.clip("a.wav")
    data = talker(
        folder,
        tokenizer,
        [{"audio": name, "text": "a"}, {"audio": name, "text": "a", "speaker": None}, {"audio": name, "text": "a", "speaker": "ben"}],
    )
    assert [data[i].voice for i in range(3)] == [0, 0, 1]
    with pytest.raises(
        DataError, match=rf"^{folder.root}/m.jsonl:2: speaker 'carl' is not among the voices of the configuration: anna, ben"
    ):
        talker(folder, tokenizer, [{"audio": name, "text": "a"}, {"audio": name, "text": "a", "speaker": "carl"}])


def test_a_clip_too_short_for_its_characters_and_the_silence_around_them_is_left_out(folder, tokenizer, caplog):
    name = folder.clip("a.wav", 0.16)  # two frames: eight slots
    data = talker(folder, tokenizer, [{"audio": name, "text": "abcdef"}, {"audio": name, "text": "abcdefg"}])
    assert len(data) == 1 and data[0].text == "abcdef"
    assert f"1 of 2 clips are too short for their text, the first at {folder.root}/m.jsonl:2: left out" in caplog.text
    with pytest.raises(DataError, match="1 of 1 clips are too short for their text.*none is left"):
        talker(folder, tokenizer, [{"audio": name, "text": "abcdefg"}])


# --- conversations


def conversations(folder, tokenizer, rows: list[list[dict]], side_by_side: int = 1) -> ConversationDataset:
    manifest = folder.jsonl("m.jsonl", [{"messages": messages} for messages in rows])
    return ConversationDataset(rows_of(manifest, "messages"), CONFIG, tokenizer, DataConfig(side_by_side=side_by_side))


def user(*parts: tuple[str, str]) -> dict:
    return {"role": "user", "content": [{"type": kind, kind: value} for kind, value in parts]}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def test_a_conversation_batch_has_every_medium_at_its_placeholders_and_only_replies_as_labels(folder, tokenizer):
    picture, clip = folder.picture("media/p.png"), folder.clip("media/c.wav", 0.5)
    data = conversations(
        folder,
        tokenizer,
        [
            [user(("text", "what is this?")), assistant("the red cube")],
            [
                user(("audio", clip), ("text", "what?"), ("image", picture)),
                assistant("a ball"),
                user(("audio", clip)),
                assistant("the cube"),
            ],
        ],
    )
    batch = collate_conversations([data[0], data[1]])
    n_image, n_audio = CONFIG.vision_encoder.n_image_tokens, 7  # 50 mel frames
    assert batch.pixels.shape == (1, 3, 32, 32) and batch.mel.shape == (2, 50, 128) and batch.mel_lengths.tolist() == [50, 50]
    media = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    for row, start in batch.image_slots.tolist():
        media[row, start : start + n_image] = True
        assert batch.input_ids[row, start - 1] == tokenizer.image_id and batch.input_ids[row, start + n_image] == tokenizer.image_end_id
    for row, start, length in batch.audio_slots.tolist():
        media[row, start : start + length] = True
        assert (
            length == n_audio
            and batch.input_ids[row, start - 1] == tokenizer.audio_id
            and batch.input_ids[row, start + length] == tokenizer.audio_end_id
        )
    assert torch.equal(media, batch.input_ids == tokenizer.media_id)
    spoken = [tokenizer.decode(labels[labels != IGNORE].tolist()) for labels in batch.labels]
    assert spoken == ["the red cube", "a ballthe cube"]
    assert [(labels == tokenizer.end_id).sum() for labels in batch.labels] == [1, 2]
    for ids, labels in zip(batch.input_ids, batch.labels, strict=True):
        position = ((labels != IGNORE) & (labels != tokenizer.end_id)).nonzero()[:, 0]
        assert torch.equal(ids[position + 1], labels[position])


def test_text_among_conversations_is_learned_word_by_word_and_stays_by_itself(folder, tokenizer, caplog):
    picture = folder.picture("p.png")
    asked = {"messages": [user(("image", picture), ("text", "what?")), assistant("a ball")]}
    rows = [asked, {"text": "the red cube"}, asked, {"text": "the cube " * 200}]
    manifest = rows_of(folder.jsonl("m.jsonl", rows), "messages|text")
    data = ConversationDataset(manifest, CONFIG, tokenizer, DataConfig(side_by_side=8))
    assert len(data) == 3
    text = data[1]
    assert text.input_ids == [tokenizer.bos_id, *tokenizer.encode("the red cube")] and all(text.loss_mask) and not text.images
    batch = collate_conversations([data[0], text])
    labels = batch.labels[1]
    assert labels[labels != IGNORE].tolist() == tokenizer.encode("the red cube")
    most = CONFIG.thinker.context_length
    assert len(data[2].input_ids) == len(data[2].loss_mask) == most
    assert caplog.text.count(f"m.jsonl:4: the text takes 402 positions, of which the context has {most}: cut its end") == 1


def test_conversations_about_one_picture_are_one_example_that_holds_it_once(folder, tokenizer):
    pictures, clip = [folder.picture(f"{name}.png") for name in "pq"], folder.clip("c.wav", 0.5)
    rows = [
        [user(("image", pictures[0]), ("text", "what?")), assistant("a ball")],
        [user(("image", pictures[1]), ("text", "what?")), assistant("the cube")],
        [user(("text", "what?")), assistant("the red cube")],
        [user(("image", pictures[0]), ("audio", clip)), assistant("the cube"), user(("image", pictures[1])), assistant("a ball")],
    ]
    data = conversations(folder, tokenizer, rows, 8)
    assert len(data) == 3
    together, *others = [data[i] for i in range(3)]
    alone = [ConversationDataset(data.rows.choose([i]), CONFIG, tokenizer, DataConfig())[0] for i in range(4)]
    assert [e.input_ids for e in others] == [e.input_ids for e in alone[1:3]]
    shared = alone[0].input_ids.index(tokenizer.image_end_id) + 1
    assert together.branches[:shared] == [0] * shared and set(together.branches[shared:]) == {1, 2}
    n_image, n_audio = CONFIG.vision_encoder.n_image_tokens, 7
    for n in (1, 2):
        places = [i for i, branch in enumerate(together.branches) if branch == n]
        ids, mask = [together.input_ids[i] for i in places], [together.loss_mask[i] for i in places]
        (own,) = [e for e in (alone[0], alone[3]) if e.input_ids[shared:] == ids]
        assert own.loss_mask[shared:] == mask
    starts = [start for start, _ in together.images]
    assert len(starts) == 2 and all(together.input_ids[s : s + n_image] == [tokenizer.media_id] * n_image for s in starts)
    ((start, length, _),) = together.clips
    assert length == n_audio and together.input_ids[start : start + length] == [tokenizer.media_id] * length
    batch = collate_conversations([together, alone[2]])
    assert batch.branches.shape == batch.input_ids.shape and batch.branches[0].tolist() == together.branches[:-1]
    eight_at_most, without_picture = (len(conversations(folder, tokenizer, some, 8)) for some in (9 * rows[:1], 2 * rows[2:3]))
    assert eight_at_most == without_picture == 2


def test_beside_others_a_conversation_that_does_not_fit_is_left_out_and_said(folder, tokenizer):
    picture = folder.picture("p.png")
    short = [user(("image", picture), ("text", "what?")), assistant("a ball")]
    long = short + 60 * [user(("text", "what is this?")), assistant("the red cube")]
    data = conversations(folder, tokenizer, [short, long, short], 8)
    assert set(data[0].branches) == {0, 1, 2} and len(data.cut) == 1
    assert len(conversations(folder, tokenizer, [long, long], 8)[0].images) == 0


def test_conversations_of_text_alone_make_a_batch_with_empty_media(folder, tokenizer):
    batch = collate_conversations([conversations(folder, tokenizer, [[user(("text", "what?")), assistant("the cube")]])[0]])
    assert len(batch.pixels) == len(batch.image_slots) == len(batch.mel) == len(batch.mel_lengths) == len(batch.audio_slots) == 0
    assert batch.image_slots.shape == (0, 2) and batch.audio_slots.shape == (0, 3)
    assert batch.image_slots.dtype == batch.audio_slots.dtype == batch.mel_lengths.dtype == torch.long


def test_both_sides_of_a_conversation_are_learned_where_a_row_says_so(folder, tokenizer):
    row = {"messages": [user(("image", folder.picture("p.png")), ("text", "what?")), assistant("the cube")], "learn": "all"}
    data = ConversationDataset(rows_of(folder.jsonl("m.jsonl", [row, row]), "messages"), CONFIG, tokenizer, DataConfig(side_by_side=8))
    assert len(data) == 2 and data[0].loss_mask == [i != tokenizer.media_id for i in data[0].input_ids]


def test_where_every_word_is_learned_a_long_text_counts_for_its_pieces(folder, tokenizer):
    messages = 8 * [user(("text", "what is this?")), assistant("the red cube")]
    rows = [{"messages": messages, "learn": "all"}, {"messages": messages}]
    whole, replies = ConversationDataset(rows_of(folder.jsonl("m.jsonl", rows), "messages"), CONFIG, tokenizer, DataConfig())
    n = len(whole.input_ids)
    assert n > 2 * PIECE and whole.groups == [place // PIECE for place in range(n)]
    assert set(replies.groups) == {0}
    batch = collate_conversations([whole, replies])
    shares = shares_in_groups(batch.labels != IGNORE, batch.groups)
    torch.testing.assert_close(shares.sum(1), torch.tensor([-(-(n - 1) // PIECE), 1.0]))


def test_what_does_not_fit_is_cut_and_said_once(folder, tokenizer, caplog):
    clip = folder.clip("c.wav", 8.0)  # 100 encoder frames; a quarter of the context is 64
    data = conversations(folder, tokenizer, [[user(("audio", clip)), assistant("the cube")], [user(("text", "cube")), assistant("a ball")]])
    with caplog.at_level(logging.WARNING):
        examples = [data[i] for i in (0, 1, 0)]
    assert [length for _, length, _ in examples[0].clips] == [64]
    assert len(caplog.messages) == 1 and re.match(rf"{folder.root}/m.jsonl:1: a clip of 100 audio tokens", caplog.messages[0])
    assert data.cut == {f"{folder.root}/m.jsonl:1"}


def test_an_unreadable_medium_or_endless_turn_stops_with_file_and_line(folder, tokenizer):
    picture, clip = folder.picture("p.png"), folder.clip("c.wav")
    rows = [
        [user(("image", picture)), assistant("x")],
        [user(("audio", clip)), assistant("x")],
        [user(("text", "x")), assistant("cube? " * 300)],
    ]
    data = conversations(folder, tokenizer, rows)
    spoil(folder.root / "p.png")
    spoil(folder.root / "c.wav")
    for index, message in enumerate(
        [f"{folder.root}/p.png: not a readable picture", f"{folder.root}/c.wav: not a readable audio", "the last turn takes"]
    ):
        with pytest.raises(DataError, match=rf"^{folder.root}/m.jsonl:{index + 1}: {message}"):
            data[index]


# --- embedded media, text


def test_media_embedded_in_a_data_set_are_read_like_files(folder, tokenizer):
    sound, picture = ((folder.root / name).read_bytes() for name in (folder.clip("a.wav"), folder.picture("p.png")))
    row = {"audio": {"bytes": sound, "path": None}, "image": {"bytes": picture, "path": "p.png"}, "text": "a", "caption": "a"}
    datasets.disable_progress_bars()
    datasets.Dataset.from_list([row]).save_to_disk(folder.root / "set")
    files = rows_of(folder.jsonl("m.jsonl", [{"audio": "a.wav", "image": "p.png", "text": "a", "caption": "a"}]), "audio", "image")
    embedded = rows_of(str(folder.root / "set"), "audio", "image")
    assert torch.equal(SpeechDataset(files, CONFIG, DataConfig())[0].mel, SpeechDataset(embedded, CONFIG, DataConfig())[0].mel)
    assert torch.equal(CaptionDataset(files, CONFIG, tokenizer)[0].pixels, CaptionDataset(embedded, CONFIG, tokenizer)[0].pixels)


def test_spoilt_embedded_media_stop_with_their_row(folder):
    datasets.disable_progress_bars()
    datasets.Dataset.from_list([{"audio": {"bytes": b"no sound", "path": "a.wav"}, "text": "a"}]).save_to_disk(folder.root / "set")
    with pytest.raises(DataError, match=rf"^{folder.root}/set:1: a.wav: not a readable audio file"):
        SpeechDataset(rows_of(str(folder.root / "set"), "audio", "text"), CONFIG, DataConfig())[0]


def test_a_text_batch_predicts_each_next_id():
    batch = collate_text([torch.arange(5), torch.arange(10, 15)])
    assert batch.input_ids.tolist() == [[0, 1, 2, 3], [10, 11, 12, 13]] and batch.labels.tolist() == [[1, 2, 3, 4], [11, 12, 13, 14]]


def test_clips_of_any_rate_are_resampled(folder):
    data = speech(
        folder,
        [{"audio": folder.clip("a.wav", 0.5, rate=22_050), "text": "a"}, {"audio": folder.clip("b.flac", 0.5, rate=8_000), "text": "b"}],
    )
    assert [len(data[i].mel) for i in range(2)] == [50, 50] and torch.isfinite(data[0].mel).all()


def test_a_clip_that_is_too_short_for_its_text_is_left_out_and_counted(folder, tokenizer, caplog):
    long_text = "so many words cannot be said in so short a time " * 4
    rows = [{"audio": folder.clip(f"{i}.wav", seed=i), "text": text, "speaker": "ben"} for i, text in enumerate(["a cube", long_text])]
    data = talker(folder, tokenizer, rows)
    assert len(data) == 1 and data[0].text == "a cube"
    assert "1 of 2 clips are too short for their text" in caplog.text
    with pytest.raises(DataError, match="none is left"):
        talker(folder, tokenizer, rows[1:])
