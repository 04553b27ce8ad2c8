"""The project around the package: light imports, pins, the documents' commands, and docs that point at what exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

import omni
from omni.cli import app as application
from omni.cli.app import app, main
from omni.errors import DataError

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = (ROOT / "constraints.txt").read_text().split()
SCRIPTS = {"train_text": "text", "train_audio_enc": "audio", "train_vision": "vision", "train_talker": "talker", "sft_omni": "sft"}
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

Fail = Callable[[BaseException], None]
Captured = pytest.CaptureFixture[str]


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def normal(name: str) -> str:
    """A package name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_help_and_settings_import_no_torch() -> None:
    program = """
import sys
import omni, omni.config
from omni.cli.app import main
for arguments in (["--help"], ["train", "--help"], ["ask", "--help"], ["data", "pocket", "--help"]):
    assert main(arguments) == 0, arguments
heavy = {"torch", "numpy", "sentencepiece", "soundfile"} & set(sys.modules)
assert not heavy, heavy
"""
    result = run_python("-c", program)
    assert result.returncode == 0, result.stderr


def test_omni_is_loaded_when_it_is_asked_for() -> None:
    from omni.inference.omni import Omni

    assert omni.Omni is Omni
    with pytest.raises(AttributeError, match="no attribute 'Omnis'"):
        _ = omni.Omnis


def test_there_is_one_version(capsys: Captured) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"muomni {omni.__version__}\n"
    assert f"## {omni.__version__}" in (ROOT / "CHANGELOG.md").read_text()


# --- errors


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Adds, for this test, a command `fail` that raises."""
    monkeypatch.setattr(app, "registered_commands", list(app.registered_commands))
    monkeypatch.delenv("MUOMNI_DEBUG", raising=False)

    def add(error: BaseException) -> None:
        @app.command("fail")
        def fail() -> None:
            raise error

    return add


def test_a_users_mistake_is_one_line_and_exit_code_1(failing: Fail, capsys: Captured) -> None:
    failing(DataError("x.jsonl:3: what was found"))
    assert main(["fail"]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: x.jsonl:3: what was found\n")


def test_debug_shows_the_traceback_and_is_forgotten_afterwards(failing: Fail) -> None:
    failing(DataError("mistake"))
    with pytest.raises(DataError):
        main(["--debug", "fail"])
    assert main(["fail"]) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Abort()])
def test_an_interruption_is_exit_code_130(failing: Fail, error: BaseException, capsys: Captured) -> None:
    failing(error)
    assert main(["fail"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_our_own_bugs_are_not_hidden(failing: Fail) -> None:
    failing(AssertionError("an invariant"))
    with pytest.raises(AssertionError):
        main(["fail"])


@pytest.mark.parametrize("arguments", [["nonsense"], ["train"], ["data", "pocket", "--sise", "nano"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: Captured) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")


# --- the documents' commands


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_training_script_is_its_stage(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(application, "main", lambda arguments: calls.append(arguments) or 0)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--config", "x.json", "train.steps=5"])
    with pytest.raises(SystemExit, match="0"):
        exec(compile((ROOT / f"{script}.py").read_text(), script, "exec"), {"__name__": "__main__"})
    assert calls == [["train", SCRIPTS[script], "--config", "x.json", "train.steps=5"]]


def test_a_training_script_fails_in_one_line() -> None:
    result = run_python("train_text.py", "--config", "configs/no_such.json", "train.steps=5")
    assert (result.returncode, result.stdout, result.stderr) == (1, "", "error: configs/no_such.json: no such file\n")


def test_infer_chat_takes_the_documents_flags() -> None:
    result = run_python("infer_chat.py", "--help")
    assert result.returncode == 0
    assert all(f"--{flag}" in result.stdout for flag in ("ckpt_dir", "image", "audio_in", "video", "text", "audio_out"))
    result = run_python("infer_chat.py", "--ckpt_dir", "no/such/folder", "--text", "hello")
    assert result.returncode == 1
    assert result.stderr.startswith("error: no/such/folder")


# --- installation


def test_pins_are_plain_versions() -> None:
    assert "torch==2.13.0" in PINS
    assert not [line for line in PINS if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line)]
    assert len({line.split("==")[0] for line in PINS}) == len(PINS)


def test_everything_that_is_asked_for_is_pinned() -> None:
    pinned = {normal(line.split("==")[0]) for line in PINS}
    asked = PROJECT["dependencies"] + [name for extra in PROJECT["optional-dependencies"].values() for name in extra]
    names = {normal(re.match(r"[A-Za-z0-9._-]+", name)[0]) for name in asked}  # type: ignore[index]
    assert names - {"muomni"} <= pinned


def test_ci_runs_the_targets_of_the_makefile() -> None:
    script = ROOT / ".ci" / "run"
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert os.access(script, os.X_OK)
    assert {"test", "check"} <= set(re.findall(r"^make ([a-z-]+)$", script.read_text(), re.MULTILINE))
    assert {"install", "demo", "demo-from-nothing", "test", "check"} <= targets


# --- documentation


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_points_at_what_exists(document: Path) -> None:
    text = document.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    named = re.findall(r"configs/\w+\.json|python (\w+\.py)", text)
    assert not [link for link in links if not (document.parent / link).exists()]
    assert not [name for name in named if name and not (ROOT / name).exists()]


def test_the_readme_shows_commands_and_options_that_exist() -> None:
    command = typer.main.get_command(app)
    shown = re.findall(r"^muomni (.+)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(shown) > 5
    for line in shown:
        words = line.split()
        here = command
        while words and words[0] in getattr(here, "commands", {}):
            here = here.commands[words.pop(0)]  # type: ignore[attr-defined]
        known = {name for parameter in here.params for name in parameter.opts}
        assert here is not command, line
        assert {word for word in words if word.startswith("--")} <= known, line


def test_decisions_are_numbered_and_short() -> None:
    files = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(path.name[:4]) for path in files] == list(range(1, len(files) + 1))
    for path in files:
        lines = path.read_text().splitlines()
        assert lines[0].startswith(f"# {path.name[:4]} ")
        assert len(lines) <= 20


def test_the_picture_of_the_architecture_is_well_formed() -> None:
    picture = ET.parse(ROOT / "docs" / "architecture.svg").getroot()
    words = " ".join("".join(text.itertext()) for text in picture.iter("{http://www.w3.org/2000/svg}text"))
    assert all(part in words for part in ("Thinker", "Talker", "Vision encoder", "Audio encoder", "Projector", "Codec", "Vocoder"))
