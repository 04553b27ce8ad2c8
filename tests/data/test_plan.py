"""The plan: sizes equal to what training will see, resumable, leaving nothing behind; the command writes a configuration that loads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import typer

from omni.chat import render_text
from omni.cli import data as data_commands
from omni.config import DataSizes, RunConfig, load_run, parse
from omni.data import plan as planning
from omni.data.packing import PackedText, pack
from omni.data.plan import Plan, plan
from omni.errors import ConfigError, DataError
from omni.tokenizer import BPETokenizer, train_tokenizer

SENTENCES = [
    f"the {colour} {shape} is {place}"
    for colour in ("red", "blue")
    for shape in ("box", "ball", "cone")
    for place in ("here", "there", "gone")
]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(SENTENCES, 320, path)
    return path


def run_of(stage: str, **train: Any) -> RunConfig:
    raw = {"stage": stage, "preset": "nano", "out_dir": "out", "train": train, "model": {"thinker": {"context_length": 8}}}
    return parse(RunConfig, raw | {"data": {"validation": ["held-out.jsonl"]}}, "test")


def test_text_steps_are_the_packed_windows_of_the_epochs(folder: Any, tokenizer_file: Path, tmp_path: Path) -> None:
    tokenizer = BPETokenizer(tokenizer_file)
    chat = [{"role": "user", "content": "where is the ball?"}, {"role": "assistant", "content": "here"}]
    source = folder.jsonl("t.jsonl", [{"text": text} for text in SENTENCES] + [{"messages": chat}, "broken"])
    found = plan([source], run_of("text", batch_size=4), epochs=2.5, tokenizer=tokenizer_file)

    documents = [[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in SENTENCES] + [
        [*render_text(chat, tokenizer), tokenizer.eos_id]
    ]
    pack(documents, lambda ids: ids, tmp_path / "packed", vocab_size=320, source="test")
    packed = PackedText(tmp_path / "packed", 8)
    assert (found.rows, found.bad_rows) == (len(documents), 1)
    assert found.tokens == packed.n_tokens
    assert found.steps == math.ceil(2.5 * len(packed) / 4)
    assert found.warmup_steps == math.ceil(found.steps / 20)
    assert found.vocab_size == tokenizer.vocab_size


def test_speech_is_counted_in_seconds_and_unreadable_clips_are_bad_rows(folder: Any, tokenizer_file: Path) -> None:
    rows = [{"audio": folder.clip(f"{n}.wav", seconds=0.25 * (n + 1), rate=8000 * (1 + n % 2)), "text": SENTENCES[n]} for n in range(5)]
    (folder.root / "noise.wav").write_bytes(b"no sound at all")
    source = folder.jsonl("s.jsonl", [*rows, {"audio": "noise.wav", "text": "x"}, {"audio": "absent.wav", "text": "x"}])
    found = plan([source], run_of("audio", batch_size=2), tokenizer=tokenizer_file)
    assert found.audio_s == pytest.approx(0.25 * 15)
    assert (found.rows, found.bad_rows, found.steps) == (5, 2, 3)


def test_a_clip_of_the_speech_lm_is_said_and_heard_and_its_vocabulary_is_its_own(folder: Any) -> None:
    rows = [{"audio": folder.clip(f"{n}.wav", seconds=0.25, rate=8000), "text": text} for n, text in enumerate(SENTENCES)]
    run = run_of("speech-lm", batch_size=4)
    words = run.model.speech_lm.model_copy(update={"text_vocab_size": 300})
    run = run.model_copy(update={"model": run.model.model_copy(update={"speech_lm": words})})
    found = plan([folder.jsonl("s.jsonl", rows)], run)
    assert (found.rows, found.steps, found.vocab_size) == (18, 9, 300)
    assert "model.speech_lm.text_vocab_size=300" in planning.settings(found, ["s.jsonl"])


def test_captions_and_conversations_are_counted_in_rows(folder: Any, tokenizer_file: Path) -> None:
    captions = folder.jsonl("c.jsonl", [{"image": folder.picture("a.png"), "caption": text} for text in SENTENCES])
    found = plan([captions, captions], run_of("vision", batch_size=10), tokenizer=tokenizer_file)
    assert (found.rows, found.steps, found.audio_s) == (36, 4, 0.0)
    tokenizer = BPETokenizer(tokenizer_file)
    assert found.tokens == 2 * sum(len(tokenizer.encode(text)) + 2 for text in SENTENCES)

    question = {
        "role": "user",
        "content": [{"type": "audio", "audio": folder.clip("q.wav", seconds=0.5)}, {"type": "text", "text": "what?"}],
    }
    talk = folder.jsonl("m.jsonl", [{"messages": [question, {"role": "assistant", "content": "a ball"}]}] * 3)
    found = plan([talk], run_of("sft", batch_size=2), tokenizer=tokenizer_file)
    assert (found.rows, found.steps, found.audio_s) == (3, 2, 1.5)


def test_the_validation_share_is_not_trained_on(folder: Any, tokenizer_file: Path) -> None:
    source = folder.jsonl("c.jsonl", [{"image": folder.picture("a.png"), "caption": "a ball"}] * 100)
    raw = {"stage": "vision", "out_dir": "out", "train": {"batch_size": 1, "micro_batch_size": 1}, "data": {"validation_fraction": 0.25}}
    assert plan([source], parse(RunConfig, raw, "test"), tokenizer=tokenizer_file).steps == 75


def test_assumed_tokens_replace_counting(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder.jsonl("t.jsonl", [{"text": text} for text in SENTENCES])
    monkeypatch.setattr(planning, "_n_tokens", None)
    monkeypatch.setattr(planning, "train_tokenizer", None)
    found = plan([source], run_of("text", batch_size=10), assume_text_tokens=8001)
    assert (found.tokens, found.steps) == (8001, 100)
    assert found.vocab_size == run_of("text").model.thinker.vocab_size


def test_without_a_tokenizer_one_is_trained_on_the_text(folder: Any) -> None:
    source = folder.jsonl("t.jsonl", [{"text": text} for text in SENTENCES])
    found = plan([source], run_of("text"))
    assert 269 < found.vocab_size < run_of("text").model.thinker.vocab_size  # the corpus is too small to fill it
    assert found.tokens < sum(map(len, SENTENCES))


class Killed(Exception):
    """Stands for a kill: nothing of ours catches it."""


@pytest.mark.parametrize("kill_at", [0, 7, 13])
def test_a_killed_count_repeats_at_most_one_step_and_ends_the_same(
    folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    monkeypatch.setattr(planning, "STEP", 5)
    source = folder.jsonl("s.jsonl", [{"audio": folder.clip(f"{n}.wav", 0.1 * n + 0.1), "text": text} for n, text in enumerate(SENTENCES)])
    work = tmp_path / "work"
    whole = plan([source], run_of("audio"), work=tmp_path / "other")
    assert not (tmp_path / "other").exists()

    count, calls = planning._n_tokens, []

    def dying(row: Any, tokenizer: BPETokenizer) -> int:
        if len(calls) == kill_at:
            raise Killed
        calls.append(row)
        return count(row, tokenizer)

    monkeypatch.setattr(planning, "_n_tokens", dying)
    with pytest.raises(Killed):
        plan([source], run_of("audio"), work=work)
    repeated: list[str] = []

    def watched(row: Any, tokenizer: BPETokenizer) -> int:
        repeated.append(row["text"])
        return count(row, tokenizer)

    monkeypatch.setattr(planning, "_n_tokens", watched)
    monkeypatch.setattr(planning, "train_tokenizer", None)  # the tokenizer is kept, too
    assert plan([source], run_of("audio"), work=work) == whole
    assert repeated == SENTENCES[kill_at // 5 * 5 :]
    assert not work.exists()


def test_a_count_of_other_data_is_not_continued(folder: Any, tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "STEP", 5)
    source = folder.jsonl("t.jsonl", [{"text": text} for text in SENTENCES])
    with monkeypatch.context() as patch:
        patch.setattr(planning, "_Sizes", _dying_sizes(after=11))
        with pytest.raises(Killed):
            plan([source], run_of("text"), tokenizer=tokenizer_file, work=tmp_path / "work")
    assert (tmp_path / "work" / "progress.json").exists()
    source = folder.jsonl("t.jsonl", [{"text": text} for text in reversed(SENTENCES)][:-1])
    assert plan([source], run_of("text"), tokenizer=tokenizer_file, work=tmp_path / "work") == plan(
        [source], run_of("text"), tokenizer=tokenizer_file
    )


def _dying_sizes(after: int) -> type[planning._Sizes]:
    class Dying(planning._Sizes):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "rows" and value == after:
                raise Killed
            super().__setattr__(name, value)

    return Dying


def test_mistakes_are_named_and_leave_no_folder(folder: Any, tmp_path: Path, tokenizer_file: Path) -> None:
    work = tmp_path / "work"
    short = folder.jsonl("t.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match="tokens do not fill one context of 8"):
        plan([short], run_of("text"), tokenizer=tokenizer_file, work=work)
    with pytest.raises(ConfigError, match="no step at all"):
        plan([short], run_of("text"), assume_text_tokens=100, epochs=0.0, work=work)
    (folder.root / "noise.wav").write_bytes(b"no sound at all")
    silent = folder.jsonl("s.jsonl", [{"audio": "noise.wav", "text": "x"}])
    with pytest.raises(DataError, match="none of the 1 rows has a readable clip"):
        plan([silent], run_of("audio"), tokenizer=tokenizer_file, work=work)
    with pytest.raises(DataError, match="training text is empty"):
        plan([folder.jsonl("u.jsonl", [{"text": "\u2585"}])], run_of("text"), work=work)
    assert not work.exists()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs `muomni data …` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    data_commands.register(app)
    return lambda *arguments: app(args=["data", *map(str, arguments)], standalone_mode=False)


@pytest.fixture
def text_manifest(folder: Any) -> str:
    return folder.jsonl("t.jsonl", [{"text": text} for text in SENTENCES * 30])


def test_the_command_writes_a_configuration_that_loads(
    command: Any, text_manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.iterdir())
    command(
        "plan", text_manifest, "--config", "new.json", "--stage", "text", "--preset", "nano", "--batch-size", 2, "--epochs", 3, "--json"
    )
    found = Plan(**json.loads(capsys.readouterr().out))
    run = load_run("new.json")
    assert (run.stage, run.preset, run.out_dir, run.data.train) == ("text", "nano", "runs/new", (text_manifest,))
    assert (run.train.steps, run.train.warmup_steps, run.train.batch_size) == (found.steps, found.warmup_steps, 2)
    assert run.model.thinker.vocab_size == found.vocab_size
    assert run.data.sizes == DataSizes(rows=found.rows, tokens=found.tokens, audio_s=found.audio_s)
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "new.json"])


def test_the_command_keeps_what_it_does_not_plan(command: Any, text_manifest: str) -> None:
    Path("old.json").write_text(
        json.dumps({"stage": "text", "preset": "nano", "out_dir": "here", "train": {"learning_rate": 0.5, "steps": 1}})
    )
    command("plan", text_manifest, "--config", "old.json", "--epochs", 40)
    run = load_run("old.json")
    assert (run.out_dir, run.train.learning_rate) == ("here", 0.5)
    assert run.train.steps > 1


def test_a_dry_run_writes_nothing(command: Any, text_manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(tmp_path.iterdir())
    command("plan", text_manifest, "--stage", "text", "--preset", "nano", "--dry-run", "--config", "new.json")
    assert "steps" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == before


def test_wrong_flags_are_named(command: Any, text_manifest: str) -> None:
    for flags, message in {
        ("--stage", "text"): "--config names the file",
        ("--dry-run",): "which stage",
        ("--dry-run", "--stage", "txt"): "stage",
        ("--dry-run", "--stage", "text", "--skip-text-tokenization"): "go together",
        ("--dry-run", "--stage", "text", "--assume-text-tokens", "5"): "go together",
    }.items():
        with pytest.raises(ConfigError, match=message):
            command("plan", text_manifest, *flags)
    Path("list.json").write_text("[]")
    with pytest.raises(ConfigError, match="expected an object"):
        command("plan", text_manifest, "--config", "list.json")
