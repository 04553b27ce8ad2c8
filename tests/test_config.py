"""Settings: what is refused and how it is said, overrides, presets, the files in configs/, and that every setting is read somewhere."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from omni import config as config_module
from omni.config import PRESETS, STAGES, Config, ModelConfig, RunConfig, apply_overrides, load_run, model_config, parse, preset, released
from omni.errors import ConfigError
from omni.stages.recipes import POCKET_STAGES, pocket_runs

ROOT = Path(__file__).parents[1]
CONFIG_FILES = sorted((ROOT / "configs").glob("*.json"))
POCKET_FILES = [path for path in CONFIG_FILES if load_run(path).stage in POCKET_STAGES]
RUN: dict[str, Any] = {"stage": "text", "out_dir": "runs/x"}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of all settings in a dumped config, with their values."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value


def message_of(raw: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(RunConfig, raw, "run.json")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_unknown_key_is_refused_with_the_nearest_name() -> None:
    message = message_of(RUN | {"model": {"thinker": {"n_layer": 2}}})
    assert message == "run.json: ThinkerConfig has no field 'n_layer' (at model.thinker.n_layer); did you mean 'n_layers'?"


def test_a_key_like_no_other_is_refused_with_the_known_names() -> None:
    message = message_of(RUN | {"data": {"zzz": 1}})
    assert "DataConfig has no field 'zzz'" in message
    assert all(name in message for name in config_module.DataConfig.model_fields)


def test_all_problems_are_reported_at_once() -> None:
    model = {"codec": {"stride": "x"}, "thinker": {"d_model": 250}}
    message = message_of({"stage": "txt", "train": {"steps": 0, "lerning_rate": 1}, "model": model})
    for part in ("stage:", "'txt'", "train.steps", "did you mean 'learning_rate'?", "model.codec.stride", "n_heads 4", "out_dir: Field"):
        assert part in message


@pytest.mark.parametrize(
    ("section", "settings", "fragment"),
    [
        ("audio", {"window_samples": 2048}, "exceeds n_fft"),
        ("audio", {"f_max_hz": 9000}, "half the sample rate"),
        ("thinker", {"n_kv_heads": 3}, "n_heads 4 must be a multiple of n_kv_heads 3"),
        ("thinker", {"n_experts": 2, "experts_per_token": 4}, "experts_per_token 4 exceeds n_experts 2"),
        ("vision_encoder", {"image_size": 225}, "not a multiple of patch_size"),
        ("vision_encoder", {"image_tokens": "pooled", "pooled_size": 5}, "cannot be pooled"),
        ("talker", {"voices": []}, "distinct names"),
        ("talker", {"voices": ["ada", "ada"]}, "distinct names"),
        ("audio_encoder", {"downsample": 2}, "4 or 8"),
        ("speech_lm", {"voices": ["ada", "ada"]}, "distinct names"),
        ("speech_lm", {"code_rates": [2, 4]}, "must be 1 for the slowest"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(section: str, settings: dict[str, Any], fragment: str) -> None:
    message = message_of(RUN | {"model": {section: settings}})
    assert f"model.{section}" in message
    assert fragment in message


def test_a_batch_that_micro_batches_do_not_fill_is_refused() -> None:
    assert "not a multiple" in message_of(RUN | {"train": {"batch_size": 32, "micro_batch_size": 12}})


@pytest.mark.parametrize(("losses", "fragment"), [([], "at least 1"), (["words", "words"], "one twice"), (["word"], "contrastive")])
def test_losses_that_the_vision_stage_does_not_have_are_refused(losses: list[str], fragment: str) -> None:
    assert fragment in message_of(RUN | {"train": {"vision_losses": losses}})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_valid_and_survives_json(name: str) -> None:
    chosen = preset(name)
    assert parse(ModelConfig, json.loads(chosen.model_dump_json()), name) == chosen


def test_an_unknown_preset_is_refused_with_the_known_names() -> None:
    with pytest.raises(ConfigError, match="no preset 'large'; known: nano, tiny"):
        preset("large")
    assert "no preset 'large'" in message_of(RUN | {"preset": "large"})


def test_the_model_section_is_changes_to_the_preset() -> None:
    run = parse(RunConfig, RUN | {"preset": "nano", "model": {"thinker": {"n_layers": 7}}}, "run.json")
    nano = preset("nano")
    assert run.model == nano.model_copy(update={"thinker": nano.thinker.model_copy(update={"n_layers": 7})})


def test_a_resolved_run_survives_json() -> None:
    run = parse(RunConfig, RUN | {"preset": "nano", "model": {"talker": {"voices": ["ada"]}}, "train": {"steps": 7}}, "run.json")
    assert parse(RunConfig, json.loads(run.model_dump_json()), "run.json") == run


def test_every_setting_can_be_overridden_by_its_dotted_name() -> None:
    run = parse(RunConfig, RUN | {"preset": "nano"}, "run.json")
    settings = [f"{name}={json.dumps(value)}" for name, value in leaves(run.model_dump(mode="json"))]
    assert len(settings) > 80
    assert parse(RunConfig, apply_overrides({}, settings), "run.json") == run


def test_overrides_are_json_or_text_and_beat_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(RUN | {"train": {"steps": 5, "seed": 3}}))
    settings = ["train.steps=9", "out_dir=runs/y", 'data.train=["a.jsonl"]', "model.thinker.qk_norm=true", "train.learning_rate=1e-4"]
    run = load_run(path, settings)
    assert (run.train.steps, run.train.seed, run.train.learning_rate) == (9, 3, 1e-4)
    assert (run.out_dir, run.data.train, run.model.thinker.qk_norm) == ("runs/y", ("a.jsonl",), True)


@pytest.mark.parametrize("item", ["train.steps", "=5"])
def test_an_override_without_name_or_value_is_refused(item: str) -> None:
    with pytest.raises(ConfigError, match=r"write it as section\.name=value"):
        apply_overrides({}, [item])


def test_overrides_do_not_change_what_they_are_laid_over() -> None:
    raw = {"train": {"steps": 5}}
    apply_overrides(raw, ["train.steps=6", "train.seed=1"])
    model_config("nano", ["thinker.n_layers=9"])
    assert raw == {"train": {"steps": 5}}
    assert preset("nano").thinker.n_layers == 3


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (None, "no such file"),
        (b'{\n"stage":\n}', "run.json:3: not JSON"),
        (b"[1]", "expected an object"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, content: bytes | None, fragment: str) -> None:
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=fragment):
        load_run(path)


def test_configs_are_frozen() -> None:
    run = parse(RunConfig, RUN, "run.json")
    for owner, name in ((run, "out_dir"), (run.train, "steps"), (run.model.thinker, "d_model")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(owner, name, 1)


def test_every_rate_derives_from_the_front_end() -> None:
    tiny = preset("tiny")
    assert (tiny.audio.mel_rate_hz, tiny.encoder_rate_hz, tiny.code_rate_hz, tiny.max_audio_tokens) == (100.0, 12.5, 12.5, 128)
    finer = model_config("tiny", ["audio.hop_samples=80", "audio_encoder.downsample=4", "codec.stride=16"])
    assert (finer.audio.mel_rate_hz, finer.encoder_rate_hz, finer.code_rate_hz) == (200.0, 50.0, 12.5)


@pytest.mark.parametrize(("kind", "tokens"), [("cls", 1), ("grid", 196), ("pooled", 49)])
def test_image_tokens_are_counted(kind: str, tokens: int) -> None:
    assert model_config("tiny", [f"vision_encoder.image_tokens={kind}"]).vision_encoder.n_image_tokens == tokens


def test_every_setting_is_read_outside_the_configuration() -> None:
    """A setting that nothing reads is a promise that nothing keeps."""
    read = {"preset"}  # read where RunConfig is checked, to complete its model section
    for path in (ROOT / "omni").rglob("*.py"):
        if path != ROOT / "omni" / "config.py":
            read |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    sections = [c for c in vars(config_module).values() if isinstance(c, type) and issubclass(c, Config)]
    unread = [f"{section.__name__}.{name}" for section in sections for name in section.model_fields if name not in read]
    assert len(sections) > 10
    assert not unread


def test_the_files_make_every_stage_and_feed_each_other() -> None:
    runs = {path.stem: load_run(path) for path in CONFIG_FILES}
    assert {run.stage for run in runs.values()} == set(STAGES) - {"plain-gpt"}  # a baseline
    assert {run.out_dir for run in runs.values()} == {f"checkpoints/{name}" for name in runs}
    for run in runs.values():
        assert set(run.init_from) <= {other.out_dir for other in runs.values()} - {run.out_dir}


@pytest.mark.parametrize("path", POCKET_FILES, ids=lambda path: path.stem)
def test_a_file_says_what_the_pocket_recipe_does(path: Path) -> None:
    """The same stage run by its file or by `muomni train pocket` is the same training; only folders differ."""
    run = load_run(path)
    recipe = {r.stage: r for r in pocket_runs("tiny", Path("checkpoints"), Path("runs/pocket-tiny/data"))}[run.stage]
    assert (run.preset, run.model, run.data) == (recipe.preset, recipe.model, recipe.data)
    assert len(run.init_from) == len(POCKET_STAGES[run.stage]["init_from"])
    rhythm = ("checkpoint_every", "evaluate_every")
    assert run.train.model_dump(exclude=set(rhythm)) == recipe.train.model_dump(exclude=set(rhythm))


def test_the_documents_names_stand_for_the_release_until_training_makes_them(tmp_path: Path) -> None:
    (tmp_path / "omni-tiny").mkdir()
    for name in ("omni_sft_tiny", "thinker_tiny"):
        assert released(tmp_path / name) == tmp_path / "omni-tiny"
        assert released(tmp_path / name / "tokenizer.model") == tmp_path / "omni-tiny" / "tokenizer.model"
    for other in ("audio_enc_tiny", "omni-tiny", "elsewhere/thinker_tiny"):
        assert released(tmp_path / other) == tmp_path / other
    (tmp_path / "thinker_tiny").mkdir()
    assert released(tmp_path / "thinker_tiny") == tmp_path / "thinker_tiny"
    assert released(tmp_path / "thinker_tiny/tokenizer.model") == tmp_path / "thinker_tiny/tokenizer.model"
