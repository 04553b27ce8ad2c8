"""The seeing suite on a tiny random model: what is retrieved, what a probe can read, and what goes wrong."""

import gzip
import json
from pathlib import Path
from random import Random

import pytest
import torch

from omni.config import ModelConfig
from omni.data.collate import collate_captions
from omni.data.datasets import CaptionDataset
from omni.data.manifests import Manifests, open_rows
from omni.data.worlds import nlvr
from omni.data.worlds.questions import caption
from omni.data.worlds.scenes import COLOURS, Scene, Thing
from omni.errors import CheckpointError, DataError
from omni.evaluation import probes, vision
from omni.evaluation.metrics import chance_at, hits_at, recall_at
from omni.evaluation.nlvr import Example, FrozenFeatures, NLVRHead, boxes_of, correct, train_head
from omni.evaluation.probes import PROBES, UNASKED, fit, majority, scores
from omni.evaluation.vision import image_vectors, retrieval, text_vectors, unseen_scenes, vision_suite
from omni.inference.omni import Omni
from omni.omni_model import OmniModel
from omni.stages.vision import caption_vectors
from omni.tokenizer import train_tokenizer

CONFIG = ModelConfig.model_validate(
    {
        "thinker": {"vocab_size": 300, "d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_ff": 16, "context_length": 256},
        "vision_encoder": {"image_size": 32, "d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 16},
    }
)


def make_omni(folder: Path, *components: str) -> Omni:
    tokenizer = train_tokenizer(["a big red circle and a small blue square"] * 20, 300, folder / "tokenizer.model")
    torch.manual_seed(0)
    return Omni(OmniModel(CONFIG, components), tokenizer, Path("checkpoint"))


@pytest.fixture(scope="module")
def omni(tmp_path_factory) -> Omni:
    return make_omni(tmp_path_factory.mktemp("model"), "thinker", "vision_encoder", "contrastive")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Look-alikes as NLVR, in two orders each, and drawings enough for both kinds of held-out ones."""
    images, rng = tmp_path / "images", Random(0)
    images.mkdir()
    for name in ("dev", "hidden"):
        with gzip.open(images / f"nlvr.{name}.jsonl.gz", "wt") as file:
            for i in range(8):
                boxes, sentence, label = nlvr.example(rng)
                for order, arranged in enumerate((boxes, boxes[::-1])):
                    picture = f"{name}-{i}-{order}.png"
                    nlvr.render(arranged).save(images / picture)
                    file.write(json.dumps({"image": picture, "sentence": sentence, "label": label, "identifier": str(i)}) + "\n")
    for drawings, style in (("emoji", "openmoji"), ("clipart", "tuxpaint")):
        names = [f"thing number {i}" for i in range(60)]
        rows = [{"image": "dev-0-0.png", "caption": name, "name": name, "set": style} for name in names]
        (images / f"{drawings}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


# --- retrieval


def test_identical_captions_count_as_one() -> None:
    similarity = torch.tensor([[0.9, 0.1, 0.5], [0.8, 0.1, 0.2], [0.3, 0.2, 0.1]])
    assert hits_at(similarity, ["a", "b", "c"], 1) == [True, False, False]
    assert hits_at(similarity, ["a", "a", "c"], 1) == [True, True, False]
    assert hits_at(similarity, ["a", "b", "c"], 2) == [True, False, False]
    assert recall_at(similarity, ["a", "b", "c"], 5) == 1.0


def test_chance_is_what_random_orders_find() -> None:
    labels = ["a", "a", "b", "c", "d", "e", "f", "g"]
    torch.manual_seed(0)
    for k in (1, 5):
        found = sum(recall_at(torch.rand(8, 8), labels, k) for _ in range(1000)) / 1000
        assert chance_at(labels, k) == pytest.approx(found, abs=0.02)
    assert chance_at([str(i) for i in range(1000)], 5) == pytest.approx(0.005)


def test_perfect_retrieval_both_ways() -> None:
    found = retrieval(torch.eye(6), list("abcdef"))
    assert {found["metrics"][f"{way}_r1"] for way in ("image_to_text", "text_to_image")} == {1.0}
    assert found["baselines"]["chance_r1"] == pytest.approx(1 / 6, abs=1e-4)


def test_unseen_scenes_have_distinct_captions_and_half_hold_unseen_combinations() -> None:
    scenes = unseen_scenes(100)
    assert len({caption(scene) for scene in scenes}) == 100
    assert sum(scene.is_unseen for scene in scenes) == 50
    assert {len(scene.things) for scene in scenes} == set(range(1, 7))
    assert unseen_scenes(40) == scenes[:40]


def test_hits_by_combination_have_an_interval_over_their_scenes(omni: Omni, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes, numbers = unseen_scenes(40), torch.eye(40)
    missed = torch.tensor([not scene.is_unseen for scene in scenes]) & (torch.arange(40) < 20)  # half of those with seen combinations
    monkeypatch.setattr(vision, "image_vectors", lambda omni, pictures: torch.where(missed[:, None], numbers.roll(1, 0), numbers))
    monkeypatch.setattr(vision, "text_vectors", lambda omni, captions: numbers)
    found = vision.scene_retrieval(omni, 40)["metrics"]
    assert found["image_to_text_r1_held_out_combinations"] == 1.0 and found["image_to_text_r1_held_out_combinations_95"] == (1.0, 1.0)
    low, high = found["image_to_text_r1_seen_combinations_95"]
    assert low < found["image_to_text_r1_seen_combinations"] == 0.5 < high
    monkeypatch.setattr(vision, "image_vectors", lambda omni, pictures: numbers[:1])
    monkeypatch.setattr(vision, "text_vectors", lambda omni, captions: numbers[:1])
    assert not any("_seen_combinations" in name for name in vision.scene_retrieval(omni, 1)["metrics"])


def test_vectors_do_not_depend_on_their_batch(omni: Omni, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = unseen_scenes(5)
    texts, pictures = [caption(s) for s in scenes], [vision.render(s) for s in scenes]
    together = text_vectors(omni, texts), image_vectors(omni, pictures)
    alone = torch.cat([text_vectors(omni, [t]) for t in texts]), torch.cat([image_vectors(omni, [p]) for p in pictures])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_texts_are_embedded_as_the_stage_embeds_captions(omni: Omni, data: Path) -> None:
    rows = Manifests([open_rows(str(data / "images/emoji.jsonl"), ("image", "caption"))])
    captions = CaptionDataset(rows, CONFIG, omni.tokenizer)
    batch = collate_captions([captions[i] for i in range(3)])
    torch.testing.assert_close(text_vectors(omni, batch.texts), caption_vectors(omni.model, batch), atol=1e-5, rtol=1e-4)


# --- probes


def thing(colour: str, shape: str, x: int, y: int) -> Thing:
    return Thing(colour, shape, "small", x, y)


def test_targets_are_what_the_scene_shows() -> None:
    scene = Scene((thing("red", "star", 150, 180), thing("blue", "circle", 60, 40), thing("red", "circle", 200, 30)), 0)
    colours = list(COLOURS)
    target = {name: probe.target(scene) for name, probe in PROBES.items()}
    assert [c for c, there in zip(colours, target["colour"], strict=True) if there] == ["red", "blue"]
    assert target["leftmost_colour"] == [colours.index("blue")]
    assert target["count"] == [2]
    assert target["position"][colours.index("blue")] == 0  # top left
    assert target["position"][colours.index("red")] == UNASKED  # two of them
    near = Scene((thing("red", "star", 60, 180), thing("blue", "circle", 68, 40)), 0)
    assert PROBES["leftmost_colour"].target(near) == [UNASKED]


def test_a_probe_reads_what_is_linear_in_the_features() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator)
    targets = torch.stack(((x[:, 0] > 0).long(), (x[:, 1] + x[:, 2] > 0).long()), dim=1)
    x = x + 0.3 * torch.stack((targets[:, 0] * 2 - 1, *(torch.zeros(400),) * 5), dim=1)
    probe, n_right = fit(x[:300], targets[:300], 2)
    assert n_right > 0.97 * 120  # of 60 scenes held back, two questions each
    assert scores(probe(x[:300]), targets[:300], 2)["exact"] == 1.0
    assert scores(probe(x[300:]), targets[300:], 2)["accuracy"] > 0.97


def test_a_majority_answer_has_no_balanced_accuracy() -> None:
    targets = torch.tensor([[1, 0], [1, 0], [1, 1], [0, 0]])
    common = majority(targets, 2)
    assert common.tolist() == [1, 0]
    assert scores(common.expand_as(targets), targets, 2) == {"accuracy": 0.75, "balanced": 0.5, "exact": 0.5}


def test_what_is_not_asked_is_not_counted() -> None:
    targets = torch.tensor([[1, UNASKED], [UNASKED, 0]])
    assert scores(torch.tensor([[1, 1], [0, 1]]), targets, 2) == {"accuracy": 0.5, "balanced": 0.5}


# --- NLVR


def test_a_box_is_seen_once_in_whatever_order(omni: Omni) -> None:
    features, boxes = FrozenFeatures(omni), nlvr.random_boxes(Random(3), towers=False)
    one = boxes_of(features, nlvr.render(boxes))
    assert boxes_of(features, nlvr.render(boxes[::-1])) == one[::-1] == (2, 1, 0)
    sentence = features.sentence("There is a box.")
    features.compute()
    head = NLVRHead(16, 32, features.patches.shape[1]).eval()
    batch = features.batch([Example(one, sentence, True), Example(one[::-1], sentence, True)])
    logits, _ = batch.logits(head, False)
    assert logits[0].item() == pytest.approx(logits[1].item(), abs=1e-4)
    padded = torch.cat((batch.states, torch.ones_like(batch.states)), dim=1)
    torch.testing.assert_close(head(batch.patches, padded, batch.lengths)[0], logits, atol=1e-5, rtol=1e-4)


def test_the_head_learns_what_it_sees(omni: Omni, monkeypatch: pytest.MonkeyPatch) -> None:
    """Towers of one block: yellow or black."""
    monkeypatch.setattr("omni.evaluation.nlvr.BATCH", 8)
    features = FrozenFeatures(omni)
    sentence = features.sentence("There is a yellow block.")
    examples = []
    for paint in ("Yellow", "Black"):
        block = [nlvr.Item(type="square", color=paint, size=20, x_loc=40, y_loc=80)]
        examples.append(Example(boxes_of(features, nlvr.render([block] * 3), [block] * 3), sentence, paint == "Yellow"))
    features.compute()
    head, accuracy = train_head(features, examples, examples, examples, 150)
    assert accuracy == 1.0 and all(correct(features, head, examples))
    _, blind_accuracy = train_head(features, examples, examples, examples, 5, blind=True)
    assert blind_accuracy == 0.5


# --- the suite


def test_the_suite_reports_everything_beside_its_baselines(omni: Omni, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "STEPS", 3)
    result = vision_suite(omni, data, limit=8)
    assert result["suite"] == "vision"
    names = {"scenes", "drawings_unseen_names", "drawings_unseen_drawings", "probes", "nlvr"}
    assert set(result["metrics"]) == set(result["baselines"]) == names
    assert set(result["metrics"]["probes"]) == {"items", "training_scenes", *PROBES}
    assert result["metrics"]["nlvr"]["items"] == 16
    scenes, statements = result["metrics"]["scenes"], result["metrics"]["nlvr"]
    groups = ("", "_held_out_combinations", "_seen_combinations")
    for figures, name in ((statements, "accuracy"), (statements, "consistency"), *((scenes, f"image_to_text_r1{g}") for g in groups)):
        low, high = figures[f"{name}_95"]
        assert 0 <= low <= figures[name] <= high <= 1
    assert result["items"] == sum(m["items"] for m in result["metrics"].values())
    json.dumps(result)


def test_absent_drawings_are_asked_for(omni: Omni, data: Path) -> None:
    (data / "images/clipart.jsonl").unlink()
    with pytest.raises(DataError, match="muomni data get emoji clipart"):
        vision_suite(omni, data, limit=4)


def test_absent_nlvr_is_asked_for(omni: Omni, data: Path) -> None:
    (data / "images/nlvr.hidden.jsonl.gz").unlink()
    with pytest.raises(DataError, match="muomni data get"):
        vision_suite(omni, data, limit=4)


def test_a_checkpoint_without_contrastive_heads_says_so(data: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no contrastive"):
        vision_suite(make_omni(tmp_path, "thinker", "vision_encoder"), data, limit=4)
