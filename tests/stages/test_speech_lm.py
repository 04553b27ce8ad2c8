"""Stage speech-lm: the loss is the weighted mean that it says, everything trains once, and what it exports says and hears by itself."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
import torch
import torch.nn.functional as F

from omni.audio import save_audio
from omni.audio_tokenizers import CodecTokenizer, SNACTokenizer
from omni.checkpoint import load_model, save_model
from omni.config import RunConfig, SpeechLMConfig, parse, preset
from omni.data.collate import IGNORE
from omni.data.multimodal import MultimodalDataset
from omni.errors import CheckpointError, ConfigError
from omni.inference.omni import GREEDY
from omni.omni_model import OmniModel
from omni.speech_lm import COMPONENT, MultimodalLLM, SpeechLM
from omni.stages import STAGES
from omni.stages.speech_lm import SpeechLMStage, ctc_aligner
from omni.training.optimizers import make_optimizers
from omni.training.stage import Context, local_context
from omni.training.trainer import train

TEXTS = ["A cat sat here.", "The old house.", "It looked at me.", "Two small stars."]
SETTINGS = {
    "text_vocab_size": 300,
    "d_model": 16,
    "n_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 1,
    "d_ff": 16,
    "context_length": 512,
    "voices": ["ada"],
}
SIDE_BY_SIDE = {"lead_frames": 2, "lag_frames": 3, "code_dropout": 0.2}

MakeRun = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """Makes runs on four clips and a random codec, with a random audio encoder."""
    folder = tmp_path_factory.mktemp("speech_lm")
    torch.manual_seed(0)
    parts = OmniModel(preset("nano"), ["codec", "audio_encoder"])
    save_model(folder / "parts", parts.tensors(), parts.config, parts.components, None)
    for i in range(4):
        save_audio(folder / f"{i}.wav", np.random.default_rng(i).standard_normal(16_000 + 3_000 * i).astype(np.float32) * 0.1, 16_000)
    lines = [json.dumps({"audio": f"{i}.wav", "text": text, "speaker": "ada"}) + "\n" for i, text in enumerate(TEXTS)]
    (folder / "train.jsonl").write_text("".join(lines[:3]))
    (folder / "validation.jsonl").write_text(lines[3])

    def make(out: str = "run", **settings: Any) -> RunConfig:
        words = SETTINGS | settings.pop("speech_lm", {})
        raw = {
            "stage": "speech-lm",
            "preset": "nano",
            "model": {"speech_lm": words},
            "init_from": [str(folder / "parts")],
            "data": {"train": [str(folder / "train.jsonl")], "validation": [str(folder / "validation.jsonl")]},
            "train": {"steps": 4, "batch_size": 4, "micro_batch_size": 2, "warmup_steps": 1, "precision": "float32", "optimizer": "muon"}
            | settings,
            "out_dir": str(folder / out),
        }
        return parse(RunConfig, raw, "test")

    return make


def built(run: RunConfig) -> tuple[SpeechLMStage, MultimodalLLM, Any]:
    """The stage, a model with weights that matter, and all its training examples as a batch."""
    stage = STAGES["speech-lm"](run)
    assert isinstance(stage, SpeechLMStage)
    splits = stage.build_data()
    torch.manual_seed(0)
    model = stage.build_model()
    for p in model.parameters():
        if p.dim() > 1:
            p.data *= 4.0
    return stage, model, splits.collate([splits.train[i] for i in range(len(splits.train))])


def test_codes_that_sound_alike_begin_alike_and_nothing_else_changes(make_run) -> None:
    stage, model, batch = built(make_run())
    before = model.tok_emb.weight.detach().clone()
    stage.prepare(model, batch)
    codes, rows = model.vocabulary.audio, model.tok_emb.weight.detach()
    others = [i for i in range(len(rows)) if i not in codes]
    torch.testing.assert_close(rows[others], before[others])
    own = rows[codes.start : codes.stop]
    assert own.std() == pytest.approx(float(before[codes.start : codes.stop].std()), rel=0.1)
    vectors = torch.cat(stage.sounds.model.codec.rvq.vectors())  # type: ignore[attr-defined]
    alike, unlike = (
        torch.corrcoef(torch.stack([torch.pdist(vectors), torch.pdist(x)]))[0, 1] for x in (own, before[codes.start : codes.stop])
    )
    assert alike > 0.4 > 0.1 > abs(unlike)


def nats_of(model: MultimodalLLM, batch: Any) -> torch.Tensor:
    """(B,T): of every target; of text that is known when it is said, that any text comes."""
    log_p = model(batch.input_ids).log_softmax(-1)
    nats = -log_p.gather(-1, batch.labels.clamp(min=0)[..., None])[..., 0]
    any_text = -log_p[..., : model.vocabulary.text_size].logsumexp(-1)
    known = (batch.labels >= 0) & (batch.labels < model.vocabulary.text_size) & batch.speaks[:, None]
    return torch.where(known, any_text, nats)


@pytest.mark.parametrize("words", [{}, SIDE_BY_SIDE | {"code_dropout": 0.0}], ids=["one after the other", "side by side"])
def test_the_loss_is_the_mean_over_weighted_targets(make_run: MakeRun, words: dict[str, Any]) -> None:
    stage, model, batch = built(make_run(speech_lm={"audio_weight": 2.0, "text_weight": 0.5} | words))
    nats = nats_of(model, batch)
    weights = torch.where(batch.speaks[:, None], 2.0, 0.5) * (batch.labels != IGNORE)
    expected = (weights * nats).sum() / weights.sum()
    context = local_context(stage, model, batch)
    terms = stage.loss(model, batch, context)
    loss = sum(term.weight * term.sum / context.totals[name] for name, term in terms.items())
    torch.testing.assert_close(loss, expected)
    assert stage.evaluate(model.eval(), [batch])["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_perplexity_and_accuracy_are_of_codes_of_text_and_of_when_they_come(make_run: MakeRun) -> None:
    stage, model, batch = built(make_run(speech_lm=SIDE_BY_SIDE))
    metrics = stage.evaluate(model.eval(), [batch])
    with torch.no_grad():
        likeliest, nats = model(batch.input_ids).argmax(-1), nats_of(model, batch)
    size, codes, labels = model.vocabulary.text_size, model.vocabulary.audio, batch.labels
    speaks = batch.speaks[:, None].expand_as(labels)
    of = {"audio": speaks & (labels >= codes.start) & (labels < codes.stop), "text": ~speaks & (labels >= 0) & (labels < size)}
    of["timing"] = (labels != IGNORE) & ~of["audio"] & ~of["text"]
    for name, kept in of.items():
        right = (likeliest == labels) | (speaks & (likeliest < size) & (labels < size))
        assert kept.any()
        assert metrics[f"{name}_accuracy"] == pytest.approx(right[kept].float().mean().item())
        assert metrics[f"{name}_perplexity"] == pytest.approx(nats[kept].mean().exp().item(), rel=1e-4)


def test_every_parameter_is_optimised_exactly_once_and_moves(make_run: MakeRun) -> None:
    stage, model, batch = built(make_run())
    (objective,) = stage.objectives(model)
    optimizers = make_optimizers(model, objective, stage.run.train)
    assert [type(o).__name__ for o in optimizers] == ["AdamW", "Muon"]
    names = {id(p): name for name, p in model.named_parameters()}
    held = [[names[id(p)] for group in o.param_groups for p in group["params"]] for o in optimizers]
    assert sorted(held[0] + held[1]) == sorted(names.values())
    assert held[1] and all(".blocks." in name and name.endswith(".weight") for name in held[1])
    assert "tok_emb.weight" in held[0] and not [name for name in held[0] if "qkv" in name or "gate_up" in name]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sum(term.sum for term in stage.loss(model, batch, Context({"audio": 1, "text": 1})).values()).backward()
    for optimizer in optimizers:
        optimizer.step()
    assert not [name for name, p in model.named_parameters() if torch.equal(p, before[name])]


def test_some_codes_are_hidden_in_training_and_none_otherwise(make_run: MakeRun) -> None:
    stage, model, batch = built(make_run(speech_lm={"code_dropout": 0.5}))
    v, ids = model.vocabulary, batch.input_ids
    hidden = stage._untold(model, ids)
    is_code = (ids >= v.audio.start) & (ids < v.audio.stop)
    assert torch.equal(hidden[~is_code], ids[~is_code])
    assert 0.3 < (hidden[is_code] == v.hidden).float().mean() < 0.7
    assert torch.equal(stage._untold(model.eval(), ids), ids)


def test_text_ids_are_said_where_their_characters_are_found(make_run: MakeRun) -> None:
    stage, _, _ = built(make_run(out="aligned", speech_lm=SIDE_BY_SIDE))
    tokenizer, parts = stage.require_tokenizer(), stage.build_omni().eval()
    ids = tokenizer.encode(TEXTS[0])
    wave = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    times = ctc_aligner(parts, tokenizer, 16_000)(wave, ids, "x")
    twice = ctc_aligner(parts, tokenizer, 32_000)(soxr.resample(wave, 16_000, 32_000), ids, "x")
    assert twice == pytest.approx(times, abs=0.1)
    assert len(times) == len(ids) and times == sorted(times) and times[0] >= 0 and times[-1] < 20_000 / 16_000
    characters = [0.0, *ctc_aligner(parts, Spelled(), 16_000)(wave, list(TEXTS[0]), "x")]
    ends = [len(tokenizer.decode(ids[: n + 1])) for n in range(len(ids))]
    assert times == [characters[end] for end in ends]


class Spelled:
    """A tokenizer of one character an id."""

    def pieces(self, ids: list[str]) -> list[str]:
        return ids


def test_a_trained_folder_says_and_hears_by_itself(make_run: MakeRun) -> None:
    run = make_run(out="trained", speech_lm=SIDE_BY_SIDE | {"codebooks": 2})
    result = train(STAGES["speech-lm"](run), device="cpu")
    assert set(result.metrics) == {
        "loss",
        *(f"{of}_{figure}" for of in ("audio", "text", "timing") for figure in ("perplexity", "accuracy")),
    }
    with pytest.raises(ConfigError, match="a speech LM begins anew; leave it out of init_from"):
        STAGES["speech-lm"](run.model_copy(update={"init_from": (*run.init_from, run.out_dir)}))
    saved = load_model(run.out_dir)
    assert saved.components == (COMPONENT, "codec")
    assert saved.config.speech_lm.code_rates == (1, 1) and saved.config.codec == preset("nano").codec
    lm = SpeechLM.from_pretrained(run.out_dir, "cpu")
    assert isinstance(lm.audio_tokenizer, CodecTokenizer) and lm.voices == ("ada",)
    speech = lm.say("A small cat.", "ada")
    assert speech.codes.shape[1] == 2 and len(speech.waveform) == len(speech.codes) * 1280
    assert isinstance(lm.transcribe(speech.waveform), str)


def test_snac_is_a_setting_and_no_codec_is_needed(make_run: MakeRun, random_snac, tmp_path: Path) -> None:
    folder = random_snac(tmp_path, "24khz")
    for n in range(4):
        save_audio(tmp_path / f"{n}.wav", np.random.default_rng(n).uniform(-0.1, 0.1, 1_600).astype(np.float32), 16_000)
    rows = [{"audio": f"{n}.wav", "text": TEXTS[n], "speaker": "ada"} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = make_run(out="snac", speech_lm={"snac": str(folder), "context_length": 2048}, steps=1)
    data = run.data.model_copy(update={"train": (str(tmp_path / "rows.jsonl"),), "validation": ()})
    run = run.model_copy(update={"init_from": (), "data": data})
    train(STAGES["speech-lm"](run), device="cpu")
    lm = SpeechLM.from_pretrained(run.out_dir, "cpu")
    assert isinstance(lm.audio_tokenizer, SNACTokenizer) and lm.model.vocabulary.layout.rates == (1, 2, 4)
    assert lm.say("A small cat.", "ada").sample_rate_hz == 24_000
    with pytest.raises(ConfigError, match="codebooks counts those of our codec"):
        make_run(speech_lm={"snac": str(folder), "codebooks": 2})


def test_blocks_may_be_computed_again_to_save_memory(make_run: MakeRun) -> None:
    ends = [
        train(STAGES["speech-lm"](make_run(out=f"again-{on}", gradient_checkpointing=on)), device="cpu").metrics for on in (False, True)
    ]
    assert ends[0] == pytest.approx(ends[1])


def test_a_resumed_run_ends_with_the_same_bits(make_run: MakeRun) -> None:
    settings = {"speech_lm": {"dropout": 0.1, "code_dropout": 0.1}, "checkpoint_every": 2, "evaluate_every": 2}
    whole, parted = make_run(out="whole", **settings), make_run(out="parted", **settings)
    train(STAGES["speech-lm"](whole), device="cpu")

    class Stop(Exception):
        pass

    def stop(event: Any) -> None:
        if event.kind == "update" and event.step == 3:
            raise Stop

    with pytest.raises(Stop):
        train(STAGES["speech-lm"](parted), device="cpu", on_event=stop)
    train(STAGES["speech-lm"](parted), device="cpu")
    first, second = (load_model(Path(run.out_dir) / "checkpoints" / "step-00000004").tensors for run in (whole, parted))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_without_a_codec_or_aligner_the_stage_says_what_it_needs(make_run: MakeRun) -> None:
    run = make_run()
    with pytest.raises(CheckpointError, match="needs a trained codec"):
        STAGES["speech-lm"](run.model_copy(update={"init_from": ()}))
    codec = OmniModel(preset("nano"), ["codec"])
    folder = Path(run.out_dir).parent / "codec"
    save_model(folder, codec.tensors(), codec.config, codec.components, None)
    aligned = make_run(speech_lm=SIDE_BY_SIDE).model_copy(update={"init_from": (str(folder),)})
    with pytest.raises(CheckpointError, match="needs a trained audio_encoder"):
        STAGES["speech-lm"](aligned)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"lead_frames": 0, "lag_frames": 1}], ids=["one after the other", "side by side"])
def test_texts_that_it_was_not_trained_on_are_said_and_heard(letters, beeps, beeped, settings: dict) -> None:
    """Sound from text, text from sound: greedy decoding gives the other side of an unseen pair exactly. Of most: which of them so short a
    training has not quite learned depends on the rounding of the machine; ids that are off by one give none."""
    words = SpeechLMConfig.model_validate(SETTINGS | {"voices": (), "d_model": 48, "d_ff": 96, "n_layers": 2} | settings)
    chance = random.Random(0)
    # no two of these letters sound alike: side by side, none can wait for the next
    texts = sorted({"".join(chance.choices("abcdf ", k=chance.randint(3, 8))).strip() or "a" for _ in range(500)})
    chance.shuffle(texts)
    aligner = lambda wave, ids, clip: [0.1 * n + 0.05 for n in range(len(ids))]  # noqa: E731
    data = MultimodalDataset([{"audio": beeped(t), "text": t} for t in texts[10:]], letters, beeps, config=words, aligner=aligner)
    v = data.vocabulary
    sizes = {"text_vocab_size": v.text_size, "codebook_size": v.layout.codebook_size, "code_rates": v.layout.rates}
    torch.manual_seed(0)
    model = MultimodalLLM(words.model_copy(update=sizes))
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3, weight_decay=0.0)
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=700)
    for _ in range(700):
        batch = data.collate([data[i] for i in chance.sample(range(len(data)), 32)])
        loss = F.cross_entropy(model(batch.input_ids).flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        slower.step()
    lm = SpeechLM(model, letters, beeps)
    asked = [" ".join(text.split()) for text in texts[:10]]
    assert sum(np.array_equal(lm.say(text, sampling=GREEDY).waveform, beeped(text)) for text in asked) >= 5
    assert sum(lm.transcribe(beeped(text)) == text for text in asked) >= 8


def test_a_run_that_is_continued_keeps_its_text_ids_whatever_its_manifests_say_by_then(make_run, tmp_path: Path) -> None:
    run = make_run(str(tmp_path / "run"), steps=2)
    manifest = tmp_path / "train.jsonl"
    source = Path(run.data.train[0])
    rows = [json.loads(line) | {"audio": str(source.parent / json.loads(line)["audio"])} for line in source.read_text().splitlines()]
    manifest.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = run.data.model_copy(update={"train": (str(manifest),)})
    train(STAGES["speech-lm"](run.model_copy(update={"data": data})))
    before = load_model(tmp_path / "run").tokenizer
    assert before is not None
    learned = before.read_bytes()
    manifest.write_text(manifest.read_text() + json.dumps(rows[0] | {"text": "Quite another quick fox, jumping."}) + "\n")
    longer = run.train.model_copy(update={"steps": 3})
    train(STAGES["speech-lm"](run.model_copy(update={"data": data, "train": longer})))
    after = load_model(tmp_path / "run").tokenizer
    assert after is not None and after.read_bytes() == learned
