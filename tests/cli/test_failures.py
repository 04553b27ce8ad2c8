"""Every mistake ends in one clear line that names the thing and what to do, a non-zero exit code, and no traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from omni.cli.app import main
from omni.config import RunConfig
from omni.omni_model import OmniModel


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, trained: Callable[[str], str], nano_run: Callable[..., RunConfig], world: Path) -> Path:
    """A folder with a checkpoint, good and bad files, and run configurations."""
    from omni.checkpoint import load_model, save_model

    root = tmp_path_factory.mktemp("failures")
    text = load_model(Path(trained("text")))
    config = nano_run("sft", "conversations").model.model_copy(update={"thinker": text.config.thinker})
    model = OmniModel(config)
    assert text.tokenizer is not None
    save_model(root / "ckpt", model.tensors(), config, model.components, text.tokenizer.read_bytes())

    shutil.copytree(root / "ckpt", root / "reshaped")
    described = json.loads((root / "reshaped/config.json").read_text())
    described["model"]["thinker"]["d_ff"] += 8
    (root / "reshaped/config.json").write_text(json.dumps(described))
    shutil.copytree(root / "ckpt", root / "truncated")
    weights = root / "truncated/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])

    (root / "noise.wav").write_text("this is no sound")
    (root / "noise.png").write_text("this is no picture")
    Image.new("RGB", (32, 32), "red").save(root / "red.png")
    soundfile.write(root / "none.wav", np.zeros(0, np.float32), 16_000)
    soundfile.write(root / "long.wav", np.zeros(16_000 * 12, np.float32), 16_000)
    (root / "empty.jsonl").write_text("")
    (root / "long.jsonl").write_text(json.dumps({"audio": "long.wav", "text": "long"}) + "\n")

    good = json.loads(nano_run("text", "text").model_dump_json()) | {"out_dir": str(root / "run")}
    good.pop("model")
    for name, changes in {
        "good": {},
        "unknown": {"train": {"step": 5}},
        "zero": {"train": {"steps": 0}},
        "empty": {"data": {"train": [str(root / "empty.jsonl")]}},
        "missing": {"data": {"train": [str(root / "nowhere.jsonl")]}},
        "tiny_text": {"model": {"thinker": {"context_length": 500_000}}},
        "clip": {
            "stage": "audio",
            "data": {"train": [str(root / "long.jsonl")], "validation": [str(root / "long.jsonl")], "max_audio_s": 5},
        },
        "rate": {
            "stage": "audio",
            "init_from": [str(root / "ckpt")],
            "model": {"audio": {"sample_rate_hz": 24000}},
            "data": {"train": [str(world / "speech.jsonl")]},
        },
        "alone": {"stage": "talker", "data": {"train": [str(world / "voice.jsonl")]}},
    }.items():
        (root / f"{name}.json").write_text(json.dumps(good | changes))
    return root


CASES = {
    "missing audio": ("transcribe {0}/nowhere.wav --ckpt {0}/ckpt", "nowhere.wav", "no such audio file"),
    "missing picture": ("describe {0}/nowhere.png --ckpt {0}/ckpt", "nowhere.png", "no such picture"),
    "missing video": ("ask --video {0}/nowhere.mp4 --ckpt {0}/ckpt", "nowhere.mp4", "no such video"),
    "missing checkpoint": ("ask --text hello --ckpt {0}/nothing", "nothing", "no such"),
    "missing configuration": ("train text --config {0}/nowhere.json", "nowhere.json", "no such file"),
    "missing manifest": ("train text --config {0}/missing.json", "nowhere.jsonl", "no such manifest"),
    "empty manifest": ("train text --config {0}/empty.json", "empty.jsonl", "no usable row"),
    "empty question manifest": ("ask --manifest {0}/empty.jsonl --ckpt {0}/ckpt", "empty.jsonl", "empty"),
    "unreadable audio": ("transcribe {0}/noise.wav --ckpt {0}/ckpt", "noise.wav", "not a readable audio file"),
    "audio of no samples": ("transcribe {0}/none.wav --ckpt {0}/ckpt", "none.wav", "0 samples"),
    "unreadable picture": ("ask --text hello --image {0}/noise.png --ckpt {0}/ckpt", "noise.png", "not a readable picture"),
    "wrong sample rate": ("train audio --config {0}/rate.json", "ckpt", "mel front end"),
    "clip longer than the limit": ("train audio --config {0}/clip.json", "long.wav", "exceed"),
    "clip longer than the context": ("ask --audio {0}/long.wav --strict --ckpt {0}/ckpt", "audio tokens", "quarter of the context"),
    "text longer than the context": ("ask --text {1} --ckpt {0}/ckpt", "context of 256", "shorten"),
    "less text than one context": ("train text --config {0}/tiny_text.json", "packed", "do not fill one context"),
    "checkpoint of another shape": ("ask --text hello --ckpt {0}/reshaped", "thinker: tensor transformer.blocks.0", "reshaped"),
    "truncated checkpoint": ("ask --text hello --ckpt {0}/truncated", "model.safetensors", "truncated"),
    "unknown key": ("train text --config {0}/unknown.json", "'step'", "did you mean 'steps'"),
    "unknown override": ("train text --config {0}/good.json train.stepps=3", "'stepps'", "did you mean 'steps'"),
    "malformed override": ("train text --config {0}/good.json nonsense", "nonsense", "section.name=value"),
    "zero steps": ("train text --config {0}/zero.json", "train.steps", "greater than 0"),
    "another stage": ("train audio --config {0}/good.json", "good.json", "'text'"),
    "stage without what it needs": ("train talker --config {0}/alone.json", "talker needs a trained thinker", "init_from"),
    "a recipe's option for a stage": ("train text --config {0}/good.json --seed 3", "--seed", "train.seed"),
    "another recipe's option": ("train pocket --stage text --out {0}/x", "--stage", "--help"),
    "a file for a folder": ("train pocket --preset nano --out {0}/none.wav", "none.wav", "folder"),
    "unknown stage": ("train nonsense", "'nonsense'", "recipes"),
    "unknown preset": ("train pocket --preset huge --out {0}/x", "'huge'", "nano"),
    "unknown voice": ("say hello --voice nobody --out {0}/x.wav --ckpt {0}/ckpt", "'nobody'", "ada"),
    "nothing to say": ("say  --out {0}/x.wav --ckpt {0}/ckpt", "text to say", "--manifest"),
    "no folder for the answer": ("say hello --out {0}/no/x.wav --ckpt {0}/ckpt", "does not exist", "no"),
    "bad temperature": ("ask --text hello --temperature -1 --ckpt {0}/ckpt", "temperature -1", "use 0"),
    "bad device": ("ask --text hello --device tpu9 --ckpt {0}/ckpt", "tpu9", ""),
    "nothing asked": ("ask --ckpt {0}/ckpt", "nothing was asked", "give"),
    "unknown option": ("ask --txet hello", "--txet", ""),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_ends_in_one_line(case: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, named, advice = CASES[case]
    arguments = [part.format(place, "word " * 400) if "{1}" in part else part.format(place) for part in command.split()]
    assert main(arguments) != 0
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert lines, err
    assert "Traceback" not in err + out
    assert named in lines[0]
    assert advice in lines[0]
