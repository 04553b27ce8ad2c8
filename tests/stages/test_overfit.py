"""Each stage learns one small batch by heart in seconds: what the losses ask for is what the models do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from omni.checkpoint import load_model
from omni.config import RunConfig
from omni.errors import ConfigError
from omni.evaluation.metrics import greedy_ctc
from omni.stages import STAGES
from omni.stages.sft import sft_hidden_states
from omni.stages.vision import caption_vectors
from omni.training.stage import local_context

Run = Callable[..., RunConfig]

pytestmark = pytest.mark.slow


def fit(
    stage: Any, n_examples: int, steps: int, rate: float, choose: Callable[[Any], bool] = lambda example: True
) -> tuple[Any, Any, list[float]]:
    """The model after `steps` updates on one batch, the batch, and the loss of every update."""
    torch.manual_seed(0)
    splits = stage.build_data()
    model = stage.build_model()
    examples = (splits.train[i] for i in range(len(splits.train)))
    chosen = [e for e in examples if choose(e)][:n_examples]
    assert len(chosen) == n_examples
    batch = splits.collate(chosen)
    stage.prepare(model, batch)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    losses = []
    for _ in range(steps):
        context = local_context(stage, model, batch)
        terms = stage.loss(model, batch, context)
        loss = sum(term.weight * term.sum / context.totals[name] for name, term in terms.items() if term.weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        stage.after_update(model, lambda tensor: tensor)
        losses.append(loss.item())
    return model.eval(), batch, losses


def test_thinker_learns_its_text_by_heart(nano_run: Run) -> None:
    model, batch, losses = fit(
        STAGES["text"](nano_run("text", "text", "text_chat", model={"thinker": {"context_length": 64}})), 4, 120, 1e-2
    )
    assert losses[-1] < 0.05


def test_ctc_decodes_its_clips_exactly(nano_run: Run) -> None:
    stage = STAGES["audio"](nano_run("audio", "speech"))
    model, batch, _ = fit(stage, 4, 250, 8e-3)
    states, lengths = model.audio_encoder(batch.mel, batch.mel_lengths)
    assert greedy_ctc(model.audio_encoder.ctc_logits(states, lengths), lengths * 4) == list(batch.texts)


def test_clip_retrieves_every_pair(nano_run: Run, trained: Callable[[str], str]) -> None:
    seen: set[str] = set()

    def new(example: Any) -> bool:
        fresh = example.text not in seen
        seen.add(example.text)
        return fresh

    stage = STAGES["vision"](nano_run("vision", "captions", init_from=(trained("text"),)))
    model, batch, _ = fit(stage, 8, 200, 1e-3, new)
    images, texts = model.contrastive.image(model.vision_encoder(batch.pixels)[0]), caption_vectors(model, batch)
    similarity = images @ texts.T
    assert similarity.argmax(0).tolist() == similarity.argmax(1).tolist() == list(range(8))


def test_patches_say_the_words_of_every_caption(nano_run: Run, trained: Callable[[str], str]) -> None:
    stage: Any = STAGES["vision"](nano_run("vision", "captions", init_from=(trained("text"),), vision_losses=["words"]))
    model, batch, losses = fit(stage, 8, 200, 2e-3)
    assert stage.evaluate(model, [batch]) == {"words_f1": 1.0}
    blank = replace(batch, pixels=torch.zeros_like(batch.pixels))
    assert stage.evaluate(model, [blank])["words_f1"] < 0.9
    assert losses[-1] < losses[0] / 10


def test_codec_error_falls_tenfold_and_most_codes_are_used(nano_run: Run) -> None:
    stage = STAGES["codec"](nano_run("codec", "voice", model={"codec": {"codebook_size": 16, "n_codebooks": 4, "ema_decay": 0.9}}))
    splits = stage.build_data()
    torch.manual_seed(0)
    fresh = stage.build_model()
    batch = splits.collate([splits.train[i] for i in range(4)])
    before = float(fresh.codec(batch.mel, batch.mel_lengths).squared.detach())
    model, batch, _ = fit(stage, 4, 400, 8e-3)
    after = model.codec(batch.mel, batch.mel_lengths)
    assert float(after.squared.detach()) < before / 10
    used = [len(set(after.codes[..., k].flatten().tolist())) for k in range(4)]
    assert min(used) > 8


@pytest.fixture(scope="module")
def talker(nano_run: Run, trained: Callable[[str], str]) -> tuple[Any, Any, Any]:
    stage = STAGES["talker"](nano_run("talker", "voice", init_from=(trained("text"), trained("audio"), trained("codec"))))
    model, batch, _ = fit(stage, 2, 250, 5e-3)
    return stage, model, batch


def test_talker_says_a_for_a_and_b_for_b(talker: tuple[Any, Any, Any]) -> None:
    from omni.inference.sampling import Sampling
    from omni.inference.speech import Speaker

    stage, model, batch = talker
    wanted = model.codec.encode(batch.mel, batch.mel_lengths)
    said = Speaker(model, stage.tokenizer).say(batch.texts, "ada", Sampling())
    for row, speech in enumerate(said):
        frames = -(-int(batch.mel_lengths[row]) // 8)
        assert speech.codes.tolist() == wanted[row, :frames].tolist()
        assert len(speech.waveform) == frames * 1280  # N frames are N / 12.5 seconds
    assert said[0].codes.tolist() != said[1].codes.tolist()


def test_instruction_tuning_answers_its_pictures_and_clips_and_not_others(nano_run: Run, trained: Callable[[str], str]) -> None:
    stage = STAGES["sft"](nano_run("sft", "conversations", init_from=(trained("text"), trained("audio"), trained("vision"))))

    def prompt(example: Any) -> tuple[int, ...]:
        """What the Thinker reads before its reply, media aside."""
        return tuple(example.input_ids[: example.loss_mask.index(True)])

    train = stage.build_data().train
    heard = [e for e in (train[i] for i in range(len(train))) if e.clips and not e.images]
    (asked, _), *_ = Counter(map(prompt, heard)).most_common()
    taken = {"picture": 0, "clip": 0}

    def one_medium(example: Any) -> bool:
        """Four conversations about a picture alone and four about a clip alone, these with one and the same prompt: the medium decides."""
        kind = "picture" if example.images and not example.clips else "clip" if prompt(example) == asked else None
        if kind is None or taken[kind] == 4:
            return False
        taken[kind] += 1
        return True

    model, batch, _ = fit(stage, 8, 150, 5e-3, one_medium)
    about_pictures = set(batch.image_slots[:, 0].tolist())

    def exact(conversations: Any) -> tuple[int, int]:
        """How many replies about pictures and about clips are the likeliest ones throughout."""
        logits = model.thinker.lm_head(sft_hidden_states(model, conversations))
        right = [
            bool(((row.argmax(-1) == labels) | (labels == -100)).all()) for row, labels in zip(logits, conversations.labels, strict=True)
        ]
        return sum(right[r] for r in about_pictures), sum(ok for r, ok in enumerate(right) if r not in about_pictures)

    assert exact(batch) == (4, 4)
    assert exact(replace(batch, pixels=batch.pixels.roll(1, 0)))[0] < 4
    assert exact(replace(batch, mel=batch.mel.roll(1, 0), mel_lengths=batch.mel_lengths.roll(1, 0)))[1] < 4


@pytest.mark.parametrize(("stage", "component"), [("talker", "talker"), ("codec", "codec")])
def test_what_has_been_learned_is_not_begun_anew(nano_run: Run, trained: Callable[[str], str], stage: str, component: str) -> None:
    """A run that starts from a trained Talker or codec keeps its codes: only a new one takes them from the codec, or from its first batch."""
    before = load_model(trained(stage)).tensors
    run = nano_run(stage, "voice", init_from=(trained("text"), trained("codec"), trained(stage)), out="unused")
    again = STAGES[stage](run)
    splits, model = again.build_data(), again.build_model()
    again.prepare(model, splits.collate([splits.train[i] for i in range(8)]))
    kept = model.tensors([component])
    assert kept and all(torch.equal(kept[name], tensor) for name, tensor in before.items() if name.startswith(f"{component}."))


def test_a_part_of_a_component_can_be_frozen(nano_run: Run, trained: Callable[[str], str]) -> None:
    sources = trained("text"), trained("codec"), trained("talker")

    def frozen(*names: str) -> set[str]:
        run = nano_run("talker", "voice", init_from=sources, out="unused", freeze=names)
        model = STAGES["talker"](run).build_model()
        return {name.split(".")[1] for name, p in model.named_parameters() if name.startswith("talker.") and not p.requires_grad}

    assert frozen() == frozen("vision_encoder") == set()  # which this stage does not have
    assert frozen("talker.first_out", "talker.begin") == {"first_out", "begin"}
    assert len(frozen("talker")) > 9
    with pytest.raises(ConfigError, match=r"train.freeze: talker has no part 'first'; it has: aligner, begin, .*transformer"):
        frozen("talker.first")
    with pytest.raises(ConfigError, match="train.freeze: no component 'first_out'; known: "):
        frozen("first_out.weight")
