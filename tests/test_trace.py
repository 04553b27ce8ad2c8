"""`muomni trace`: the shapes that the model has, the document's beside them, and a reason wherever they differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omni.cli.app import main
from omni.config import preset
from omni.inference.trace import PIPELINES, Shape, Step, Tracer, as_markdown

PAGE = Path(__file__).parent.parent / "docs" / "shapes.md"

# (stage, shape, whether the document says the same) in order; repeated blocks are left out
EXPECTED: dict[str, list[tuple[str, Shape, bool]]] = {
    "text": [
        ("token ids", (1, 6), True),
        ("token embedding", (1, 6, 256), True),
        ("queries of block 1", (1, 4, 6, 64), True),
        ("keys of block 1; values alike", (1, 2, 6, 64), False),
        ("attention of block 1", (1, 6, 256), True),
        ("feed-forward of block 1", (1, 6, 256), True),
        ("Thinker block 1", (1, 6, 256), True),
        ("Thinker block 4", (1, 6, 256), True),
        ("final norm", (1, 6, 256), True),
        ("logits", (1, 6, 5000), True),
        ("next token", (1, 1), True),
        ("logits of one cached step", (1, 1, 5000), True),
        ("cached keys (layers, batch, heads, positions, width)", (4, 1, 2, 7, 64), False),
    ],
    "image": [
        ("pixels", (1, 3, 224, 224), True),
        ("patches", (1, 128, 14, 14), True),
        ("CLS and patches, ViT block 1", (1, 197, 128), True),
        ("CLS and patches, ViT block 4", (1, 197, 128), True),
        ("CLS", (1, 1, 128), True),
        ("patch grid", (1, 196, 128), True),
        ("projected to the Thinker", (1, 1, 256), True),
        ("1 image token + 8 text tokens", (1, 9, 256), True),
        ("Thinker block 1", (1, 9, 256), True),
        ("Thinker block 4", (1, 9, 256), True),
        ("final norm", (1, 9, 256), True),
        ("logits", (1, 9, 5000), True),
    ],
    "audio": [
        ("waveform, 1 s at 16 kHz", (1, 16_000), True),
        ("log-mel, 100 Hz", (1, 100, 128), True),
        ("convolution 1", (1, 64, 50, 64), True),
        ("convolution 2", (1, 64, 25, 32), True),
        ("convolution 3", (1, 64, 13, 16), False),
        ("projected to the encoder's width", (1, 13, 192), False),
        ("AuT block 1", (1, 13, 192), False),
        ("AuT block 4", (1, 13, 192), False),
        ("CTC logits", (1, 52, 98), False),
        ("projected to the Thinker", (1, 13, 256), False),
        ("audio tokens + 5 text tokens", (1, 18, 256), False),
        ("Thinker block 1", (1, 18, 256), False),
        ("Thinker block 4", (1, 18, 256), False),
        ("final norm", (1, 18, 256), False),
        ("logits", (1, 18, 5000), False),
    ],
    "all": [
        ("picture as Thinker embeddings", (1, 1, 256), True),
        ("sound as Thinker embeddings", (1, 13, 256), False),
        ("image, audio, text", (1, 23, 256), False),
        ("Thinker block 1", (1, 23, 256), False),
        ("Thinker block 4", (1, 23, 256), False),
        ("final norm", (1, 23, 256), False),
        ("logits", (1, 23, 5000), False),
    ],
    "speech": [
        ("token ids of the reply", (1, 10), True),
        ("characters of the reply", (1, 33), False),
        ("Thinker states", (1, 10, 256), False),
        ("conditioning: a character with its token's state", (1, 33, 192), False),
        ("slots of 20 ms that each character lasts", (1, 33), False),
        ("what each frame is to say", (1, 25, 192), False),
        ("Talker input, a frame", (1, 1, 192), True),
        ("logits of the first codebook", (1, 128), True),
        ("logits of the next codebook", (1, 128), True),
        ("codes", (1, 25, 2), False),
        ("log-mel", (1, 200, 128), False),
        ("waveform", (1, 32_000), False),
    ],
    "talker-training": [
        ("log-mel", (2, 400, 128), False),
        ("mel frames folded to the code rate", (2, 50, 64), False),
        ("codes", (2, 50, 2), True),
        ("Talker input", (2, 50, 192), True),
        ("logits of the first codebook", (2, 50, 128), True),
        ("logits of the later codebooks", (2, 50, 1, 128), False),
        ("durations", (2, 33), False),
        ("targets", (200,), True),
    ],
}


@pytest.fixture(scope="module")
def traces() -> dict[str, list[Step]]:
    tracer = Tracer(preset("tiny"))
    return {name: tracer.run(name) for name in PIPELINES}


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_shape_of_preset_tiny(traces: dict[str, list[Step]], pipeline: str) -> None:
    found = [(s.stage, s.shape, s.shape == s.document) for s in traces[pipeline] if not s.stage.endswith(("block 2", "block 3"))]
    assert found == EXPECTED[pipeline]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_difference_from_the_document_is_explained(traces: dict[str, list[Step]], pipeline: str) -> None:
    unexplained = [step for step in traces[pipeline] if step.shape != step.document and not step.why]
    assert not unexplained


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_page_shows_what_the_model_does(traces: dict[str, list[Step]], pipeline: str) -> None:
    assert as_markdown(pipeline, traces[pipeline]) in PAGE.read_text(), "regenerate with: muomni trace --markdown"


def test_rates_agree_from_codes_to_sound(traces: dict[str, list[Step]]) -> None:
    shapes = {step.stage: step.shape for step in traces["speech"]}
    frames = shapes["codes"][1]
    assert shapes["log-mel"][1] == 8 * frames
    assert shapes["waveform"][1] / 16_000 == frames / 12.5


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_other_presets_can_be_traced(pipeline: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", pipeline, "--preset", "nano", "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)["pipelines"][pipeline]
    assert steps and all(step["document"] is None for step in steps)


def test_an_unknown_pipeline_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "video"]) == 1
    assert "text, image, audio, all, speech, talker-training" in capsys.readouterr().err
